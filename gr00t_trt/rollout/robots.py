"""What a rollout drives: one protocol, the SO-100's way of splitting its six motors, any gymnasium environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import ObservationError

MOTORS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""Of an SO-100 or SO-101, in driver order: the first five are the arm."""
PARTS = {"single_arm": slice(0, 5), "gripper": slice(5, 6)}
"""Part of state and action -> its motors."""


class Robot(Protocol):
    """Anything with cameras and joints. Called from one thread only.

    Attributes:
        cameras: Names of its cameras: ``front`` is observed as ``video.front``.
        parts: Names of its state parts and of the action parts that it takes.
    """

    cameras: list[str]
    parts: list[str]

    def observe(self) -> Observation:
        """``video.<camera>`` uint8 [1, H, W, 3] and ``state.<part>`` float64 [1, D], as they are now; quickly."""

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        """Take ``action.<part>`` [D] as targets and return without waiting for them to be reached."""

    def close(self) -> None:
        """Let go of the robot, which keeps its pose."""


def split_motors(values: Sequence[float] | np.ndarray) -> dict[str, np.ndarray]:
    """Six motor values in driver order -> ``state.single_arm`` float64 [1, 5] and ``state.gripper`` [1, 1]."""
    row = np.asarray(values, np.float64)[None]
    return {f"state.{part}": row[:, motors] for part, motors in PARTS.items()}


def join_motors(action: Mapping[str, np.ndarray]) -> np.ndarray:
    """``action.single_arm`` [5] and ``action.gripper`` [1] -> six motor values in driver order, float64 [6]."""
    return np.concatenate([np.asarray(action[f"action.{part}"], np.float64).reshape(-1) for part in PARTS])


def check_fit(robot: Robot, modality_config: Mapping[str, ModalityConfig]) -> None:
    """Refuse a policy that wants what the robot does not have. Raises: ObservationError naming both sides."""
    for modality in ("video", "state"):
        offsets = list(modality_config[modality].delta_indices) if modality in modality_config else [0]
        if offsets != [0]:
            what = f"the policy wants {modality} at offsets {offsets}"
            raise ObservationError(what, known="a robot shows the present")
    for modality, names in (("video", robot.cameras), ("state", robot.parts), ("action", robot.parts)):
        known = [f"{modality}.{name}" for name in names]
        wanted = list(modality_config[modality].modality_keys) if modality in modality_config else []
        # A robot may show more than is looked at, but it needs a target for every joint.
        odd = set(known) ^ set(wanted) if modality == "action" else set(wanted) - set(known)
        if odd:
            raise ObservationError(
                f"robot and policy differ in {', '.join(sorted(odd))}",
                known=f"the robot has {', '.join(known)}; the policy wants {', '.join(wanted)}",
                fix="choose the --data_config of this robot, or name its cameras as the data config does",
            )


class EnvironmentRobot:
    """A gymnasium environment with ``video.``, ``state.`` and ``action.`` keys, played endlessly.

    Raises: PlanError for an environment that cannot be made.
    """

    def __init__(self, env_id: str, *, seed: int):
        from ..simulate.environments import make_plain

        self._env = make_plain(env_id)
        self._now, _ = self._env.reset(seed=seed)
        keys = [key.split(".", 1) for key in self._now]
        self.cameras = [name for kind, name in keys if kind == "video"]
        self.parts = [name for kind, name in keys if kind == "state"]

    def observe(self) -> Observation:
        return {key: np.asarray(value)[None] for key, value in self._now.items() if not key.startswith("annotation.")}

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        self._now, _, terminated, truncated, _ = self._env.step(action)
        if terminated or truncated:
            self._now, _ = self._env.reset()

    def close(self) -> None:
        self._env.close()
