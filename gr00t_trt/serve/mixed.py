"""One pass of the model for robots of different kinds: each kind is prepared by its own policy.

Their prompts must be equally long and have equally many images: padding would give a robot other numbers than it would
get alone. The weights of each embodiment are gathered inside the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ..common.interface import Observation
from .robots import Robot

Part = tuple[Robot, Sequence[Observation]]
"""Observations of one kind and one form, as `Batcher.form` says."""


def mixed_inputs(parts: Iterable[Part]) -> dict[str, Tensor]:
    """Model inputs of all samples, part by part. Raises: ObservationError as the robots' policies."""
    made = [_prepared(robot, observations) for robot, observations in parts]
    return {key: torch.cat([each[key] for each in made]) for key in made[0]}


def mixed_actions(parts: Sequence[Part]) -> list[Mapping[str, np.ndarray]]:
    """An action for every sample, in the order of the parts. Raises: ObservationError, AccuracyError as policies."""
    predicted = parts[0][0].policy.predict(mixed_inputs(parts), None)
    actions: list[Mapping[str, np.ndarray]] = []
    for (robot, own), rows in zip(parts, predicted.split([len(own) for _, own in parts]), strict=True):
        assert robot.batcher is not None
        actions += robot.batcher.part(robot.policy.postprocess(rows, batched=True), len(own))
    return actions


def _prepared(robot: Robot, observations: Sequence[Observation]) -> dict[str, Tensor]:
    assert robot.batcher is not None
    return robot.policy.preprocess(robot.batcher.join(observations))[0]
