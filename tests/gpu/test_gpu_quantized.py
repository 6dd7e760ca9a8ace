"""Quantised products on a GPU: fp8 against its reference, and at which sizes of the model it is the faster one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gr00t_trt.backends.inductor.products import GpuProducts, fp8_linear
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.quantize.linear import QuantLinear

SIZES = [
    (1152, 3456), (1152, 1152), (1152, 4304), (4304, 1152), (2048, 4096), (2048, 2048), (2048, 12288), (6144, 2048),
    (1536, 4608), (1536, 1536), (1536, 6144), (6144, 1536),
]  # fmt: skip
"""K and N of the model's layers: vision tower, language model, diffusion transformer."""
ROWS = (49, 256, 294)


def capability() -> str:
    return "{}.{}".format(*torch.cuda.get_device_capability())


@pytest.fixture(autouse=True)
def able() -> None:
    if not PRECISIONS["fp8"].computes_on(capability()):
        pytest.skip(f"{capability()} has no fp8 products")


def layers(k: int, n: int) -> tuple[nn.Linear, QuantLinear]:
    torch.manual_seed(0)
    plain = nn.Linear(k, n, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    return plain, QuantLinear(plain, "fp8", torch.full((k,), 4.0, device="cuda"))


def called(made: QuantLinear, x: Tensor) -> Tensor:
    return fp8_linear(x, made.codes, made.scale, made.input_scale, made.smoothing, made.bias)


@pytest.mark.parametrize(("k", "n"), [(1536, 6144), (1152, 4304)])
@pytest.mark.parametrize("rows", [1, *ROWS])
def test_the_product_is_its_reference(k: int, n: int, rows: int) -> None:
    made, x = layers(k, n)[1], torch.randn(1, rows, k, device="cuda", dtype=torch.bfloat16)
    want, got = made(x).double(), called(made, x).double()
    assert float((got - want).square().sum() / want.square().sum()) < 1e-4
    compiled = torch.compile(made, options={"pre_grad_custom_pass": GpuProducts()}, fullgraph=True)(x).double()
    assert float((compiled - want).square().sum() / want.square().sum()) < 1e-4


def microseconds(call, calls: int = 50) -> float:
    for _ in range(5):
        call()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        call()
    end.record()
    torch.cuda.synchronize()
    return 1e3 * start.elapsed_time(end) / calls


def test_which_sizes_gain(capsys: pytest.CaptureFixture[str]) -> None:
    """Prints the table from which a plan's `keep` follows: no size is expected to lose by half."""
    lines = []
    for k, n in SIZES:
        plain, made = layers(k, n)
        b = made.codes.view(torch.float8_e4m3fn).t()
        for rows in ROWS:
            x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
            a, one = x.to(torch.float8_e4m3fn), made.input_scale
            half = microseconds(lambda x=x, plain=plain: F.linear(x, plain.weight))
            eight = microseconds(
                lambda a=a, b=b, one=one: torch._scaled_mm(a, b, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
            )
            lines.append(f"{rows:4} x {k:5} x {n:5}: bf16 {half:6.1f} us, fp8 {eight:6.1f} us, {half / eight:.2f}x")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
    assert len(lines) == len(SIZES) * len(ROWS)
