"""A policy whose questions and answers are written to a timeline, environment by environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..evaluate.policies import Policy
from ..evaluate.timeline import Timeline


@dataclass
class WatchedPolicy:
    """A policy as `episodes.play` asks it, about several environments at once.

    Args:
        rows: How many rows of each answer are executed; the steps of the timeline count them.
    """

    policy: Policy
    timeline: Timeline
    rows: int
    asked: int = 0

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self.policy.get_modality_config()

    def get_action(self, observation: Observation) -> dict[str, np.ndarray]:
        when = self.timeline.now(self.asked * self.rows)
        self.asked += 1
        began = time.perf_counter()
        answer = self.policy.get_action(observation)
        latency_ms = (time.perf_counter() - began) * 1e3
        numbers = {key: value for key, value in observation.items() if key.startswith(("video.", "state."))}
        for i in range(len(next(iter(numbers.values()), []))):
            branch = (f"environment {i}",)
            self.timeline.shown(when, {key: value[i] for key, value in numbers.items()}, branch)
            chunk = {key: np.asarray(value)[i] for key, value in answer.items()}
            self.timeline.answered(when, chunk, latency_ms, rows=self.rows, period=0.0, under=branch)
        return answer
