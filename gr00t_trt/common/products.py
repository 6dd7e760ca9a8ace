"""How fast this CPU multiplies matrices, by number format and by library; measured, because no name tells it.

AVX512-BF16 makes bf16 four times as fast as fp32 on one processor and one and a half times as slow on another, and MKL
reaches half of oneDNN's speed where it does not know the processor. Imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import linear

from .devices import one_thread
from .int8 import is_exact, multiply, packed

ROWS, OUTPUTS, INPUTS = 49, 1536, 1536
"""One product of the model: a projection of the diffusion transformer."""
ROUNDS = 6
HOPELESS = 3.0
"""A format that takes this many times as long as fp32 at its second call is not called again."""
CLEARLY_FASTER = 0.8
"""Of the time in fp32: with less to gain, noise would choose another format or library, and so another rounding of the
same action, at every start."""
FP32_ERROR = 1e-5
"""Largest error of a product in fp32, over its largest value; rounding to bf16 makes 2e-3, to TF32 3e-4."""


@dataclass(frozen=True)
class Speed:
    """The shortest times of one product on one thread, in ms.

    Attributes:
        ms: ``float32``, ``bfloat16``, ``float16`` -> as PyTorch does it by itself.
        onednn_ms: fp32 by oneDNN; None where that is not fp32 arithmetic, as with Intel's AMX.
        int8_ms: In 8 bits by oneDNN, from values to values; None where this CPU or this PyTorch cannot do it right.
    """

    ms: Mapping[str, float]
    onednn_ms: float | None
    int8_ms: float | None = None

    @property
    def onednn(self) -> bool:
        """Whether oneDNN is clearly the faster library for fp32, and computes in fp32."""
        return self.onednn_ms is not None and self.onednn_ms < CLEARLY_FASTER * self.ms["float32"]

    @property
    def int8(self) -> bool:
        """Whether products in 8 bits are clearly faster than the fastest in fp32, and have the right sums."""
        return self._beats_fp32(self.int8_ms)

    def fast_in(self, dtype: str) -> bool:
        """Whether a format is fp32, or clearly faster."""
        return dtype == "float32" or self._beats_fp32(self.ms.get(dtype))

    def _beats_fp32(self, ms: float | None) -> bool:
        fp32 = min(self.ms["float32"], self.onednn_ms or float("inf"))
        return ms is not None and ms < CLEARLY_FASTER * fp32

    def said(self) -> str:
        """The times, for a note."""
        names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
        parts = [f"{names[name]} {ms:.3g}" for name, ms in self.ms.items()]
        parts += [f"fp32 by oneDNN {self.onednn_ms:.3g}"] if self.onednn_ms is not None else []
        parts += [f"int8 by oneDNN {self.int8_ms:.3g}"] if self.int8_ms is not None else []
        return ", ".join(parts)


@cache
@torch.no_grad()
def speed() -> Speed:
    """Measured at the first call, in a tenth of a second where no format is hopeless; the same afterwards.

    On one thread, by the time that it spent on the processor: other programs hardly change that.
    """
    return measured(ROWS, OUTPUTS, INPUTS)


@one_thread()
def measured(rows: int, outputs: int, inputs: int) -> Speed:
    """Of [rows, inputs] times [inputs, outputs]."""
    x, weight = _spread(rows, inputs), _spread(outputs, inputs)
    pairs = {
        str(dtype).removeprefix("torch."): (x.to(dtype), weight.to(dtype))
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
    }
    calls: dict[str, Callable[[], object]] = {name: partial(linear, *pair) for name, pair in pairs.items()}
    if _is_fp32(_by_onednn, x, weight) and _is_fp32(_by_onednn, _spread(4 * rows, inputs), weight[:256]):
        calls["onednn"] = partial(_by_onednn, x, weight)
    if is_exact():
        codes, one = weight.mul(127).to(torch.int8), torch.ones(())
        calls["int8"] = partial(multiply, x, packed(codes, torch.ones(outputs), one / 127, None, None))
    shortest = dict.fromkeys(calls, float("inf"))
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            if shortest[name] > HOPELESS * shortest["float32"] and turn > 1:
                continue
            took = _ms(call)
            if turn:  # the first call chooses and compiles a kernel
                shortest[name] = min(shortest[name], took)
    return Speed({name: shortest[name] for name in pairs}, shortest.get("onednn"), shortest.get("int8"))


def prefer_onednn() -> bool:
    """Give fp32 products of this process to oneDNN where it is faster, and say whether that is so.

    For a process that computes on its CPU alone: PyTorch has one setting for all devices, which would allow TF32 on a
    GPU. Nothing changes where someone has chosen a setting already.
    """
    if torch.cuda.is_available() or _setting() not in ("highest", "medium") or not speed().onednn:
        return False
    torch.set_float32_matmul_precision("medium")
    return True


@contextmanager
def own_products() -> Iterator[None]:
    """Inside, PyTorch's fp32 matmul precision is ``highest`` again, and so its choice of library."""
    before = _setting()
    if before in (None, "highest"):
        yield
        return
    with _set_to("highest", before):
        yield


def _setting() -> str | None:
    """PyTorch's setting for fp32 products; None where it was chosen by device or library, and has no one name."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


@contextmanager
def _set_to(name: str, before: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _by_onednn(x: Tensor, weight: Tensor) -> Tensor:
    """The setting allows bf16, and is what gives the product to oneDNN; whether it becomes bf16 is up to the CPU."""
    with _set_to("medium", _setting() or "highest"):
        return linear(x, weight)


def _is_fp32(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> bool:
    """Whether a product has the rounding error of fp32, by value."""
    some = 64
    exact = x.double() @ weight[:some].double().T
    error = (product(x, weight)[:, :some].double() - exact).abs().max()
    return bool(error <= FP32_ERROR * exact.abs().max())


def _spread(rows: int, columns: int) -> Tensor:
    """Values that neither bf16 nor TF32 holds exactly, made faster than random ones; fp32 [rows, columns]."""
    return torch.arange(rows * columns, dtype=torch.float32).mul_(0.6180339887).sin_().view(rows, columns)


def _ms(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return (time.thread_time() - start) * 1e3
