"""Environments side by side: seeds, and simulators that fail, in this process and in processes of their own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from counting import CONFIG, ENV_ID, KILLED, RAISING, UNBUILT

from gr00t_trt.errors import ObservationError, PlanError
from gr00t_trt.simulate.environments import Settings
from gr00t_trt.simulate.step import Lost, Started, Step
from gr00t_trt.simulate.vector import Vector

CHUNK = {"action.part": np.ones((4, 2), np.float32)}


def vector(count: int, env_id: str = ENV_ID, **settings) -> Vector:
    return Vector(Settings(env_id, CONFIG, n_action_steps=4, limit=100, **settings), count)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Iterator[tuple[Vector, Path]]:
    """Two environments in processes of their own, and where their videos go."""
    folder = tmp_path_factory.mktemp("videos")
    with vector(2, video_dir=folder) as envs:
        yield envs, folder


def test_environments_move_by_themselves_and_only_when_named(pair) -> None:
    envs, _ = pair
    assert (envs.count, envs.parts, envs.control_hz, envs.has_expert) == (2, {"action.part": 2}, 20.0, False)
    started = envs.reset({0: (0, 1), 1: (1, 2)})
    assert all(isinstance(own, Started) and own.instruction == "count" for own in started.values())
    assert list(envs.step({1: CHUNK})) == [1]
    both = envs.step({0: CHUNK, 1: CHUNK})
    assert [both[i].steps for i in (0, 1)] == [4, 5]
    assert (both[0].over, both[1].over) == (False, True)
    assert "gymnasium" in envs.facts


def test_a_process_that_dies_loses_its_episode_and_is_replaced(pair) -> None:
    envs, folder = pair
    envs.reset({0: (2, KILLED), 1: (3, 0)})
    (folder / f"episode0002_count.{envs._open[0].process.pid}.mp4").touch()  # as it is when many frames are written
    both = envs.step({0: CHUNK, 1: CHUNK})
    assert both[0] == Lost("the simulator's process ended, killed by SIGKILL")
    assert isinstance(both[1], Step)
    assert not list(folder.glob("episode0002*"))  # no half a video
    again = envs.reset({0: (4, 0)})
    assert isinstance(again[0], Started)
    assert all(isinstance(own, Step) for own in envs.step({0: CHUNK, 1: CHUNK}).values())


def test_an_error_of_a_simulator_is_told_in_one_line(pair) -> None:
    envs, _ = pair
    envs.reset({0: (5, RAISING)})
    assert envs.step({0: CHUNK}) == {0: Lost("the simulator failed: FloatingPointError: physics exploded")}
    lost = envs.reset({0: (6, UNBUILT), 1: (7, 0)})
    assert lost[0] == Lost("the simulator failed: ValueError: no place found for the cup")
    assert isinstance(lost[1], Started)


def test_one_environment_in_this_process_fails_and_goes_on_likewise(tmp_path: Path) -> None:
    with vector(1, video_dir=tmp_path) as envs:
        envs.reset({0: (0, 1)})
        assert envs.step({0: CHUNK})[0].steps == 4
        envs.reset({0: (1, RAISING)})
        assert isinstance(envs.step({0: CHUNK})[0], Lost)
        assert isinstance(envs.reset({0: (2, UNBUILT)})[0], Lost)
        envs.reset({0: (3, 0)})
        envs.step({0: CHUNK})
        assert envs.step({0: CHUNK})[0].over
    assert [path.name for path in tmp_path.iterdir()] == [
        "episode0003_count_success0.mp4"
    ]  # only its third row was one


@pytest.mark.parametrize("count", [1, 2])
def test_an_environment_that_never_begins_is_an_error_and_leaves_no_process(count: int) -> None:
    before = {child.pid for child in multiprocessing.active_children()}
    with (
        vector(count) as envs,
        pytest.raises(PlanError, match=r"cannot begin an episode: .*no place found for the cup"),
    ):
        envs.reset({0: (0, UNBUILT)})
    envs.close()
    assert {child.pid for child in multiprocessing.active_children()} <= before


def test_what_does_not_fit_is_raised_whichever_process_notices() -> None:
    with vector(1, "counting:counting/Silent-v0") as envs:
        envs.reset({0: (0, 0)})
        with pytest.raises(ObservationError, match="does not say whether it succeeded"):
            envs.step({0: CHUNK})
    with pytest.raises(PlanError, match="unknown value 'counting/Other-v0'"):
        vector(2, "counting:counting/Other-v0")


def test_jolts_are_for_the_arm_that_knows_them() -> None:
    with pytest.raises(PlanError, match=r"knows no jolts.*\n.*SO101PickPlace"):
        vector(1, jolts=0.1)
