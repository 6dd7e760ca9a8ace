"""Codes and scales against torch's own e4m3 and the written-out e2m1 grid; what no cast and no overflow may spoil."""

from __future__ import annotations

import pytest
import torch
from small_quantized import decibels
from torch import nn

from gr00t_trt.engines.key import module_hash, weights_hash
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.quantize.formats import FORMATS, decode, encode, rounded, scale_of
from gr00t_trt.quantize.linear import QuantLinear, can_be_quantized, smoothing_factors
from gr00t_trt.quantize.operator import quantized_linear

E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


@torch.no_grad()
def layer(form: str = "int8", *, width: int = 64, scale: float = 1.0) -> tuple[nn.Linear, QuantLinear, torch.Tensor]:
    torch.manual_seed(0)
    plain, x = nn.Linear(width, 48), torch.randn(3, 5, width)
    return plain, QuantLinear(plain, form, x.abs().flatten(0, -2).amax(0) * scale), x


def test_every_quantised_precision_is_a_format() -> None:
    assert set(FORMATS) == {row.name for row in PRECISIONS.values() if row.quantized}


@pytest.mark.parametrize(("form", "least"), [("int8", 40), ("fp8", 30), ("nvfp4", 19)])
def test_a_weight_comes_back_as_well_as_its_bits_allow(form: str, least: float) -> None:
    weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    stored = encode(weight, FORMATS[form])
    assert decibels(decode(stored.codes, stored.scale, stored.block_scale, form), weight) > least


def test_int8_is_symmetric_and_each_channel_uses_its_whole_range() -> None:
    weight = torch.randn(16, 32) * torch.logspace(-3, 3, 16)[:, None]
    stored = encode(weight, FORMATS["int8"])
    assert stored.codes.dtype == torch.int8
    assert (stored.codes.abs().amax(1) == 127).all()


def test_fp8_clips_what_is_too_large_and_makes_no_nan_of_it() -> None:
    x = torch.tensor([1.0, 448.0, 500.0, 1e30, -1e30])
    assert rounded(x, torch.tensor(1.0), "fp8").tolist() == [1.0, 448.0, 448.0, 448.0, -448.0]


def test_fp8_rounds_as_torch_does() -> None:
    x = torch.linspace(-400, 400, 9999)
    assert torch.equal(rounded(x, torch.tensor(1.0), "fp8"), x.to(torch.float8_e4m3fn).float())


def test_nvfp4_takes_the_nearest_value_and_ties_go_to_the_even_code() -> None:
    x = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.26, 0.74, -2.6, -5.1, 0.0, 9.9, 2.4, 1.0])
    even = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.5, 0.5, -3.0, -6.0, 0.0, 6.0, 2.0, 1.0]
    x[13] = 6.0  # the largest of the block decides its scale: 6 -> 1
    assert rounded(x, torch.tensor(1.0), "nvfp4").tolist() == even


def test_every_nvfp4_value_is_exact_and_two_codes_share_a_byte() -> None:
    values = torch.cat((E2M1, -E2M1))[None]
    stored = encode(values, FORMATS["nvfp4"])
    assert stored.codes.shape == (1, 8)
    assert torch.allclose(decode(stored.codes, stored.scale, stored.block_scale, "nvfp4"), values, rtol=1e-6)
    assert stored.codes[0].tolist()[0] == 0x10  # the even column lies in the low bits


@pytest.mark.parametrize("form", FORMATS)
def test_zeros_stay_zeros(form: str) -> None:
    stored = encode(torch.zeros(16, 16), FORMATS[form])
    assert not decode(stored.codes, stored.scale, stored.block_scale, form).any()
    assert not rounded(torch.zeros(2, 16), scale_of(torch.tensor(0.0), FORMATS[form]), form).any()


@pytest.mark.parametrize(("form", "least"), [("int8", 38), ("fp8", 28), ("nvfp4", 15)])
def test_a_layer_computes_with_both_sides_quantised(form: str, least: float) -> None:
    plain, made, x = layer(form)
    assert decibels(made(x), plain(x)) > least
    weights_only = QuantLinear(plain, form, None)
    assert decibels(weights_only(x), plain(x)) > decibels(made(x), plain(x))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.double, lambda m: m.type(torch.float16)]
)
def test_no_cast_reaches_codes_or_scales(form: str, cast) -> None:
    _, made, _ = layer(form)
    before = {name: value.clone() for name, value in made.named_buffers()}
    cast(made)
    for name, value in made.named_buffers():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert made.bias is not None
    assert made.bias.dtype != torch.float32  # what has the layer's dtype follows it


def test_a_move_takes_everything_along() -> None:
    _, made, _ = layer("nvfp4")
    made.to("meta", torch.float16)
    assert {value.device.type for value in (*made.buffers(), *made.parameters())} == {"meta"}
    assert made.scale.dtype == torch.float32


def test_inputs_up_to_twice_the_calibrated_range_cost_fp8_nothing() -> None:
    """A floating format forgives slack, and nobody has calibrated on everything."""
    plain, made, x = layer("fp8", scale=0.5)
    assert decibels(made(x), plain(x)) > 28
    plain, made, x = layer("int8", scale=0.5)
    assert decibels(made(x), plain(x)) < 25


def test_smoothing_changes_no_function_and_evens_out_the_channels() -> None:
    torch.manual_seed(0)
    weight, channels = torch.randn(32, 64), torch.rand(64) + 0.5
    channels[3] = 90.0
    factors = smoothing_factors(channels, weight, 0.5)
    assert factors is not None
    assert factors.log().mean().abs() < 1e-5
    x = torch.randn(4, 64)
    assert torch.allclose((x * factors) @ (weight / factors).T, x @ weight.T, rtol=1e-4, atol=1e-4)
    smoothed = channels * factors
    assert smoothed.max() / smoothed.median() < (channels.max() / channels.median()) / 5
    assert smoothing_factors(channels, weight, 0.0) is None


def test_a_channel_that_calibration_never_saw_is_not_blown_up() -> None:
    factors = smoothing_factors(torch.tensor([1.0, 0.0]), torch.ones(2, 2), 0.5)
    assert factors is not None
    assert factors[1] / factors[0] < 40


def test_sides_that_are_no_multiple_of_sixteen_are_told_apart() -> None:
    sizes = [(72, 144, False), (96, 192, True), (588, 1152, False), (1536, 1536, True), (64, 72, False)]
    for k, n, able in sizes:
        assert can_be_quantized(nn.Linear(k, n, device="meta")) is able


@pytest.mark.parametrize("form", FORMATS)
def test_the_operator_is_well_formed_and_exports_as_one_node(form: str) -> None:
    _, made, x = layer(form)
    args = (x, made.codes, made.scale, made.block_scale, made.input_scale, made.smoothing, made.bias, form)
    torch.library.opcheck(quantized_linear, args, test_utils=("test_schema", "test_faketensor"))
    rows = torch.export.Dim("rows", min=2, max=64)
    program = torch.export.export(made, (x,), dynamic_shapes=({0: rows},))
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.gr00t_trt.quantized_linear.default]
    other = torch.randn(7, 5, 64)
    assert torch.equal(program.module()(other), made(other))


def test_another_scale_is_another_engine() -> None:
    _, first, x = layer("fp8")
    _, again, _ = layer("fp8")
    _, other, _ = layer("fp8", scale=1.25)
    assert weights_hash(first) == weights_hash(again)
    assert module_hash(first) == module_hash(again)
    assert weights_hash(first) != weights_hash(other)
    assert x.dtype == torch.float32
