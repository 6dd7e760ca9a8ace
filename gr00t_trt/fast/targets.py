"""Recording the restructured stages' real inputs, and handing them to a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..backends.base import Target
from ..shapes import DimRange
from ..submodules import Call, Recording
from .model import FastGr00tN1d5
from .stages import argument_dtypes, targets_of


def record(model: FastGr00tN1d5, inputs: Mapping[str, Any], noise: Tensor) -> tuple[Recording, Tensor]:
    """Run one request at each granularity and keep what every stage was called with and what it returned.

    Args:
        inputs: Model inputs of a real observation. noise: [B, T, 32].
    Returns: The recording, in which `language_model_padded` stands empty unless the request was padded; and the
        actions of the model's own granularity.
    """
    calls: dict[str, list[Call]] = {name: [] for name in model.stages}

    def recorder(name: str, stage: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            output = stage(*args)
            calls[name].append(Call(tuple(a.detach().clone() for a in args), output.detach().clone()))
            return output

        return call

    original, loop = dict(model.stages), model.loop
    others = {"submodules", "denoise_step", "denoise_loop"} - {loop}
    try:
        model.stages.update({name: recorder(name, stage) for name, stage in original.items()})
        actions = model.get_action(inputs, noise)["action_pred"]
        # What comes before the loop is the same at every granularity and is recorded once.
        once = {name: stage for name, stage in original.items() if calls[name]}
        model.stages.update(once)
        for model.loop in others:
            model.get_action(inputs, noise)
    finally:
        model.loop = loop
        model.stages.update(original)
    return {name: tuple(c) for name, c in calls.items()}, actions


def target(model: FastGr00tN1d5, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
    """A stage of `model` with its recorded inputs, in the dtypes that it is called with, on the model's device."""
    module = model.eager_stage(name)
    spec = targets_of({name: module}, model.optimisations)[name]
    dtypes = argument_dtypes(name, module, model.stage_dtypes)
    recorded = recording[name][0].inputs
    inputs = tuple(
        (x.to(d) if x.is_floating_point() else x).to(model.device) for x, d in zip(recorded, dtypes, strict=True)
    )
    return Target(
        name=name,
        module=module,
        inputs=inputs,
        argument_names=tuple(spec.arguments),
        ranges=tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in spec.arguments.values()),
    )
