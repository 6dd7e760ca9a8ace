"""`gr00t_trt/SO101PickPlace-v0`: an SO-101 arm in MuJoCo puts a cube on a disc, in the keys of the data config `so100`.

Scene, physics, success rule and expert are those of the package `lerobot-env-so101`. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from .defaults import DEFAULT_ENV, MESH_ENV
from .gym import gymnasium, spaces
from .so101_arm import NAMES, Arm
from .so101_picture import LIGHT, MESH, Picture

FPS = 10
"""Low-level steps per second."""
TASK = "pick up the purple cube and place it on the green disc"
VIEW, ARM_STATE, GRIPPER_STATE = "video.webcam", "state.single_arm", "state.gripper"
ARM_ACTION, GRIPPER_ACTION = "action.single_arm", "action.gripper"
INSTRUCTION = "annotation.human.task_description"
SIZE = 256
"""Pixels of a picture, both ways."""
CHUNK = 16
MODALITIES = {
    "video": ModalityConfig([0], [VIEW]),
    "state": ModalityConfig([0], [f"state.{part}" for part in NAMES]),
    "action": ModalityConfig(list(range(CHUNK)), [f"action.{part}" for part in NAMES]),
    "language": ModalityConfig([0], [INSTRUCTION]),
}
"""What the environment has to offer: the keys of the data config `so100`."""


class SO101PickPlace(gymnasium.Env[Observation, dict[str, np.ndarray]]):
    """Pick the cube up and put it down on the disc.

    Observation: ``video.webcam`` uint8 [256, 256, 3], ``state.single_arm`` float64 [5] in degrees, ``state.gripper``
    [1] in per cent, the task as text. Action: both parts as float32 targets, clipped to the motors' ranges. Reward 1
    and the end of the episode when the cube, having been lifted, rests on the disc and is let go; the episode also
    ends when the cube leaves the table's middle. ``info["success"]`` says which. Time is not limited here.

    Args:
        look: ``light`` draws the arm as capsules, ``mesh`` as its 322,564 faces.

    Attributes:
        pictures_wanted: Set to False before a step, its observation has no picture, unless the episode ends.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, look: str = LIGHT):
        self.render_mode, self.pictures_wanted = render_mode, True
        self.arm = Arm()
        self._picture = Picture(self.arm.model, SIZE, SIZE, look=look)
        states = {
            ARM_STATE: spaces.Box(-360, 360, (5,), np.float64),
            GRIPPER_STATE: spaces.Box(-50, 150, (1,), np.float64),
        }
        text = spaces.Text(200, charset=frozenset(TASK))
        self.observation_space: Any = spaces.Dict(
            {VIEW: spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8), **states, INSTRUCTION: text}
        )
        self.action_space: Any = spaces.Dict(
            {ARM_ACTION: spaces.Box(-180, 180, (5,), np.float32), GRIPPER_ACTION: spaces.Box(0, 100, (1,), np.float32)}
        )
        self._seen: np.ndarray | None = None
        self._random, self._jolts = np.random.default_rng(), 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, float] | None = None
    ) -> tuple[Observation, dict[str, bool]]:
        """Option ``jolts``: in each step, how probable it is that the arm is pushed."""
        super().reset(seed=seed)
        self.arm.reset(seed)
        # Of their own, so that the same seed gives the same scene with and without jolts.
        self._random = np.random.default_rng(None if seed is None else (seed, 1))
        self._jolts = float((options or {}).get("jolts", 0.0))
        return self._observe(True), {"success": False}

    def step(self, action: Mapping[str, np.ndarray]) -> tuple[Observation, float, bool, bool, dict[str, bool]]:
        """Raises: ValueError for targets that are missing, misshapen or not finite."""
        joints = _joints(action)
        if self._random.random() < self._jolts:
            self.arm.jolt(self._random)
        _, reward, over, _, info = self.arm.scene.step(joints)
        success = bool(info["succeed"])
        return self._observe(self.pictures_wanted or over), float(reward), over, False, {"success": success}

    def expert_action(self) -> dict[str, np.ndarray]:
        """What the package's expert does next: ``action.single_arm`` float32 [5] and ``action.gripper`` [1].

        Asked once before each step of an episode, from its first on.
        """
        joints = self.arm.expert().astype(np.float32)
        return {ARM_ACTION: joints[:5], GRIPPER_ACTION: joints[5:]}

    def render(self) -> Any:
        """What the camera sees now, uint8 [256, 256, 3]; None unless made with ``render_mode="rgb_array"``."""
        if self.render_mode != "rgb_array":
            return None
        return self._look().copy()

    def close(self) -> None:
        self._picture.close()

    def _look(self) -> np.ndarray:
        if self._seen is None:
            self._seen = self._picture.draw(self.arm.data, self.arm.goal)
        return self._seen

    def _observe(self, picture: bool) -> Observation:
        self._seen = None
        joints = self.arm.joints()
        states: Observation = {ARM_STATE: joints[:5], GRIPPER_STATE: joints[5:], INSTRUCTION: TASK}
        return {VIEW: self._look().copy(), **states} if picture else states


def _joints(action: Mapping[str, np.ndarray]) -> np.ndarray:
    """A six-vector of an action. Raises: ValueError."""
    parts = []
    for key, width in ((ARM_ACTION, 5), (GRIPPER_ACTION, 1)):
        part = np.asarray(action.get(key, []), np.float32)
        if part.shape != (width,) or not np.isfinite(part).all():
            raise ValueError(f"{key}: {part} is no target for {width} joints")
        parts.append(part)
    return np.concatenate(parts).astype(np.float64)


for _id, _look in ((DEFAULT_ENV, LIGHT), (MESH_ENV, MESH)):
    if _id not in gymnasium.registry:
        gymnasium.register(_id, entry_point=f"{__name__}:SO101PickPlace", kwargs={"look": _look})
