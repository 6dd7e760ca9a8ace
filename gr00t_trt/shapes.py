"""Shape ranges of compiled submodules: declared once, traced from, and checked on every call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import BackendError, PlanError, ShapeError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DimRange:
    """One named dimension and the sizes an engine must accept.

    Attributes:
        name: ``batch``, ``images`` or ``length``; equal names mean equal sizes across arguments.
        minimum, optimum, maximum: Inclusive sizes; the engine is tuned for `optimum`. All equal: a static dimension.
    """

    name: str
    minimum: int
    optimum: int
    maximum: int

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise PlanError(
                f"range of {self.name}: [{self.minimum}, {self.optimum}, {self.maximum}] is not a shape range",
                known="[minimum, optimum, maximum] with 1 <= minimum <= optimum <= maximum",
            )

    @property
    def static(self) -> bool:
        return self.minimum == self.maximum


ArgumentRange = Mapping[int, DimRange]
"""For one tensor argument: axis -> the range of its size. Axes that are not listed are static."""


def check_shapes(
    subject: str, names: Sequence[str], args: Sequence[torch.Tensor], ranges: Sequence[ArgumentRange]
) -> None:
    """Refuse a call outside the built range, before a backend can rebuild silently.

    Raises: ShapeError naming the submodule, argument, axis, size and range.
    """
    for name, arg, argument_range in zip(names, args, ranges, strict=True):
        for axis, dim in argument_range.items():
            size = arg.shape[axis]
            if not dim.minimum <= size <= dim.maximum:
                raise ShapeError(
                    f"{subject}: {name} has {dim.name} {size} (axis {axis} of {tuple(arg.shape)})",
                    known=f"built for {dim.name} {dim.minimum} to {dim.maximum}",
                    fix=f"widen `ranges: {dim.name}` in the plan and rebuild, or send a smaller request",
                )


def tracing_example(args: Sequence[torch.Tensor], ranges: Sequence[ArgumentRange]) -> tuple[torch.Tensor, ...]:
    """Example inputs for torch.export: real values, every dynamic axis at least 2 long.

    Export specialises axes of size 0 and 1, so a recorded batch of one is repeated. Static axes keep their size.
    """
    out = []
    for arg, argument_range in zip(args, ranges, strict=True):
        for axis, dim in argument_range.items():
            if not dim.static and arg.shape[axis] < 2:
                arg = arg.repeat_interleave(2, dim=axis)
        out.append(arg.contiguous())
    return tuple(out)


def dynamic_shapes(subject: str, ranges: Sequence[ArgumentRange]) -> tuple[dict[int, Any], ...] | None:
    """One torch.export spec per argument, or None when all shapes are static; equal names share one Dim.

    Raises: BackendError naming the subject when one name is used with two ranges.
    """
    import torch

    dims: dict[str, Any] = {}
    bounds: dict[str, tuple[int, int]] = {}
    spec: list[dict[int, Any]] = []
    for argument_range in ranges:
        spec.append({})
        for axis, dim in argument_range.items():
            if bounds.setdefault(dim.name, (dim.minimum, dim.maximum)) != (dim.minimum, dim.maximum):
                raise BackendError(
                    f"{subject}: {dim.name} has the ranges {bounds[dim.name]} and {(dim.minimum, dim.maximum)}"
                )
            if not dim.static:
                if dim.name not in dims:
                    dims[dim.name] = torch.export.Dim(dim.name, min=dim.minimum, max=dim.maximum)
                spec[-1][axis] = dims[dim.name]
    return tuple(spec) if dims else None
