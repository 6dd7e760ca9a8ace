"""Several steps at once: what is carried out, seen, drawn, and counted as success."""

from __future__ import annotations

import numpy as np
import pytest
from counting import CONFIG, Counting, Silent
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.errors import ObservationError
from gr00t_trt.simulate.multistep import MultiStep

CHUNK = {"action.part": np.arange(8, dtype=np.float64).reshape(4, 2)}


def several(env, config=CONFIG, **settings) -> MultiStep:
    return MultiStep(env, config, n_action_steps=4, **{"limit": 100, **settings})


def test_a_chunk_is_carried_out_row_by_row_until_the_episode_ends() -> None:
    env = several(Counting())
    observation, instruction = env.begin(0)
    assert observation["video.ego_view"].shape == (1, 32, 32, 3)
    assert instruction == "count"
    step = env.act(CHUNK)
    assert step.observation["state.part"].tolist() == [[4.0, 4.0]]
    assert (step.reward, step.over, step.rows, step.steps) == (3.0, False, 4, 4)
    step = env.act(CHUNK)
    assert (step.observation["state.part"][0, 0], step.over, step.rows, step.steps) == (5.0, True, 1, 5)
    assert step.reward == 3.0  # the largest of the whole episode


@pytest.mark.parametrize("key", ["success", "is_success", "succeed"])
def test_the_last_row_counts_as_published_and_any_row_is_told_too(key: str) -> None:
    env = several(Counting(key=key))  # succeeds in its third step, and in no other
    env.begin(0)
    first, second = env.act(CHUNK), env.act(CHUNK)
    assert (first.success, first.success_any_row) == (False, True)
    assert (second.success, second.success_any_row) == (False, True)
    env = MultiStep(Counting(key=key), CONFIG, n_action_steps=3, limit=100)
    env.begin(0)
    assert env.act(CHUNK).success
    assert env.act(CHUNK).success  # once it was one, the episode is one


def test_what_was_done_is_kept_as_a_dataset_stores_it() -> None:
    env = several(Counting(), keep_frames=True)
    env.begin(0)
    step = env.act(CHUNK)
    assert step.actions["action.part"].dtype == np.float32
    np.testing.assert_array_equal(step.actions["action.part"], env.unwrapped.done)
    assert [frame["state.part"][0] for frame in step.frames] == [0, 1, 2, 3]  # before each row
    assert {frame["video.ego_view"].shape for frame in step.frames} == {(32, 32, 3)}
    assert len(env.act(CHUNK).frames) == 1


def test_older_frames_are_stacked_and_the_first_one_is_repeated() -> None:
    config = {**CONFIG, "state": ModalityConfig([-2, 0], ["state.part"])}
    env = MultiStep(Counting(), config, n_action_steps=2, limit=100)
    assert env.begin(0)[0]["state.part"][:, 0].tolist() == [0.0, 0.0]
    assert env.act(CHUNK).observation["state.part"][:, 0].tolist() == [0.0, 2.0]
    both = {**CONFIG, "video": ModalityConfig([-3, 0], ["video.ego_view"])}
    env = several(Counting(), both)
    env.begin(0)
    assert env.act(CHUNK).observation["video.ego_view"][:, 0, 0, 0].tolist() == [40, 160]


def test_only_what_is_looked_at_is_drawn() -> None:
    env = several(Counting(100))
    env.begin(0)
    shown = env.act(CHUNK).observation["video.ego_view"]
    assert env.unwrapped.drawn == 2  # the first of the episode, and the last of the chunk
    assert shown[0, 0, 0, 0] == 160
    all_rows = several(Counting(100), keep_frames=True)
    all_rows.begin(0)
    all_rows.act(CHUNK)
    assert all_rows.unwrapped.drawn == 5


def test_the_time_limit_counts_low_level_steps_and_its_last_picture_is_drawn() -> None:
    env = several(TimeLimit(Counting(100), 6), limit=6)
    env.begin(0)
    assert not env.act(CHUNK).over
    step = env.act(CHUNK)
    assert (step.over, step.steps, step.rows) == (True, 6, 2)
    assert step.observation["video.ego_view"][0, 0, 0, 0] == 240


def test_only_what_the_data_config_names_is_seen_and_an_instruction_has_its_name() -> None:
    observation, _ = several(Counting()).begin(0)
    assert sorted(observation) == ["annotation.human.task_description", "state.part", "video.ego_view"]
    assert observation["annotation.human.task_description"] == "count"


@pytest.mark.parametrize(("kind", "key"), [("video", "video.wrist"), ("state", "state.leg")])
def test_an_environment_without_what_the_policy_wants_is_refused_with_both_sides(kind: str, key: str) -> None:
    config = {**CONFIG, kind: ModalityConfig([0], [key])}
    with pytest.raises(ObservationError, match=rf"shows no {key}\n.*it shows .*video\.behind.*wants .*{key}"):
        several(Counting(), config)


def test_spaces_that_are_no_dicts_are_refused() -> None:
    env = Counting()
    env.action_space = spaces.Discrete(3)
    with pytest.raises(ObservationError, match=r"takes Discrete\(3\)"):
        several(env)
    env.observation_space = spaces.Box(-1, 1, (2,))
    with pytest.raises(ObservationError, match="observes a Box without keys"):
        several(env)


def test_an_environment_that_keeps_its_success_to_itself_is_refused() -> None:
    env = several(Silent())
    env.begin(0)
    with pytest.raises(ObservationError, match="does not say whether it succeeded"):
        env.act(CHUNK)


def test_an_expert_that_is_not_there_is_refused() -> None:
    env = several(Counting())
    env.begin(0)
    assert not env.has_expert()
    with pytest.raises(ObservationError, match="no expert"):
        env.act(None)
