"""The table-top scene: gymnasium's own checker, kinematics against geometry, pictures against projection."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from gr00t_trt.data import data_config
from gr00t_trt.simulate import tabletop
from gr00t_trt.simulate.environments import LONG_VIEW, VIEW
from gr00t_trt.simulate.kinematics import ARM_HIGH, ARM_LOW, REST_ARM, SIDES, arm_points, grasp_point, reach
from gr00t_trt.simulate.tabletop import PEAR_RADIUS, TableTop, ego_camera

STILL = np.zeros(3)


@pytest.fixture
def env() -> TableTop:
    return TableTop(enable_render=True)


def hold(env: TableTop, **changed: np.ndarray) -> dict[str, np.ndarray]:
    return {f"action.{part}": changed.get(part, value) for part, value in env.joints.items()}


def test_gymnasiums_checker_has_nothing_to_complain_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Joint angles are radians, as on the robot: not between -1 and 1.
        warnings.filterwarnings("ignore", message=".*symmetric and normalized.*")
        check_env(gymnasium.make(tabletop.ENV_ID, enable_render=True).unwrapped)


def test_keys_and_widths_are_those_of_the_gr1_data_config(env: TableTop) -> None:
    config = data_config("fourier_gr1_arms_waist").modality_config()
    observation, _ = env.reset(seed=0)
    keys = [LONG_VIEW if k == VIEW else k for m in ("video", "state", "language") for k in config[m].modality_keys]
    assert sorted(observation) == sorted(keys)
    assert sorted(env.action_space) == sorted(config["action"].modality_keys)
    widths = {part: len(value) for part, value in env.joints.items()}
    assert widths == {"left_arm": 7, "right_arm": 7, "left_hand": 6, "right_hand": 6, "waist": 3}


def test_a_seed_decides_everything(env: TableTop) -> None:
    first = env.reset(seed=3)[0][LONG_VIEW]
    other = TableTop().reset(seed=3)[0][LONG_VIEW]
    np.testing.assert_array_equal(first, other)
    assert not np.array_equal(first, env.reset(seed=4)[0][LONG_VIEW])


@pytest.mark.parametrize("side", SIDES)
def test_an_arm_that_hangs_is_straight_and_a_bent_one_points_forward(side: str) -> None:
    points, _ = arm_points(side, np.zeros(7), STILL)
    assert np.allclose(points[:, :2], points[0, :2])
    assert points[0, 2] - points[3, 2] == pytest.approx(0.28 + 0.26 + 0.10)
    bent = arm_points(side, REST_ARM, STILL)[0]
    assert bent[3, 0] > bent[1, 0] + 0.25
    assert np.sign(bent[3, 1]) == SIDES[side]


@pytest.mark.parametrize("side", SIDES)
def test_every_place_of_pear_and_plate_can_be_reached(side: str) -> None:
    for x in (0.22, 0.36):
        for y in (-0.09, 0.0, 0.17):
            target = np.array([x, y * SIDES[side], PEAR_RADIUS])
            angles = reach(side, target, REST_ARM, STILL)
            assert np.linalg.norm(grasp_point(side, angles, STILL) - target) < 5e-3
            assert (angles >= ARM_LOW[side]).all()
            assert (angles <= ARM_HIGH[side]).all()


def test_joints_follow_their_targets_at_a_bounded_speed(env: TableTop) -> None:
    env.reset(seed=0)
    before = {part: value.copy() for part, value in env.joints.items()}
    env.step({key: np.full(len(value), 9.0) for key, value in hold(env).items()})
    for part, value in env.joints.items():
        most = 0.30 if part.endswith("hand") else 0.12
        assert np.abs(value - before[part]).max() <= most + 1e-12
        assert value.max() > before[part].max() or part.endswith("arm")
    for _ in range(45):
        env.step({key: np.full(len(value), 9.0) for key, value in hold(env).items()})
    assert all((value <= env.action_space[f"action.{part}"].high + 1e-12).all() for part, value in env.joints.items())


@pytest.mark.parametrize("bad", [np.full(7, np.nan), np.zeros(6), None])
def test_actions_that_are_none_are_refused(env: TableTop, bad) -> None:
    env.reset(seed=0)
    action = hold(env, left_arm=bad)
    if bad is None:
        del action["action.left_arm"]
    with pytest.raises(ValueError, match=r"action\.left_arm"):
        env.step(action)


def test_a_closing_hand_takes_the_pear_and_an_opening_one_drops_it_on_the_table(env: TableTop) -> None:
    env.reset(seed=0)
    side = "left" if env.pear[1] > 0 else "right"
    env.joints[f"{side}_arm"] = reach(side, env.pear, REST_ARM, STILL)
    for _ in range(4):
        env.step(hold(env, **{f"{side}_hand": np.full(6, 1.5)}))
    assert env.held_by == side
    away = np.array([0.30, SIDES[side] * 0.25, 0.15])
    lifted = reach(side, away, env.joints[f"{side}_arm"], STILL)
    for _ in range(12):
        _, reward, terminated, _, info = env.step(hold(env, **{f"{side}_arm": lifted}))
    assert np.linalg.norm(env.pear - away) < 0.01
    for _ in range(6):
        _, reward, terminated, _, info = env.step(hold(env, **{f"{side}_hand": np.zeros(6)}))
    assert env.held_by is None
    assert env.pear[2] == PEAR_RADIUS
    assert (reward, terminated, info["success"]) == (0.0, False, False)


def test_pixels_and_places_on_the_table_are_each_others_inverse() -> None:
    camera = ego_camera()
    places = np.array([[0.2, -0.3, 0.0], [0.3, 0.1, 0.0], [0.55, 0.4, 0.0]])
    pixels, depth = camera.project(places)
    np.testing.assert_allclose(camera.unproject(pixels, 0.0), places[:, :2], atol=1e-9)
    np.testing.assert_allclose(depth, (places - camera.eye) @ camera.axes[2])
    assert np.isnan(camera.unproject(np.array([128.0, -1000.0]), 0.0)).all()


def test_the_picture_shows_pear_and_plate_where_they_are(env: TableTop) -> None:
    image = env.reset(seed=1)[0][LONG_VIEW].astype(int)
    pixels, _ = ego_camera().project(np.stack([env.pear, [*env.plate, 0.0]]))
    (x, y), (u, v) = pixels.astype(int)
    _, green, blue = image[y, x]
    assert green > blue + 60
    assert image[v, u, 2] > image[v, u, 0] + 60
    np.testing.assert_array_equal(env.render(), image)
    assert TableTop().render() is None
