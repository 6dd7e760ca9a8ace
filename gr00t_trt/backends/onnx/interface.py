"""How a compile target looks as an ONNX file or a ready-made engine: file names, and names of inputs and output.

A target with published names carries them (`targets.Published`), so that either side's files serve the other. Every
other target keeps its own argument names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...model.targets import Target
from ...plans.precisions import precision_of
from ...quantize.linear import formats_in


@dataclass(frozen=True)
class Interface:
    """A target under the names that its files use.

    Attributes:
        target: As the file sees it: module, inputs and ranges include the positions where the file has them.
        output: Name of the one output.
        onnx_file: Path below the folder of ONNX files.
        engine_file: File name of a ready-made engine of the same interface.
        positions: int64 [most images, patches] on the target's device, or None for files without.
    """

    target: Target
    output: str
    onnx_file: str
    engine_file: str
    positions: torch.Tensor | None = None

    def arguments(self, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The file's inputs for the submodule's own arguments."""
        return args if self.positions is None else (*args, self.positions[: args[0].shape[0]])


def interface(target: Target) -> Interface:
    """The published interface of a target that has one, else its own; nobody published a quantised one."""
    published, dtype = target.published, precision_of(floating_dtype(target))
    formats = formats_in(target.module)
    if published is None or formats:
        stem = "_".join((target.name, *(formats or (dtype,))))
        return Interface(target, "output", f"{stem}.onnx", f"{stem}.engine")
    positions = None
    renamed = replace(target, argument_names=published.inputs)
    if published.with_positions is not None:
        renamed, positions = published.with_positions(renamed)
    files = (published.onnx_file.format(dtype=dtype), published.engine_file.format(dtype=dtype))
    return Interface(renamed, published.output, *files, positions)


def floating_dtype(target: Target) -> torch.dtype:
    """The dtype of a target's weights, or of its first floating input where it has none of its own."""
    tensors = (*target.module.parameters(), *target.inputs)
    return next(t.dtype for t in tensors if t.is_floating_point())
