"""The precisions, a row each: dtype, gates, exactness, tolerance and needs. Never imports torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """The least agreement with eager fp32 that a compiled submodule must show.

    Attributes:
        cosine: Lowest cosine similarity of the flattened outputs; None means the precision's default.
        max_abs: Highest absolute difference; None means no bound.
        sqnr_db: Lowest signal-to-quantisation-noise ratio in decibels; None means the precision's default.
    """

    cosine: float | None = None
    max_abs: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class PrecisionRow:
    """One precision.

    Attributes:
        name: On the command line, in plans and in records.
        dtype: PyTorch's name of the dtype of weights and activations; of a quantised format, of what is not quantised.
        exactness: Higher is more exact; a plan's least exact precision decides the gate of its actions.
        gate: What one submodule must reach against eager fp32 on the same inputs.
        action_gate: What the normalised actions of a whole request must reach, with the same noise on both sides.
        graph_tolerance: How far a replayed CUDA graph may be from the uncaptured call, over the larger of 1 and the
            largest action.
        spellings: Other names for it, in lower case.
        quantized: Products compute in fewer bits than `dtype` has; needs a calibration.
        backends: Those that build it, the best first; empty for all.
        least_capability: The first compute capability whose products compute in it; None for any GPU.
    """

    name: str
    dtype: str
    exactness: int
    gate: Gate
    action_gate: Gate
    graph_tolerance: float
    spellings: tuple[str, ...] = ()
    quantized: bool = False
    backends: tuple[str, ...] = ()
    least_capability: str | None = None

    @property
    def carrier(self) -> str:
        """The precision of what a quantised one leaves as it is; of another the precision itself."""
        return precision_of(self.dtype) if self.quantized else self.name

    def computes_on(self, capability: str) -> bool:
        """Whether the products of a GPU of this compute capability, such as ``8.9``, compute in it."""
        return self.least_capability is None or _numbers(capability) >= _numbers(self.least_capability)


def _numbers(capability: str) -> tuple[int, ...]:
    return tuple(map(int, capability.split(".")))


_NO_ONNX = ("torch_tensorrt", "eager")
"""ONNX has no operator that quantises by blocks, and torch.compile no product of 4 bits."""


def _gate(cosine: float, sqnr_db: float) -> Gate:
    return Gate(cosine, sqnr_db=sqnr_db)


_ROWS = (
    # A replay runs the same kernels on the same numbers and gives the same bits; a library that chooses another kernel
    # while capturing may round differently.
    PrecisionRow("fp32", "float32", 3, _gate(0.99999, 45.0), _gate(0.9999, 36.0), 1e-5, ("float32", "float")),
    PrecisionRow("fp16", "float16", 2, _gate(0.9995, 28.0), _gate(0.999, 25.0), 2e-3, ("float16", "half")),
    PrecisionRow("bf16", "bfloat16", 1, _gate(0.995, 18.0), _gate(0.995, 18.0), 2e-2, ("bfloat16",)),
    # bf16 carries what is not quantised: fp16 overflows in some layers of trained language models. Gates of fp8 and
    # int8: a submodule's are bf16's, the actions' are 8 dB below what was measured of the tiny model in fp8.
    PrecisionRow(
        "fp8", "bfloat16", 0, _gate(0.995, 18.0), _gate(0.998, 22.0), 2e-2, ("float8",), True, least_capability="8.9"
    ),
    PrecisionRow(
        "int8", "bfloat16", 0, _gate(0.995, 18.0), _gate(0.998, 22.0), 2e-2, quantized=True, least_capability="8.0"
    ),
    # Gates: 4 dB and 5 below what was measured of the tiny model's worst submodule and of its actions.
    PrecisionRow("nvfp4", "bfloat16", -1, _gate(0.96, 9.0), _gate(0.98, 12.0), 2e-2, ("fp4",), True, _NO_ONNX, "10.0"),
)
PRECISIONS = {row.name: row for row in _ROWS}
"""Name -> row.

Cosine does not see a wrong scale, so each gate also bounds the signal-to-noise ratio. For an error without a preferred
direction the two say the same, cosine = 1 - 10^(-dB/10) / 2; the decibels are two looser, so that cosine decides unless
the scale is off. Healthy builds lie well above: 27 random transformer layers lose about 2e-6 of cosine to fp16 rounding
and 1e-4 to bf16. Trained weights with outliers lose more, and fp32 leaves room for TF32 products.

Errors of seven submodules add up over the denoising steps, hence action gates that are looser than one submodule's in
fp32 and fp16. Both sides start from the same noise, which helps them agree: bf16 gets no such discount.

A quantised submodule of fp8 or int8 has the gate of bf16, which carries it: the tiny transformer, the worst stage in
fp8, has .998 and 24 dB. Its actions come after the decoder and are held to more, .998 and 22 dB: on an episode that was
not calibrated on the tiny model has .9994 and 29 dB in fp8, .9999 and 39 in int8, and released engines of a sister
model are quoted with .9999 in fp8 and .9997 with four bits. Four bits add a noise of 12 to 25 dB to a stage, see
docs/precisions.md: the gates of nvfp4 find a wrong scale and say little of a policy's success.
"""


def precision_names() -> tuple[str, ...]:
    """All of them, the most exact first."""
    return tuple(PRECISIONS)


def find_precision(text: str) -> PrecisionRow | None:
    """The row that a name or another spelling means, in any case; None for none."""
    folded = text.strip().lower()
    return next((row for row in PRECISIONS.values() if folded in (row.name, *row.spellings)), None)


def precision_of(dtype: object) -> str:
    """The precision whose weights have a dtype, such as ``torch.float16`` or ``float16``; the dtype's name for none."""
    name = str(dtype).removeprefix("torch.")
    rows = (row for row in PRECISIONS.values() if row.dtype == name and not row.quantized)
    return next((row.name for row in rows), name)


def least_exact(names: Iterable[str]) -> PrecisionRow:
    """The least exact of these precisions; of several equally exact ones the first."""
    return min((PRECISIONS[name] for name in names), key=lambda row: row.exactness)
