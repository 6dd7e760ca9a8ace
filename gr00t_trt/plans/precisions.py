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
        backends: Those that build it; empty for all.
        unavailable: Why it cannot be used yet; None for one that can.
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
    unavailable: str | None = None

    @property
    def carrier(self) -> str:
        """The precision of what a quantised one leaves as it is; of another the precision itself."""
        return precision_of(self.dtype) if self.quantized else self.name


_REFERENCE = ("eager",)


def _gate(cosine: float, sqnr_db: float) -> Gate:
    return Gate(cosine=cosine, sqnr_db=sqnr_db)


_ROWS = (
    # A replay runs the same kernels on the same numbers and gives the same bits; a library that chooses another kernel
    # while capturing may round differently.
    PrecisionRow("fp32", "float32", 3, _gate(0.99999, 45.0), _gate(0.9999, 36.0), 1e-5, ("float32", "float")),
    PrecisionRow(
        "fp16",
        "float16",
        2,
        _gate(0.9995, 28.0),
        _gate(0.999, 25.0),
        2e-3,
        ("float16", "half"),
    ),
    PrecisionRow(
        "bf16",
        "bfloat16",
        1,
        _gate(0.995, 18.0),
        _gate(0.995, 18.0),
        2e-2,
        ("bfloat16",),
    ),
    # bf16 carries what is not quantised: fp16 overflows in some layers of trained language models.
    PrecisionRow("fp8", "bfloat16", 0, _gate(0.995, 18.0), _gate(0.995, 18.0), 2e-2, ("float8",), True, _REFERENCE),
    PrecisionRow("int8", "bfloat16", 0, _gate(0.995, 18.0), _gate(0.995, 18.0), 2e-2, (), True, _REFERENCE),
    PrecisionRow("nvfp4", "bfloat16", -1, _gate(0.96, 9.0), _gate(0.98, 12.0), 2e-2, ("fp4",), True, _REFERENCE),
)
PRECISIONS = {row.name: row for row in _ROWS}
"""Name -> row.

Cosine does not see a wrong scale, so each gate also bounds the signal-to-noise ratio. For an error without a preferred
direction the two say the same, cosine = 1 - 10^(-dB/10) / 2; the decibels are two looser, so that cosine decides unless
the scale is off. Healthy builds lie well above: 27 random transformer layers lose about 2e-6 of cosine to fp16 rounding
and 1e-4 to bf16. Trained weights with outliers lose more, and fp32 leaves room for TF32 products.

Errors of seven submodules add up over the denoising steps, hence action gates that are looser than one submodule's in
fp32 and fp16. Both sides start from the same noise, which helps them agree: bf16 gets no such discount.

fp8 and int8 have the gates of bf16, which carries them. Four bits add a noise of 12 to 25 dB to a stage, see
docs/precisions.md: the gates of nvfp4 find a wrong scale and say little of a policy's success.
"""


def precision_names() -> tuple[str, ...]:
    """Those that can be used, the most exact first."""
    return tuple(row.name for row in PRECISIONS.values() if row.unavailable is None)


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
