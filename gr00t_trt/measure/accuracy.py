"""How closely a result agrees with a reference, and whether that is enough."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..errors import ShapeError
from ..plans.precisions import Gate
from ..record.result import Agreement

CHUNK = 1 << 20
"""Elements compared at a time: float64 copies stay near 50 MB whatever the size of the outputs."""


def compare(candidate: Any, reference: Any) -> Agreement:
    """Compare two outputs: tensors, arrays, numbers, or mappings and sequences of them, of the same structure.

    Of an output with several tensors the worst agreement of each kind is given (lowest cosine, largest difference),
    so that a large healthy tensor cannot hide a small broken one; `compare_each` keeps them apart.

    Raises: ShapeError for different shapes or structures.
    """
    parts = compare_each(candidate, reference)
    return _worst(list(parts.values()))


def compare_each(candidate: Any, reference: Any) -> dict[str, Agreement]:
    """As `compare`, one agreement per tensor: path such as ``action.left_arm`` or ``[0]`` -> agreement."""
    return {path: _compare_one(path, a, b) for path, a, b in _pairs("", candidate, reference)}


def _pairs(path: str, a: Any, b: Any) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    at = path or "output"
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if set(a) != set(b):
            odd = ", ".join(sorted(str(key) for key in set(a) ^ set(b)))
            raise ShapeError(f"{at}: only one of candidate and reference has {odd}", known=[str(key) for key in b])
        for key in b:
            yield from _pairs(f"{path}.{key}" if path else str(key), a[key], b[key])
    elif isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        if len(a) != len(b):
            raise ShapeError(f"{at}: {len(a)} entries in the candidate, {len(b)} in the reference")
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _pairs(f"{path}[{i}]", left, right)
    elif isinstance(a, (Mapping, tuple, list)) or isinstance(b, (Mapping, tuple, list)):
        raise ShapeError(f"{at}: a {type(a).__name__} in the candidate, a {type(b).__name__} in the reference")
    else:
        left, right = _tensor(a), _tensor(b)
        if left.shape != right.shape:
            raise ShapeError(
                f"{at}: candidate {tuple(left.shape)}, reference {tuple(right.shape)}", known="equal shapes"
            )
        yield path, left, right


def _tensor(value: Any) -> torch.Tensor:
    return value.detach() if isinstance(value, torch.Tensor) else torch.from_numpy(np.asarray(value))


def _compare_one(path: str, candidate: torch.Tensor, reference: torch.Tensor) -> Agreement:
    a, b = candidate.reshape(-1), reference.reshape(-1)
    elements = b.numel()
    nan = inf = reference_nan = reference_inf = finite = 0
    dot = aa = bb = noise = absolute = 0.0
    largest = peak = 0.0
    for start in range(0, elements, CHUNK):
        x = a[start : start + CHUNK].to(device=b.device, dtype=torch.float64)
        y = b[start : start + CHUNK].to(dtype=torch.float64)
        x_nan, y_nan = int(x.isnan().sum()), int(y.isnan().sum())
        keep = x.isfinite() & y.isfinite()
        kept = int(keep.sum())
        if kept < x.numel():
            nan, reference_nan = nan + x_nan, reference_nan + y_nan
            inf, reference_inf = inf + int(x.isinf().sum()), reference_inf + int(y.isinf().sum())
            x, y = x[keep], y[keep]
        if kept == 0:
            continue
        finite += kept
        dot += float(x @ y)
        aa += float(x @ x)
        bb += float(y @ y)
        peak = max(peak, float(y.abs().max()))
        difference = x - y
        noise += float(difference @ difference)
        difference = difference.abs_()
        absolute += float(difference.sum())
        largest = max(largest, float(difference.max()))
    compared = finite > 0
    return Agreement(
        elements=elements,
        shapes={path: tuple(reference.shape)},
        cosine=_cosine(dot, aa, bb) if compared else None,
        max_abs=largest if compared else None,
        mean_abs=absolute / finite if compared else None,
        max_rel=largest / peak if compared and peak > 0 else None,
        sqnr_db=10.0 * math.log10(bb / noise) if compared and bb > 0 and noise > 0 else None,
        exact=compared and finite == elements and largest == 0.0,
        nan=nan,
        inf=inf,
        reference_nan=reference_nan,
        reference_inf=reference_inf,
    )


def _cosine(dot: float, aa: float, bb: float) -> float:
    if aa == 0.0 or bb == 0.0:
        return 1.0 if aa == bb else 0.0
    # Rounding can carry the quotient of two equal vectors past one.
    return max(-1.0, min(1.0, dot / (math.sqrt(aa) * math.sqrt(bb))))


def _worst(parts: Sequence[Agreement]) -> Agreement:
    if len(parts) == 1:
        return parts[0]

    def known(field: str) -> list[float]:
        return [value for value in (getattr(part, field) for part in parts) if value is not None]

    elements = sum(part.elements for part in parts)
    means = [(part.mean_abs, part.elements) for part in parts if part.mean_abs is not None]
    weight = sum(count for _, count in means)
    return Agreement(
        elements=elements,
        shapes={path: shape for part in parts for path, shape in part.shapes.items()},
        cosine=min(known("cosine"), default=None),
        max_abs=max(known("max_abs"), default=None),
        mean_abs=sum(mean * count for mean, count in means) / weight if weight else None,
        max_rel=max(known("max_rel"), default=None),
        sqnr_db=min(known("sqnr_db"), default=None),
        exact=bool(parts) and all(part.exact for part in parts),
        nan=sum(part.nan for part in parts),
        inf=sum(part.inf for part in parts),
        reference_nan=sum(part.reference_nan for part in parts),
        reference_inf=sum(part.reference_inf for part in parts),
    )


def check(agreement: Agreement, gate: Gate) -> list[str]:
    """What is wrong with an agreement, in plain words; an empty list when it passes the gate.

    NaN and infinities in the candidate fail whatever the gate says, and so does an agreement over nothing. Fields of
    the gate that are None ask for nothing: resolve defaults first, as `plans.resolve` does.
    """
    failures = []
    for count, word in ((agreement.nan, "NaN"), (agreement.inf, "infinite")):
        if count:
            failures.append(f"{count} of {agreement.elements} values are {word}")
    broken = agreement.reference_nan + agreement.reference_inf
    if broken:
        failures.append(
            f"{broken} of {agreement.elements} values of the reference are not finite: nothing to compare with"
        )
    if agreement.elements == 0:
        failures.append("the output is empty: nothing was compared")
    if agreement.cosine is not None and gate.cosine is not None and agreement.cosine < gate.cosine:
        failures.append(f"cosine {_floor(agreement.cosine, gate.cosine)} is below the gate {gate.cosine:g}")
    if agreement.max_abs is not None and gate.max_abs is not None and agreement.max_abs > gate.max_abs:
        failures.append(f"max_abs {agreement.max_abs:.3g} is above the gate {gate.max_abs:g}")
    if gate.sqnr_db is not None and agreement.elements and not agreement.exact:
        if agreement.sqnr_db is not None and agreement.sqnr_db < gate.sqnr_db:
            failures.append(f"SQNR {agreement.sqnr_db:.1f} dB is below the gate {gate.sqnr_db:g} dB")
        elif agreement.sqnr_db is None and agreement.max_rel is None and agreement.max_abs:
            failures.append("the reference is all zero and the candidate is not")
    return failures


def _floor(value: float, gate: float) -> str:
    """`value` with enough digits to look smaller than the gate that it fails."""
    for digits in range(4, 18):
        text = f"{value:.{digits}f}"
        if float(text) < gate:
            return text
    return repr(value)


def judge(name: str, agreement: Agreement, gate: Gate) -> tuple[str, ...]:
    """The gate's complaints, each naming what it is about."""
    return tuple(f"{name}: {failure}" for failure in check(agreement, gate))


@contextmanager
def full_fp32() -> Iterator[None]:
    """No TF32 in products and convolutions: the reference must be better than anything held against it."""
    # The one switch for products on CPU and GPU: setting `allow_tf32` beside it would leave the two at odds.
    product, convolution = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(product)
        torch.backends.cudnn.allow_tf32 = convolution
