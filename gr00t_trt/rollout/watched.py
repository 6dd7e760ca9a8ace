"""A robot and a policy whose doings are written to a timeline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..common.interface import Observation
from ..evaluate.timeline import Timeline
from .loop import Ask, Chunk
from .robots import Robot


@dataclass
class Watched:
    """A robot, and what answers for it, as `Loop` wants them; `branch` is where in the timeline's tree they stand.

    Args:
        ask: The policy.
        rows: How many rows of each answer are executed; `period`: seconds from one to the next.
    """

    robot: Robot
    ask: Ask
    timeline: Timeline
    branch: str
    rows: int
    period: float

    def __post_init__(self) -> None:
        self.cameras, self.parts = self.robot.cameras, self.robot.parts

    def observe(self) -> Observation:
        observation = self.robot.observe()
        self.timeline.shown(self.timeline.now(), observation, (self.branch,))
        return observation

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        self.robot.act(action)
        when = self.timeline.now()
        for key, value in action.items():
            self.timeline.value(when, (self.branch, "sent", key.partition(".")[2]), value)

    def close(self) -> None:
        self.robot.close()

    def answer(self, observation: Observation) -> Chunk:
        """`ask`, timed; the curves of an answer begin when it was asked for."""
        asked = self.timeline.now()
        began = time.perf_counter()
        chunk = self.ask(observation)
        latency_ms = (time.perf_counter() - began) * 1e3
        self.timeline.answered(asked, chunk, latency_ms, rows=self.rows, period=self.period, under=(self.branch,))
        return chunk
