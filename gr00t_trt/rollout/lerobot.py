"""SO-100 and SO-101 arms through LeRobot, imported here only.

Not run yet by its authors on an arm: written from LeRobot's documented robot interface (connect, get_observation,
send_action, disconnect), whose module moved once; both places are tried.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from ..common.install import install
from ..common.interface import Observation
from ..errors import ObservationError, PlanError
from .robots import MOTORS, PARTS, join_motors, split_motors

TYPES = {"so100_follower": "SO100Follower", "so101_follower": "SO101Follower"}
"""Robot type, as in LeRobot's flags -> its class; the config's class is called the same with Config behind."""
CAMERA_KEYS = ("type", "index_or_path", "width", "height", "fps")


class LeRobotArm:
    """An arm on a serial port, with cameras.

    Args:
        kind: A key of `TYPES`.
        port: Its serial port, such as ``/dev/ttyACM0``.
        name: Whose calibration is used; LeRobot's ``id``.
        cameras: LeRobot's flag: ``{ front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30} }``.
    Raises: PlanError without LeRobot, or for cameras that make no sense; ObservationError when the arm does not answer.
    """

    def __init__(self, kind: str, port: str, name: str | None, cameras: str):
        described = read_cameras(cameras)
        robot, config = _classes(kind)
        opencv = importlib.import_module("lerobot.cameras.opencv.configuration_opencv").OpenCVCameraConfig
        untyped = {camera: {k: v for k, v in own.items() if k != "type"} for camera, own in described.items()}
        views = {camera: opencv(**settings) for camera, settings in untyped.items()}
        self.cameras, self.parts = list(described), list(PARTS)
        self._robot = robot(config(port=port, id=name, cameras=views))
        try:
            self._robot.connect()
        except Exception as error:  # whatever the serial port or a camera raises
            what = f"{kind} at {port} cannot be connected: {type(error).__name__}: {error}"
            fix = "check --robot.port and --robot.cameras with lerobot-find-port and lerobot-find-cameras"
            raise ObservationError(what, fix=fix) from error

    def observe(self) -> Observation:
        raw = self._robot.get_observation()
        images = {f"video.{name}": np.ascontiguousarray(raw[name], np.uint8)[None] for name in self.cameras}
        return {**images, **split_motors([float(raw[f"{motor}.pos"]) for motor in MOTORS])}

    def act(self, action: Mapping[str, np.ndarray]) -> None:
        values = join_motors(action).tolist()
        self._robot.send_action({f"{motor}.pos": value for motor, value in zip(MOTORS, values, strict=True)})

    def close(self) -> None:
        self._robot.disconnect()


def read_cameras(text: str) -> dict[str, dict[str, Any]]:
    """LeRobot's ``--robot.cameras``: camera name -> its settings. Raises: PlanError for anything else."""
    form = "{ front: {type: opencv, index_or_path: 0, width: 640, height: 480, fps: 30}, wrist: {...} }"
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise PlanError(f"--robot.cameras: {text!r} cannot be read", known=form) from error
    if not isinstance(found, dict) or not found or not all(isinstance(own, dict) for own in found.values()):
        raise PlanError(f"--robot.cameras: {text!r} names no camera", known=form)
    for name, own in found.items():
        odd = [key for key in own if key not in CAMERA_KEYS]
        if odd or own.get("type") != "opencv" or "index_or_path" not in own:
            raise PlanError(f"--robot.cameras: {name}: {own}", known=f"an opencv camera: {', '.join(CAMERA_KEYS)}")
    return {str(name): own for name, own in found.items()}


def _classes(kind: str) -> tuple[Any, Any]:
    """Of a robot and of its config."""
    for module in ("lerobot.robots.so_follower", f"lerobot.robots.{kind}"):
        try:
            found = importlib.import_module(module)
        except ImportError:
            continue
        if hasattr(found, TYPES[kind]):
            return getattr(found, TYPES[kind]), getattr(found, f"{TYPES[kind]}Config")
    raise PlanError(
        f"--robot.type {kind} needs LeRobot, whose robots cannot be imported",
        known="simulated, and gymnasium ids such as gr00t_trt/SO101PickPlace-v0, need none",
        fix=install("lerobot[feetech]"),
    )
