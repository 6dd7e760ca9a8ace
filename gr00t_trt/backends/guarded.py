"""Shape and dtype checks in front of a compiled submodule, so that no call triggers a silent recompilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..errors import BackendError, Gr00tError, ShapeError
from ..model.targets import Target, check_shapes


class GuardedModule:
    """Calls `compiled` once count, rank, dtype, device, static sizes, ranges and shared names of its arguments fit.

    Compilers answer an unexpected input by compiling again, for minutes, or (a changed dtype) by reading the
    bytes wrongly. Arguments may be given by position or by name.
    """

    def __init__(self, target: Target, compiled: Callable[..., Any]):
        self.name = target.name
        self.argument_names = target.argument_names
        self.ranges = target.ranges
        self.compiled = compiled
        self._built_for = tuple((x.dtype, x.device, tuple(x.shape)) for x in target.inputs)

    def __call__(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Raises: ShapeError for a tensor that the submodule was not built for."""
        if kwargs:
            args = self._positional(args, kwargs)
        self.check(args)
        return self.compiled(*args)

    def _positional(self, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        rest = self.argument_names[len(args) :]
        if set(rest) != set(kwargs):
            raise ShapeError(f"{self.name}: called with {sorted(kwargs)} by name", known=self.argument_names)
        return args + tuple(kwargs[name] for name in rest)

    def check(self, args: tuple[torch.Tensor, ...]) -> None:
        """Raises: ShapeError naming the argument and what it was built for."""
        if len(args) != len(self.argument_names):
            raise ShapeError(f"{self.name}: called with {len(args)} tensors", known=self.argument_names)
        for name, arg, (dtype, device, shape), ranges in zip(
            self.argument_names, args, self._built_for, self.ranges, strict=True
        ):
            if arg.dtype != dtype:
                raise ShapeError(f"{self.name}: {name} has dtype {arg.dtype}", known=f"built for {dtype}")
            if arg.device != device:
                raise ShapeError(f"{self.name}: {name} is on {arg.device}", known=f"built for {device}")
            dynamic = {axis for axis, dim in ranges.items() if not dim.static}
            if arg.dim() != len(shape) or any(
                size != built and axis not in dynamic
                for axis, (size, built) in enumerate(zip(arg.shape, shape, strict=False))
            ):
                form = ["*" if axis in dynamic else str(size) for axis, size in enumerate(shape)]
                raise ShapeError(
                    f"{self.name}: {name} has shape {tuple(arg.shape)}", known=f"built for [{', '.join(form)}]"
                )
        check_shapes(self.name, self.argument_names, args, self.ranges)
        self._check_shared(args)

    def _check_shared(self, args: tuple[torch.Tensor, ...]) -> None:
        seen: dict[str, tuple[int, str]] = {}
        for name, arg, ranges in zip(self.argument_names, args, self.ranges, strict=True):
            for axis, dim in ranges.items():
                size, first = seen.setdefault(dim.name, (arg.shape[axis], name))
                if size != arg.shape[axis]:
                    raise ShapeError(
                        f"{self.name}: {dim.name} is {size} in {first} and {arg.shape[axis]} in {name}",
                        known=f"one size of {dim.name} for all arguments of a call",
                    )


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, for messages that chain the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def same_form(expected: Any, actual: Any) -> str | None:
    """What differs between two results in nesting, shape or dtype; None when nothing does."""
    if isinstance(expected, torch.Tensor) and isinstance(actual, torch.Tensor):
        if expected.shape != actual.shape:
            return f"shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
        return None if expected.dtype == actual.dtype else f"dtype {actual.dtype} instead of {expected.dtype}"
    if isinstance(expected, (tuple, list)) and isinstance(actual, (tuple, list)) and len(expected) == len(actual):
        return next((d for d in map(same_form, expected, actual) if d is not None), None)
    if type(expected) is type(actual) and not isinstance(expected, (tuple, list, torch.Tensor)):
        return None
    return f"{type(actual).__name__} instead of {type(expected).__name__}"


def check_form(target: Target, call: Callable[..., Any]) -> None:
    """Run once at the recorded size. Raises: BackendError when the result has another form than the eager one."""
    with torch.no_grad():
        difference = same_form(target.module(*target.inputs), call(*target.inputs))
    if difference is not None:
        raise BackendError(f"{target.name}: what was built returns {difference}")


@contextmanager
def blamed(target: Target, phase: str, detail: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Blame a phase of a build for what goes wrong inside. Raises: BackendError as `build_failed` makes it.

    Args:
        detail: What the compiler's own log says of a failure.
    """
    try:
        yield
    except Gr00tError:
        raise
    except Exception as e:  # compilers' errors share no base class
        raise build_failed(target, phase, e, detail()) from e


def build_failed(target: Target, phase: str, error: BaseException, detail: str | None = None) -> BackendError:
    """A BackendError for a failed phase; raise it `from` the original."""
    return BackendError(
        f"{target.name}: {phase} failed: {detail or first_line(error)}",
        fix="run with --debug for the compiler's own log, or give this submodule `backend: eager` in the plan",
    )
