"""Quantised layers through Torch-TensorRT: real engines without a GPU, and what a GPU would be told."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
from small_quantized import quantize, quantized
from small_submodules import BATCH, LENGTH, tensors
from torch import nn

from gr00t_trt.backends import compute_capabilities as capabilities
from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.engines.key import source_hash, weights_hash
from gr00t_trt.errors import BackendError, PlanError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.schema import BuildOptions

FORMS = ["int8", "fp8", "nvfp4"]
slow = pytest.mark.full_size


def build(target: Target, **options: object) -> Built:
    return get_backend("torch_tensorrt").build(target, BuildOptions(**options), BuildContext(None, lambda phase: None))


@pytest.mark.parametrize("form", [pytest.param("int8", marks=slow), "nvfp4", pytest.param("fp8", marks=slow)])
def test_one_engine_and_a_dry_run_that_is_eager_to_the_last_bit(rtx, form: str) -> None:
    target = quantized(form)
    built = build(target, use_fp32_acc=True)
    assert (built.coverage.engines, built.coverage.percent, built.coverage.unsupported) == (1, 100.0, {})
    for batch, length in ((1, 20), (3, 33)):
        args = tensors("head_dim_48", batch, length, torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(built.call(*args), target.module(*args))
    said = " ".join(built.notes)
    wanted = {"int8": "8.0, 8.6, 8.9, 12.0 and newer", "fp8": "8.9, 12.0, 12.1.", "nvfp4": "capability 12.0, 12.1."}
    assert wanted[form] in said


def wide(dtype: torch.dtype = torch.bfloat16) -> Target:
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, 1024)).to(dtype).eval().requires_grad_(False)
    return Target("wide", module, (torch.randn(1, 20, 1024).to(dtype),), ("hidden",), ({0: BATCH, 1: LENGTH},))


@slow
def test_weights_lie_in_the_engine_in_their_own_bits(rtx) -> None:
    """Not on the tiny model: its engines are larger than its weights."""
    whole = build(wide()).engine_bytes
    sizes = {form: build(quantize(wide(), form)).engine_bytes for form in FORMS}
    saved = {form: whole - size for form, size in sizes.items()}
    assert saved["int8"] > 0.9 * 2**20
    assert saved["fp8"] > 0.9 * 2**20
    assert saved["nvfp4"] > 1.1 * 2**20


class Twice(nn.Module):
    """One layer in two steps, as the loop has it."""

    def __init__(self, layer: nn.Module, steps: int):
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for _ in range(self.steps):
            hidden = hidden + self.layer(hidden)
        return hidden


@slow
def test_a_weight_of_several_steps_is_stored_once(rtx) -> None:
    one, four = (dataclasses.replace(wide(), module=Twice(wide().module, n).eval()) for n in (1, 4))
    sizes = [build(quantize(target, "fp8")).engine_bytes for target in (one, four)]
    assert sizes[1] - sizes[0] < 0.9 * 2**20


def test_gpus_that_cannot_compute_it_are_refused_in_one_error(rtx) -> None:
    for form, older in (("fp8", "8.6"), ("nvfp4", "8.9"), ("int8", "7.5")):
        with pytest.raises(PlanError, match=f"is in {form}, in which {older} cannot multiply") as caught:
            build(quantized(form), compute_capabilities=(older, "12.0"))
        assert f"{PRECISIONS[form].least_capability} and newer" in str(caught.value)


@pytest.mark.parametrize(("form", "here"), [("fp8", (8, 6)), ("nvfp4", (9, 0)), ("int8", (7, 5))])
def test_this_gpu_is_refused_where_it_cannot(form: str, here: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(capabilities.torch.cuda, "get_device_capability", lambda: here)
    with pytest.raises(BackendError, match=f"this GPU, of compute capability {here[0]}.{here[1]}, cannot"):
        capabilities.refuse_older_gpu(quantized(form))
    monkeypatch.setattr(capabilities.torch.cuda, "get_device_capability", lambda: (12, 0))
    options = capabilities.for_formats(quantized(form), BuildOptions(), ahead_of_time=True)
    assert options.compute_capabilities == ()  # on a GPU the engine is for that one


def test_another_scale_is_another_engine_and_so_is_another_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = quantized("fp8"), quantized("fp8")
    layer = other.module.get_submodule("qkv")
    layer.input_scale *= 1.25
    assert weights_hash(first.module) != weights_hash(other.module)
    from gr00t_trt.engines import key

    before = source_hash()
    source_hash.cache_clear()
    monkeypatch.setattr(key, "_SOURCES", tuple(name for name in key._SOURCES if name != "quantize"))
    assert source_hash() != before
    source_hash.cache_clear()


def test_the_converter_is_registered_once(rtx) -> None:
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_ATEN_CONVERTERS

    from gr00t_trt.backends.torch_tensorrt import quantized as converter

    for _ in range(2):
        converter.register()
    assert len(DYNAMO_ATEN_CONVERTERS[torch.ops.gr00t_trt.quantized_linear.default]) == 1


def test_constants_live_as_long_as_the_network(rtx) -> None:
    """TensorRT reads their memory when it builds, long after a conversion is over."""
    import tensorrt

    from gr00t_trt.backends.torch_tensorrt.quantized import _Layers

    network = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR)).create_network(0)
    context = types.SimpleNamespace(net=network)
    for _ in range(2):
        _Layers(context, "layer").number(torch.ones(3))
    assert [held.tolist() for held in context.gr00t_trt_constants] == [[1.0, 1.0, 1.0]] * 2
