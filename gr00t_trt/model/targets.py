"""One part of a model that can be compiled: its arguments, their shape ranges, and the calls recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ..errors import BackendError, PlanError, ShapeError
from .architecture import Arguments


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


Stage = Callable[..., torch.Tensor]
"""A part of a model, called with positional tensors."""

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


def dynamic_shapes(subject: str, ranges: Sequence[ArgumentRange]) -> tuple[dict[int, torch.export.Dim], ...] | None:
    """One torch.export spec per argument, or None when all shapes are static; equal names share one Dim.

    Raises: BackendError naming the subject when one name is used with two ranges.
    """
    dims: dict[str, torch.export.Dim] = {}
    bounds: dict[str, tuple[int, int]] = {}
    spec: list[dict[int, torch.export.Dim]] = []
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


@dataclass(frozen=True)
class Published:
    """Names under which others keep a submodule in files.

    Attributes:
        onnx_file: With ``{dtype}`` where the name has the precision; it may have a folder.
        inputs: Their names for the arguments, in the order of `forward`.
        with_positions: Makes the target that their files hold, with position ids as a last input, and these for the
            largest batch; None for files that take what the submodule takes.
    """

    onnx_file: str
    inputs: tuple[str, ...]
    output: str = "output"
    with_positions: Callable[[Target], tuple[Target, torch.Tensor]] | None = None

    @property
    def engine_file(self) -> str:
        """The engine lies in a folder of its own, under the ONNX file's name."""
        return self.onnx_file.rpartition("/")[2].removesuffix("onnx") + "engine"


@dataclass(frozen=True)
class Target:
    """One submodule, ready to be built.

    Attributes:
        name: On the command line, in plans, in records and in `model.stages`: ``dit_model``.
        module: The eager module, in evaluation mode, already cast to the wanted dtype, on the wanted device.
        inputs: Positional tensors recorded from a real request, in the module's dtype and on its device.
        argument_names: The forward's argument names, one per tensor.
        ranges: Per argument, axis -> DimRange; empty mappings for static arguments.
        published: Names that its files get, for a submodule that others keep too.
    """

    name: str
    module: nn.Module
    inputs: tuple[torch.Tensor, ...]
    argument_names: tuple[str, ...]
    ranges: tuple[ArgumentRange, ...]
    published: Published | None = None


@dataclass(frozen=True)
class Call:
    """One recorded call of a stage: its tensors and its result."""

    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


Recording = Mapping[str, tuple[Call, ...]]
"""Stage name -> its calls within one request, in order; the loop's stages have one per denoising step."""


@contextmanager
def recording_calls(stages: MutableMapping[str, Stage]) -> Iterator[dict[str, list[Call]]]:
    """Keep every call of every stage while the block runs; the stages are put back afterwards.

    Args:
        stages: A model's table; entries that are taken out of the recording again may be put back earlier.
    """
    original = dict(stages)
    calls: dict[str, list[Call]] = {name: [] for name in original}

    def recorder(name: str, stage: Stage) -> Stage:
        def call(*args: torch.Tensor) -> torch.Tensor:
            output = stage(*args)
            calls[name].append(Call(tuple(a.detach().clone() for a in args), output.detach().clone()))
            return output

        return call

    try:
        stages.update({name: recorder(name, stage) for name, stage in original.items()})
        yield calls
    finally:
        stages.update(original)


def make_target(
    name: str,
    arguments: Arguments,
    module: torch.nn.Module,
    call: Call,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    dims: Mapping[str, DimRange],
) -> Target:
    """A target from a recorded call.

    Args:
        dtypes: What each argument is cast to if it is floating.
        dims: The declared range of every dimension that `arguments` names.
    """
    return Target(
        name=name,
        module=module,
        inputs=cast_inputs(call, dtypes, device),
        argument_names=tuple(arguments),
        ranges=tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in arguments.values()),
    )


def cast_inputs(call: Call, dtypes: Sequence[torch.dtype], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The inputs of a recorded call as the model hands them to a stage: floats in the stage's dtypes."""
    return tuple(
        x.to(device, dtype if x.is_floating_point() else x.dtype) for x, dtype in zip(call.inputs, dtypes, strict=True)
    )
