"""Products in int8 on a CPU: their values against the reference, and where they are not taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_quantized import decibels, quantized
from small_submodules import tensors
from torch import nn

from gr00t_trt.backends import onednn_int8
from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.onednn_int8 import OnednnLinear, on_this_cpu
from gr00t_trt.common import int8
from gr00t_trt.common.products import CLEARLY_FASTER, Speed
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.quantize.linear import QuantLinear

needs_int8 = pytest.mark.skipif(not int8.is_exact(), reason="no exact products in int8 on this CPU")
FAST = Speed({"float32": 1.0}, None, 0.9 * CLEARLY_FASTER)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine is."""
    monkeypatch.setattr(onednn_int8, "speed", lambda: FAST)


@needs_int8
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_its_reference(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    loud = 10 ** torch.rand(96) * 3  # more than was seen, so that some is clipped
    layer = QuantLinear(nn.Linear(96, 48, bias=bias).to(dtype), "int8", loud / 2)
    x = (torch.randn(2, 5, 96) * loud).to(dtype)
    got, want = OnednnLinear(layer)(x), layer(x)
    assert (got.dtype, got.shape) == (want.dtype, want.shape)
    assert decibels(got.float(), want.float()) > (90 if dtype is torch.float32 else 50)


@needs_int8
def test_sums_of_the_largest_codes_are_not_cut_off() -> None:
    layer = QuantLinear(nn.Linear(512, 16), "int8", torch.ones(512), smoothing=0.0)
    layer.codes.fill_(127)
    x = torch.ones(3, 512)
    torch.testing.assert_close(OnednnLinear(layer)(x), layer(x), rtol=1e-5, atol=0)


@needs_int8
def test_eager_pytorch_and_torch_compile_take_them(fast: None) -> None:
    target, args = quantized("int8", torch.float32), tensors("head_dim_48", 1, 20, torch.float32)
    built = get_backend("eager").build(target, BuildOptions(), BuildContext(None, lambda _: None))
    assert sum(isinstance(one, OnednnLinear) for one in built.call.modules()) == 2
    want = built.call(*args)
    assert decibels(want, target.module(*args)) > 45
    traced = torch.compile(on_this_cpu(target).module, backend="aot_eager", fullgraph=True)(*args)
    torch._dynamo.reset()
    torch.testing.assert_close(traced, want)


@pytest.mark.parametrize("form", ["fp8", "nvfp4"])
def test_other_formats_stay_the_reference(form: str, fast: None) -> None:
    target = quantized(form, torch.float32)
    assert on_this_cpu(target) is target


@pytest.mark.parametrize("ms", [None, 0.9])
def test_where_it_is_wrong_or_slow_the_reference_stays(ms: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, "speed", lambda: replace(FAST, int8_ms=ms))
    target = quantized("int8", torch.float32)
    assert on_this_cpu(target) is target


def test_a_processor_that_cuts_sums_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(x: torch.Tensor, by: int8.Packed) -> torch.Tensor:
        return x.new_zeros(len(x), 64)

    monkeypatch.setattr(int8, "multiply", cut_off)
    int8.is_exact.cache_clear()
    assert not int8.is_exact()
    int8.is_exact.cache_clear()


def test_a_pytorch_without_the_operator_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise AttributeError("qlinear_prepack")

    monkeypatch.setattr(int8, "packed", missing)
    int8.is_exact.cache_clear()
    assert not int8.is_exact()
    int8.is_exact.cache_clear()
