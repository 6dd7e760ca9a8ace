"""The roofline: one product by hand, the published totals of the released geometry, and what has no ceilings."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gr00t_trt.errors import PlanError
from gr00t_trt.measure.roofline import Trace, ceilings, trace
from gr00t_trt.model import Gr00tN1d5, load_config
from gr00t_trt.model.n1_5.fast import FastGr00tN1d5, restructure
from gr00t_trt.model.n1_5.inputs import IDS, MASK, PIXELS

PUBLISHED = {
    # device: one view as the model is written, and restructured; milliseconds
    "NVIDIA H200": (2.06, 1.79),
    "NVIDIA H100 80GB HBM3": (2.65, 2.30),
    "NVIDIA GeForce RTX 5090": (7.61, 6.66),
    "NVIDIA GeForce RTX 4090": (11.0, 9.61),
    "NVIDIA A100-SXM4-80GB": (None, 4.94),
    "NVIDIA Thor": (32.3, 28.1),
    "Orin": (47.9, 41.7),
}


def request(model: Gr00tN1d5 | FastGr00tN1d5, views: int) -> dict[str, torch.Tensor]:
    """40 other tokens, so that one view makes the published 296."""
    images = torch.full((1, model.config.tokens_per_image * views), model.config.image_token_index)
    ids = torch.cat((torch.arange(40)[None], images), dim=1)
    return {
        PIXELS: torch.zeros(views, 3, 224, 224),
        IDS: ids,
        MASK: torch.ones_like(ids),
        "state": torch.zeros(1, 1, 64),
        "embodiment_id": torch.zeros(1, dtype=torch.int64),
    }


def without_weights(name: str, dtype: torch.dtype) -> tuple[Gr00tN1d5, FastGr00tN1d5]:
    """A plain and a restructured model of one geometry, without memory."""
    with torch.device("meta"):
        plain = Gr00tN1d5(load_config(name)).to(dtype)
    plain.eval().requires_grad_(False)
    return plain, restructure(plain)


Call = tuple[Callable[[], object], tuple[torch.Tensor, ...]]


def plain_call(plain: Gr00tN1d5, views: int) -> Call:
    noise, x = torch.zeros(1, 16, 32, device="meta"), {k: v.to("meta") for k, v in request(plain, views).items()}
    return lambda: plain.get_action(x, noise=noise), (*x.values(), noise)


def fast_call(fast: FastGr00tN1d5, views: int) -> Call:
    noise, x = torch.zeros(1, 16, 32, device="meta"), fast.prepare(request(fast, views))
    return lambda: fast.get_action(x, noise=noise), (x.pixel_values, x.state, x.prompt.ids, noise)


@pytest.fixture(scope="module")
def traces() -> dict[bool, Trace]:
    """Restructured or not -> what a call of the released geometry in bf16 does."""
    plain, fast = without_weights("synthetic:full", torch.bfloat16)
    fast_call(fast, 1)[0]()  # what is computed once belongs to no call
    return {
        False: trace(*plain_call(plain, 1)),
        True: trace(*fast_call(fast, 1)),
    }


def test_one_product_by_hand() -> None:
    with torch.device("meta"):
        linear, x = nn.Linear(8, 4, dtype=torch.float16), torch.zeros(3, 8, dtype=torch.float16)
    found = trace(lambda: F.relu(linear(x)), (x,))
    (product,) = found.products
    assert product.flops == 2 * 3 * 8 * 4
    assert product.weight_bytes == 2 * (8 * 4 + 4)
    assert product.activation_bytes == 2 * (3 * 8 + 3 * 4)
    assert found.operators == 2  # transposing a weight moves nothing
    h200 = ceilings("NVIDIA H200")
    assert found.milliseconds(h200) == pytest.approx(1e3 * found.bytes / 4.3e12)


def test_attention_is_one_product_that_keeps_its_scores() -> None:
    with torch.device("meta"):
        q, kv = torch.zeros(1, 2, 5, 16, dtype=torch.bfloat16), torch.zeros(1, 2, 7, 16, dtype=torch.bfloat16)
    found = trace(lambda: F.scaled_dot_product_attention(q, kv, kv), (q, kv))
    (product,) = found.products
    assert product.flops == 2 * (2 * 2 * 5 * 7 * 16)
    assert product.weight_bytes == 0
    assert product.activation_bytes == 2 * 2 * 16 * (5 + 7 + 7 + 5)


def test_rows_taken_from_a_bank_of_weights_are_weights() -> None:
    with torch.device("meta"):
        bank, x, which = torch.zeros(32, 8, 4), torch.zeros(1, 3, 8), torch.zeros(1, dtype=torch.int64)
    (product,) = trace(lambda: torch.bmm(x, bank.index_select(0, which)), (x, which)).products
    assert product.weight_bytes == 4 * 8 * 4


@pytest.mark.parametrize(("device", "expected"), PUBLISHED.items())
def test_published_totals(traces, device: str, expected: tuple[float | None, float]) -> None:
    for restructured, ms in zip((False, True), expected, strict=True):
        if ms is not None:
            assert traces[restructured].milliseconds(ceilings(device)) == pytest.approx(ms, rel=0.02)


def test_published_work(traces) -> None:
    assert traces[False].flops / 1e9 == pytest.approx(996, abs=1)
    assert traces[True].flops / 1e9 == pytest.approx(906, rel=0.01)
    assert traces[True].flops / 1e9 <= 910
    assert traces[False].weight_bytes / 1e6 == pytest.approx(6909, rel=0.001)
    assert traces[True].weight_bytes / 1e9 == pytest.approx(5.94, rel=0.01)


def test_flops_are_those_of_torch_s_counter() -> None:
    plain, fast = without_weights("synthetic", torch.float32)
    for call, given in (plain_call(plain, 2), fast_call(fast, 2)):
        call()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call()
        assert trace(call, given).flops == counter.get_total_flops() > 0


@pytest.mark.parametrize(
    "gpu", [None, "", "cpu", "NVIDIA H100 PCIe", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA A100-SXM4-40GB", "h200"]
)
def test_other_devices_have_no_ceilings(gpu: str | None) -> None:
    assert ceilings(gpu) is None


def test_no_time_is_claimed_for_fp32() -> None:
    with torch.device("meta"):
        linear, x = nn.Linear(8, 4), torch.zeros(3, 8)
    assert trace(lambda: linear(x), (x,)).milliseconds(ceilings("NVIDIA H200")) is None


def test_a_model_with_weights_is_refused() -> None:
    linear, x = nn.Linear(8, 4), torch.zeros(3, 8)
    with pytest.raises(PlanError, match="addmm on cpu"):
        trace(lambda: linear(x), (x,))
