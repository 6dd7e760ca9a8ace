"""A simulated SO-100: six joints of limited speed in real time, and two rendered cameras."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..common.interface import Observation
from ..simulate.render import Camera, Colour, Ground, Limb, draw
from .robots import PARTS, join_motors, split_motors

SPEED = 180.0
"""Units per second that a joint moves at most; a unit is a degree, and a hundredth of the gripper's opening."""
LOW = np.array([-100.0, -100.0, -100.0, -100.0, -100.0, 0.0])
HIGH = np.full(6, 100.0)
START = np.array([0.0, -40.0, 45.0, 30.0, 0.0, 20.0])
BASE, UPPER_ARM, FOREARM, HAND = 0.117, 0.112, 0.135, 0.075
"""Metres: the shoulder's height over the table, then three links."""
TABLE = (-0.25, 0.60, 0.45)

YELLOW: Colour = (240, 176, 32)
DARK: Colour = (52, 54, 62)
RED: Colour = (205, 52, 44)
BALL = np.array([0.24, 0.05, 0.015])


class SimulatedRobot:
    """The default robot of a rollout.

    Units are those of LeRobot's driver, -100 to 100 and 0 to 100 for the gripper. The joints move while the clock
    runs, whether anybody looks or not, and the same targets at the same times always give the same poses.

    Args:
        cameras: Names; one with ``wrist`` in it looks along the gripper (160 × 120), any other from the front
            (320 × 240).
        clock: Seconds, monotonic.
    """

    def __init__(self, cameras: Sequence[str], clock: Callable[[], float] = time.perf_counter):
        self.cameras, self.parts = list(cameras), list(PARTS)
        self._clock, self._since = clock, clock()
        self._pose, self._target = START.copy(), START.copy()
        self._front = Camera((0.52, -0.34, 0.36), (0.12, 0.0, 0.07), width=320, height=240, field_of_view=52.0)
        self._ground = Ground(self._front, TABLE)

    def observe(self) -> Observation:
        self._move()
        limbs = self._limbs()
        views = {name: self._wrist() if "wrist" in name else (self._front, self._ground) for name in self.cameras}
        images = {f"video.{name}": self._picture(*view, limbs)[None] for name, view in views.items()}
        return {**images, **split_motors(self._pose)}

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        self._move()
        self._target = np.clip(join_motors(action), LOW, HIGH)

    def close(self) -> None:
        pass

    def _move(self) -> None:
        now = self._clock()
        most = SPEED * (now - self._since)
        self._pose = self._pose + np.clip(self._target - self._pose, -most, most)
        self._since = now

    def joints(self) -> np.ndarray:
        """Shoulder, elbow, wrist and fingertip in metres, [4, 3]; x forward, z up, the table's top is z = 0."""
        pan, lift, elbow, wrist = np.radians(self._pose[:4])
        points = [np.array([0.0, 0.0, BASE])]
        lean = np.pi / 2 - lift  # over the horizon: straight up at zero, then level at zero elbow
        for length, turn in ((UPPER_ARM, 0.0), (FOREARM, np.pi / 2 + elbow), (HAND, wrist)):
            lean -= turn
            away = np.array([np.cos(lean) * np.cos(pan), np.cos(lean) * np.sin(pan), np.sin(lean)])
            points.append(points[-1] + length * away)
        return np.stack(points)

    def _limbs(self) -> list[Limb]:
        shoulder, elbow, wrist, tip = self.joints()
        along = (tip - wrist) / HAND
        level = np.cross(along, [0.0, 0.0, 1.0])
        level = level / max(np.linalg.norm(level), 1e-6)
        roll = np.radians(self._pose[4])
        across = np.cos(roll) * level + np.sin(roll) * np.cross(level, along)
        opening = 0.008 + 0.028 * self._pose[5] / 100.0
        palm = wrist + 0.03 * along
        ends = [(palm + side * 0.014 * across, tip + side * opening * across) for side in (-1, 1)]
        return [
            Limb(np.array([0.0, 0.0, 0.01]), shoulder, (0.045, 0.032), DARK),
            Limb(shoulder, elbow, (0.026, 0.022), YELLOW),
            Limb(elbow, elbow, (0.025, 0.025), DARK),
            Limb(elbow, wrist, (0.021, 0.017), YELLOW),
            Limb(wrist, palm, (0.020, 0.018), DARK),
            *(Limb(*own, (0.011, 0.006), DARK) for own in ends),
            Limb(BALL, BALL, (0.018, 0.018), RED),
        ]

    def _wrist(self) -> tuple[Camera, Ground]:
        _, _, wrist, tip = self.joints()
        along = (tip - wrist) / HAND
        up = np.array([0.0, 0.0, 1.0])
        # A camera that looks straight down has no up; a hair beside it has.
        target = tip + 0.05 * along + 1e-3 * np.array([1.0, 0.0, 0.0])
        camera = Camera(wrist - 0.02 * along + 0.06 * up, target, width=160, height=120, field_of_view=75.0)
        return camera, Ground(camera, TABLE)

    def _picture(self, camera: Camera, ground: Ground, limbs: Sequence[Limb]) -> np.ndarray:
        image = ground.empty.copy()
        for place in (*self.joints(), BALL):
            ground.shadow(image, place[:2], 0.03 + 0.1 * max(place[2], 0.0), 0.3 / (1 + 5 * max(place[2], 0.0)))
        draw(image, camera, limbs)
        return image.round().clip(0, 255).astype(np.uint8)
