"""What an environment answers: an episode begun, some steps made, or an episode lost. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..common.interface import Observation


@dataclass(frozen=True)
class Started:
    """An episode has begun.

    Attributes:
        observation: As in `Step`.
        instruction: What is to be done, in words; empty where the environment does not say.
    """

    observation: Observation
    instruction: str


@dataclass(frozen=True)
class Lost:
    """The simulator failed, or its process ended: this episode has no result; `reason` is one sentence."""

    reason: str


@dataclass(frozen=True)
class Step:
    """The rows of one action were carried out.

    Attributes:
        observation: ``video.`` uint8 [T, H, W, 3], ``state.`` float [T, D], ``annotation.`` text. Pictures may be
            missing when the episode is over.
        rows: How many rows were carried out; fewer than asked for at the end of an episode.
        steps: Low-level steps of the episode so far.
        over: The episode is over: ended by the environment, or by the time limit.
        success: Whether the last row of any action so far was a success, which is how the published figures count.
        success_any_row: Whether any row so far was one.
        reward: The largest of the episode so far.
        actions: What was carried out, ``action.<part>`` float32 [rows, D].
        frames: Where they are kept: what was seen before each row, ``video.`` [H, W, 3] and ``state.`` [D].
    """

    observation: Observation
    rows: int
    steps: int
    over: bool
    success: bool
    success_any_row: bool
    reward: float
    actions: dict[str, np.ndarray]
    frames: list[Observation] = field(default_factory=list)
