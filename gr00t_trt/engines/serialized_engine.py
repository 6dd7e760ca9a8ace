"""What every route to an engine ends in: its bytes, and what goes in and out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch

from ..model.targets import ArgumentRange, Target
from .manifest import Binding


@dataclass(frozen=True)
class SerializedEngine:
    """An engine's bytes and its bindings, in the order of the submodule's arguments and results.

    Attributes:
        arguments: For each of `inputs`, which argument of the submodule it is.
        layers: Of the network definition that it was built from; None where nobody counted them.
    """

    plan: bytes
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    arguments: tuple[int, ...]
    layers: int | None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def binding(name: str, tensor: torch.Tensor, ranges: ArgumentRange) -> Binding:
    def shape(pick: str) -> tuple[int, ...]:
        return tuple(getattr(ranges[a], pick) if a in ranges else size for a, size in enumerate(tensor.shape))

    return Binding(name, dtype_name(tensor.dtype), shape("minimum"), tuple(tensor.shape), shape("maximum"))


def shapes(bindings: Iterable[Binding], bound: Literal["minimum", "optimum", "maximum"]) -> str:
    """``hidden:1x20x32,keep:1x20``: one bound of a profile as `trtexec` and ONNX Runtime take it."""
    return ",".join(f"{each.name}:{'x'.join(map(str, getattr(each, bound)))}" for each in bindings)


def input_bindings(target: Target) -> dict[str, Binding]:
    """Name -> binding of every argument."""
    each = zip(target.argument_names, target.inputs, target.ranges, strict=True)
    return {name: binding(name, tensor, ranges) for name, tensor, ranges in each}
