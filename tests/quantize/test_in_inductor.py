"""Quantised layers in torch.compile: an fp8 product on a GPU, and what the graph and its cache are told."""

from __future__ import annotations

import hashlib
import inspect
import math
from pathlib import Path

import pytest
import torch
from small_quantized import decibels, quantized
from small_submodules import needs_no_gpu, tensors
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from gr00t_trt.backends import onednn_int8
from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor import products
from gr00t_trt.backends.inductor.products import GpuProducts, fp8_linear
from gr00t_trt.backends.inductor.rewritings import REWRITINGS
from gr00t_trt.common.products import Speed
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.quantize.linear import QuantLinear


def targets_of(form: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> tuple[list[object], Tensor, Tensor]:
    """The calls of a compiled submodule after the pass as on a GPU, its result, and eager's."""
    monkeypatch.setattr(products, "_half_on_gpu", lambda node: True)
    seen: list[object] = []

    def keep(module: fx.GraphModule, inputs: list[Tensor]) -> fx.GraphModule:
        GpuProducts()(module.graph)
        module.graph.lint()
        module.recompile()
        seen.extend(node.target for node in module.graph.nodes if node.op == "call_function")
        return module

    target, args = quantized(form, dtype), tensors("head_dim_48", 3, 33, dtype)
    with torch.no_grad():
        got = torch.compile(target.module, backend=keep, fullgraph=True)(*args)
    torch._dynamo.reset()
    return seen, got, target.module(*args)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp8_layer_becomes_one_product_of_8_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, got, want = targets_of("fp8", dtype, monkeypatch)
    assert seen.count(fp8_linear) == 2
    assert products.QUANTIZED not in seen
    assert got.dtype == want.dtype == dtype
    assert decibels(got, want) > 50  # sums rounded to bf16


@pytest.mark.parametrize("form", ["int8", "nvfp4"])
def test_other_formats_stay_the_reference(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, got, want = targets_of(form, torch.bfloat16, monkeypatch)
    assert seen.count(products.QUANTIZED) == 2
    assert decibels(got, want) == math.inf


def test_no_constant_is_made_in_a_call() -> None:
    """Each would be a kernel that fills it, in every product of every request."""
    layer = quantized("fp8").module.get_submodule("qkv")
    assert isinstance(layer, QuantLinear)
    held = layer.codes, layer.scale, layer.input_scale, None, layer.bias
    graph = make_fx(lambda x, *rest: fp8_linear(x, *rest))(torch.randn(3, 5, 96).bfloat16(), *held).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert sum("_scaled_mm" in name for name in called) == 1
    assert not [name for name in called if any(word in name for word in ("full", "ones", "zeros", "scalar_tensor"))]


def test_the_cache_of_compiled_graphs_knows_the_rewriting() -> None:
    file = Path(inspect.getsourcefile(fp8_linear) or "")
    names = " ".join(sorted(REWRITINGS)).encode()
    assert GpuProducts().uuid() == hashlib.sha256(file.read_bytes() + names).hexdigest()
    assert GpuProducts(["long_linear"]).uuid() != GpuProducts().uuid()


@pytest.mark.full_size  # the C++ compiler takes its time
@needs_no_gpu
def test_on_a_cpu_the_reference_runs_and_the_build_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, "speed", lambda: Speed({"float32": 1.0}, None))
    target, args = quantized("int8"), tensors("head_dim_48", 1, 20, torch.bfloat16)
    built = get_backend("inductor").build(target, BuildOptions(), BuildContext(None, lambda _: None))
    assert decibels(built.call(*args), target.module(*args)) > 45
    assert built.notes == (
        "int8: computed by its reference in PyTorch, between compiled kernels: for the accuracy, not the speed.",
    )
