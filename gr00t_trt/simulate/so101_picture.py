"""Pictures of a simulated SO-101: as capsules, which a CPU draws in 5 ms, or as its meshes. Never imports torch."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import numpy as np

from .graphics import cannot_draw, load_mujoco

LIGHT, MESH = "light", "mesh"
CHAIN = ("shoulder", "upper_arm", "lower_arm", "wrist", "gripper")
"""Bodies from the base on; each is drawn as a capsule from the one before."""
JAW = "moving_jaw_so101_v1"
YELLOW, BLUE, GREEN = (0.95, 0.8, 0.2, 1.0), (0.2, 0.4, 0.95, 1.0), (0.0, 0.8, 0.2, 1.0)
FLOOR = (0.25, 0.33, 0.42, 1.0)
GOAL_RADIUS = 0.03
WRIST_FIELD_OF_VIEW, CAMERA_OFFSET = 75.0, 0.07
"""Degrees; metres from the gripper's middle to its camera."""


class Picture:
    """One camera of one scene.

    Shadows, reflections and multisampling are off in both looks: without a GPU they cost ten times the picture.
    Made and used in one thread, as OpenGL wants it.

    Args:
        model: A `mujoco.MjModel` of the SO-101; its largest picture is raised to this size.
        look: `LIGHT` or `MESH`.
        wrist: Look along the gripper instead of from the scene's front.
    """

    def __init__(self, model: Any, height: int, width: int, *, look: str = LIGHT, wrist: bool = False):
        self._mujoco, self._model, self._look = load_mujoco(), model, look
        size = model.vis.global_
        size.offheight, size.offwidth = max(size.offheight, height), max(size.offwidth, width)
        model.vis.quality.offsamples = 0
        if look == LIGHT:
            model.vis.quality.numslices, model.vis.quality.numstacks = 12, 6
            floor = model.geom("floor")
            floor.matid[:], floor.rgba[:] = -1, FLOOR  # its texture is a quarter of the picture's time
        try:
            self._renderer = self._mujoco.Renderer(model, height, width)
        except Exception as error:  # no device, no driver: each platform has its own exception
            raise cannot_draw(error) from error
        # Python's end would otherwise find the GL library gone before the context.
        self.close = weakref.finalize(self, self._renderer.close)
        self._option = self._mujoco.MjvOption()
        if look == LIGHT:
            self._option.geomgroup[:] = 0
            self._option.geomgroup[0] = 1  # floor and block
        self._wrist: Any = self._mujoco.MjvCamera() if wrist else None

    def draw(self, data: Any, goal: np.ndarray | None = None) -> np.ndarray:
        """The scene as it is now, uint8 [H, W, 3].

        Args:
            data: The `mujoco.MjData` of the model.
            goal: [3], metres; a green disc is drawn on the table there.
        """
        if self._wrist is not None:
            self._follow(data)
        self._renderer.update_scene(data, camera=self._wrist or "front", scene_option=self._option)
        flags = self._mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = 0
        if goal is not None:
            self._add(self._mujoco.mjtGeom.mjGEOM_CYLINDER, (GOAL_RADIUS, 0.001, 0.0), (*goal[:2], 0.001), GREEN)
        if self._look == LIGHT:
            self._limbs(data)
        return self._renderer.render().copy()

    def _limbs(self, data: Any) -> None:
        points = [np.zeros(3), *(data.body(name).xpos for name in CHAIN), data.geom("fixed_jaw_pad").xpos]
        for start, end in itertools.pairwise(points):
            self._limb(start, end, 0.014, YELLOW)
        self._limb(data.body(JAW).xpos, data.geom("moving_jaw_pad").xpos, 0.009, BLUE)

    def _limb(self, start: np.ndarray, end: np.ndarray, radius: float, colour: tuple[float, ...]) -> None:
        capsule = self._mujoco.mjtGeom.mjGEOM_CAPSULE
        geom = self._add(capsule, (radius,) * 3, (0.0, 0.0, 0.0), colour)
        self._mujoco.mjv_connector(geom, capsule, radius, np.array(start), np.array(end))

    def _add(self, kind: Any, size: tuple[float, ...], place: tuple[float, ...], colour: tuple[float, ...]) -> Any:
        scene = self._renderer.scene
        geom = scene.geoms[scene.ngeom]
        turn = np.eye(3).ravel()
        self._mujoco.mjv_initGeom(geom, kind, np.array(size), np.array(place), turn, np.array(colour, np.float32))
        scene.ngeom += 1
        return geom

    def _follow(self, data: Any) -> None:
        """Put the camera beside the gripper, where such arms carry theirs, and look past the jaws."""
        jaws = data.site("gripperframe")
        along, across, _ = jaws.xmat.reshape(3, 3).T
        eye = data.body("gripper").xpos + CAMERA_OFFSET * across
        to = jaws.xpos + 0.02 * along - eye
        away = float(np.linalg.norm(to))
        self._wrist.lookat[:] = eye + to
        self._wrist.distance = away
        self._wrist.azimuth = np.degrees(np.arctan2(to[1], to[0]))
        self._wrist.elevation = np.degrees(np.arcsin(to[2] / away))
        self._model.vis.global_.fovy = WRIST_FIELD_OF_VIEW
