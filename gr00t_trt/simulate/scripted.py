"""A policy that solves the table-top scene by looking at it: what success looks like, without a model.

It finds pear and plate by their colours while the arms are at rest, keeps what it saw, and reaches for them by
inverse kinematics. It knows of the scene what a robot would: its own camera and its own arms.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..common.interface import ModalityConfig, Observation
from .environments import VIEW
from .kinematics import REST_ARM, SIDES, grasp_point, limits, reach
from .tabletop import CLOSED, INSTRUCTION_KEY, PEAR_RADIUS, ego_camera

CHUNK = 16
ABOVE = 0.13
"""Metres over the table at which a hand travels."""
GRASP_HEIGHT = PEAR_RADIUS + 0.005
NEAR = 0.02
CLOSED_HAND, OPEN_HAND = np.array([1.5, 1.5, 1.5, 1.5, 0.8, 1.0]), np.zeros(6)


class ScriptedPolicy:
    """One target per answer, sixteen rows of it: over the pear, down, close, over the plate, open."""

    def __init__(self) -> None:
        self._camera = ego_camera()
        self._parts = {part: len(low) for part, (low, _) in limits().items()}
        self._seen: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        keys = {
            "video": [VIEW],
            "state": [f"state.{part}" for part in self._parts],
            "action": [f"action.{part}" for part in self._parts],
            "language": [INSTRUCTION_KEY],
        }
        offsets = {"action": list(range(CHUNK))}
        return {name: ModalityConfig(offsets.get(name, [0]), own) for name, own in keys.items()}

    def get_action(self, observation: Observation) -> dict[str, np.ndarray]:
        """``action.<part>`` float64 [B, 16, D] for a batch, whose order must stay the same."""
        batch = len(observation[VIEW])
        rows = [self._decide(i, {key: value[i][-1] for key, value in observation.items()}) for i in range(batch)]
        chunks = {part: [np.repeat(row[part][None], CHUNK, axis=0) for row in rows] for part in self._parts}
        return {f"action.{part}": np.stack(own) for part, own in chunks.items()}

    def _decide(self, index: int, now: Observation) -> dict[str, np.ndarray]:
        joints = {part: np.asarray(now[f"state.{part}"], np.float64) for part in self._parts}
        if all(np.abs(joints[f"{side}_arm"] - REST_ARM).max() < 0.02 for side in SIDES):
            self._look(index, np.asarray(now[VIEW], np.float32))
        if index not in self._seen:
            return joints  # pear or plate not found: better to stand still
        pear, plate = self._seen[index]
        side = "left" if pear[1] > 0 else "right"
        arm, hand = joints[f"{side}_arm"], joints[f"{side}_hand"]
        here = grasp_point(side, arm, joints["waist"])
        over_plate = bool(np.linalg.norm(here[:2] - plate) < NEAR)
        grip, target = OPEN_HAND, here
        if hand[:4].mean() < CLOSED:
            goal = np.array([*pear, GRASP_HEIGHT])
            if np.linalg.norm(here - goal) < NEAR:
                grip, target = CLOSED_HAND, goal
            elif np.linalg.norm(here[:2] - pear) < NEAR:
                target = goal
            else:
                target = np.array([*pear, ABOVE])
        elif not over_plate:
            grip, target = CLOSED_HAND, np.array([*plate, ABOVE])
        return {**joints, f"{side}_arm": reach(side, target, arm, joints["waist"]), f"{side}_hand": grip}

    def _look(self, index: int, image: np.ndarray) -> None:
        self._seen.pop(index, None)
        red, green, blue = image[..., 0], image[..., 1], image[..., 2]
        pear = self._place((green > blue + 60) & (green > red - 5), PEAR_RADIUS)
        plate = self._place(blue > red + 60, 0.0)
        if pear is not None and plate is not None:
            self._seen[index] = pear, plate

    def _place(self, pixels: np.ndarray, height: float) -> np.ndarray | None:
        """Where on the plane z = `height` the middle of some pixels lies, [2]; None for a handful of them."""
        rows, columns = np.nonzero(pixels)
        if len(rows) < 20:
            return None
        return self._camera.unproject(np.array([columns.mean() + 0.5, rows.mean() + 0.5]), height)
