"""Who acts in a simulation: a served policy, recorded actions; a local model is in `local`. Never imports torch.

The noise of an answer follows from the episode's seed and the number of the question, so that two policies in the same
episode start from the same noise, whatever is played beside it, in which order, and by how many environments.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import ServiceError
from ..evaluate.policies import Policy, ServedPolicy


@dataclass(frozen=True)
class Question:
    """Which question of which episode is asked; `number` counts the episode's questions from 0."""

    episode: int
    seed: int
    number: int

    @property
    def noise_seed(self) -> int:
        """Seed of the answer's noise, 0 to 2^63 - 1."""
        digest = hashlib.sha256(f"{self.seed} {self.number}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1


class Actor(Protocol):
    """What `episodes.Session` asks.

    Attributes:
        together: Whether it takes several observations at once, of equal instructions.
        timed: Whether it matters how long it takes to answer.
    """

    together: bool
    timed: bool

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        """As `evaluate.policies.Policy`."""

    def answer(self, observation: Observation, questions: Sequence[Question]) -> Mapping[str, np.ndarray]:
        """``action.<part>`` [B, T, D] for a batch of observations, one for each question."""


class AnyPolicy:
    """A policy whose noise cannot be chosen: another make's server, a script."""

    together, timed = True, True

    def __init__(self, policy: Policy):
        self.policy = policy

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self.policy.get_modality_config()

    def answer(self, observation: Observation, questions: Sequence[Question]) -> Mapping[str, np.ndarray]:
        return self.policy.get_action(observation)


class ServedActor:
    """A server of this package, which takes the seed of a request's noise, and so one observation at a time."""

    together, timed = False, True

    def __init__(self, served: ServedPolicy):
        self._served = served

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self._served.get_modality_config()

    def answer(self, observation: Observation, questions: Sequence[Question]) -> Mapping[str, np.ndarray]:
        (question,) = questions
        return self._served.client.get_action(observation, seed=question.noise_seed)


def served_actor(served: ServedPolicy) -> tuple[Actor, str | None]:
    """A server as an actor, and why its noise does not follow from the seed; None where it does."""
    try:
        served.client.status()
    except ServiceError:
        return AnyPolicy(served), "a server of another make draws its noise itself: episodes cannot be repeated exactly"
    return ServedActor(served), None


class RecordedActions:
    """The actions of recorded episodes, whatever is observed; the last row is held when they are used up.

    Args:
        rows: Of each answer.
        actions: Episode -> ``action.<part>`` [N, D].
    """

    together, timed = False, False

    def __init__(self, rows: int, actions: Mapping[int, Mapping[str, np.ndarray]]):
        self._rows, self._actions = rows, actions

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        """Empty: recorded actions need no observation."""
        return {}

    def answer(self, observation: Observation, questions: Sequence[Question]) -> Mapping[str, np.ndarray]:
        (question,) = questions
        first = question.number * self._rows
        return {
            key: own[None, np.minimum(np.arange(first, first + self._rows), len(own) - 1)]
            for key, own in self._actions[question.episode].items()
        }
