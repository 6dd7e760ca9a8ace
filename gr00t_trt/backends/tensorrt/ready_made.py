"""Engines that NVIDIA's deployment scripts built: whether one fits a submodule as the plan wants it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...engines.manifest import Binding
from ...engines.serialized_engine import input_bindings
from ...model.targets import ArgumentRange
from ..onnx.interface import Interface


def engine_path(folder: Path, form: Interface) -> tuple[Path | None, str]:
    """The file that would serve a submodule, or None and why there is none."""
    published = form.target.published
    if published is None:
        return None, f"{form.target.name} here takes other inputs than the published engine"
    path = folder / form.engine_file
    if path.is_file():
        return path, ""
    pattern = published.engine_file.format(dtype="*")
    others = ", ".join(sorted(other.name for other in folder.glob(pattern)))
    return None, f"{folder} has no {form.engine_file}" + (f", only {others}" if others else "")


def misfit(form: Interface, inputs: Sequence[Binding], outputs: Sequence[Binding]) -> str | None:
    """Why an engine cannot serve a submodule, or None when it can.

    Args:
        inputs, outputs: Of the engine, inputs with the shapes of its profile; one output.
    """
    seen = form.target
    wanted = input_bindings(seen)
    found = {each.name: each for each in inputs}
    if set(found) != set(wanted):
        return f"its inputs are {', '.join(found)} and not {', '.join(wanted)}"
    floating = next(each.dtype for each in wanted.values() if each.dtype.endswith(("float16", "float32")))
    if outputs[0].dtype != floating:
        return f"its {form.output} is {outputs[0].dtype} and not {floating}"
    for name, ours in wanted.items():
        reason = _input_misfit(found[name], ours, seen.ranges[seen.argument_names.index(name)])
        if reason is not None:
            return reason
    return None


def _input_misfit(theirs: Binding, ours: Binding, ranges: ArgumentRange) -> str | None:
    if theirs.dtype != ours.dtype:
        return f"its {ours.name} is {theirs.dtype} and not {ours.dtype}"
    if len(theirs.maximum) != len(ours.maximum):
        return f"its {ours.name} has {len(theirs.maximum)} axes and not {len(ours.maximum)}"
    for axis, (low, high) in enumerate(zip(ours.minimum, ours.maximum, strict=True)):
        least, most = theirs.minimum[axis], theirs.maximum[axis]
        if least <= low and high <= most:
            continue
        dim = ranges.get(axis)
        subject = dim.name if dim is not None else f"axis {axis}"
        asked = str(low) if low == high else f"{low} to {high}"
        fix = f"; `ranges` in the plan within {least} to {most} would fit" if dim is not None and least <= most else ""
        return f"its {ours.name} takes {subject} {least} to {most}, and {asked} is asked for{fix}"
    return None
