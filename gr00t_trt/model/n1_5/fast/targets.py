"""Recording the restructured stages' real inputs, and handing them to a backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ....plans.schema import LOOPS
from ...targets import DimRange, Recording, Target, make_target, recording_calls
from ..inputs import MASK
from .model import FastGr00tN1d5
from .stages import targets_of


def record(model: FastGr00tN1d5, inputs: Mapping[str, Any], noise: Tensor) -> tuple[Recording, Tensor]:
    """Run one request at each granularity and keep what every stage was called with and what it returned.

    Args:
        inputs: Model inputs of a real observation. noise: [B, T, 32].
    Returns: The recording, in which `language_model_padded` stands empty unless the request was padded; and the
        actions of the model's own granularity. A padded request passes by `language_model`, which is then recorded
        on the same prompts with their padding taken for tokens.
    """
    original, loop = dict(model.stages), model.loop
    try:
        with model.uncaptured(), recording_calls(model.stages) as calls:
            actions = model.get_action(inputs, noise)["action_pred"]
            # What comes before the loop is the same at every granularity and is recorded once.
            model.stages.update({name: stage for name, stage in original.items() if calls[name]})
            for model.loop in [name for name in LOOPS if name != loop]:
                model.get_action(inputs, noise)
            if not calls["language_model"]:
                model.stages.update({name: stage for name, stage in original.items() if name != "language_model"})
                model.encode(model.prepare({**inputs, MASK: torch.ones_like(inputs[MASK])}))
    finally:
        model.loop = loop
    return {name: tuple(own) for name, own in calls.items()}, actions


def target(model: FastGr00tN1d5, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
    """A stage of `model` with its recorded inputs, in the dtypes that it is called with, on the model's device."""
    module = model.eager_stage(name)
    spec = targets_of({name: module}, model.optimisations)[name]
    return make_target(spec, module, recording[name][0], model.argument_dtypes(name), model.device, dims)
