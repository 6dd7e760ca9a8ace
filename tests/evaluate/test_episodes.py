"""Replaying recordings: errors known in advance, against rows read with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest

from gr00t_trt.data import (
    SPECIAL_TOKENS,
    DataConfig,
    LeRobotDataset,
    Prompter,
    data_config,
    synthetic_dataset,
    synthetic_tokenizer,
)
from gr00t_trt.data.transforms import ComposedModalityTransform, GR00TTransform
from gr00t_trt.data.video_transforms import VideoResize
from gr00t_trt.errors import AccuracyError, DatasetError, ObservationError, PlanError
from gr00t_trt.evaluate.episodes import (
    Prediction,
    action_keys,
    choose_horizon,
    closeness,
    difference,
    read_recording,
    replay,
    score,
)
from gr00t_trt.evaluate.local import LocalPolicy
from gr00t_trt.model import load_model
from gr00t_trt.policy.policy import Gr00tPolicy

MODALITIES = data_config("fourier_gr1_arms_only").modality_config()
PARTS = {"left_arm": 7, "right_arm": 7, "left_hand": 6, "right_hand": 6}


@pytest.fixture(scope="module")
def dataset() -> LeRobotDataset:
    return LeRobotDataset(synthetic_dataset(), MODALITIES)


class Answers:
    """Gives what `make(number of the call)` says, and keeps what it was shown."""

    def __init__(self, make):
        self.make, self.seen = make, []

    def get_action(self, observation):
        self.seen.append(observation)
        return self.make(len(self.seen) - 1)

    def get_modality_config(self):
        return MODALITIES


def repeats(dataset: LeRobotDataset, trajectory: int, horizon: int, off: float = 0.0) -> Answers:
    def make(number: int):
        step = dataset.step(trajectory, number * horizon)
        return {key: value + off for key, value in step.items() if key.startswith("action.")}

    return Answers(make)


def run(policy, dataset, recording, horizon=16):
    return replay(policy, dataset, recording, horizon=horizon, source="test", advance=lambda done, total: None)


def test_recorded_actions_are_the_rows_of_the_parquet_file(demo: Path) -> None:
    recording = read_recording(LeRobotDataset(demo, MODALITIES), 1, steps=150, horizon=16)
    table = pyarrow.parquet.read_table(demo / "data/chunk-000/episode_000001.parquet")
    rows = np.stack(table.column("action").to_pylist())[:150]
    np.testing.assert_array_equal(recording.actions["action.right_arm"], rows[:, 22:29])
    np.testing.assert_array_equal(recording.actions["action.left_hand"], rows[:, 7:13])
    assert recording.queries == tuple(range(0, 150, 16))
    tasks = [json.loads(line)["task"] for line in (demo / "meta/tasks.jsonl").read_text().splitlines()]
    column = table.column("annotation.human.action.task_description").to_pylist()
    assert recording.instruction == tasks[column[0]]


@pytest.mark.parametrize(("horizon", "queries"), [(16, (0, 16)), (12, (0, 12, 24)), (1, tuple(range(32)))])
def test_an_episode_is_evaluated_to_its_end_and_no_further(dataset, horizon, queries) -> None:
    recording = read_recording(dataset, 0, steps=150, horizon=horizon)
    assert (len(recording), recording.queries) == (32, queries)
    prediction = run(repeats(dataset, 0, horizon), dataset, recording, horizon)
    assert len(prediction.latency_ms) == len(queries)
    found = score(recording, prediction, list(recording.actions))
    assert found.mse == 0.0


def test_the_error_is_in_physical_units_and_split_by_dimension(dataset) -> None:
    recording = read_recording(dataset, 1, steps=20, horizon=16)
    assert len(recording) == 20
    prediction = run(repeats(dataset, 1, 16, off=0.5), dataset, recording)
    found = score(recording, prediction, ["action.left_arm", "action.left_hand"])
    assert found.mse == pytest.approx(0.25)
    assert {key: value.shape for key, value in found.per_dimension.items()} == {
        "action.left_arm": (7,),
        "action.left_hand": (6,),
    }


def test_a_policy_is_not_shown_the_recorded_actions(dataset) -> None:
    policy = repeats(dataset, 0, 16)
    run(policy, dataset, read_recording(dataset, 0, steps=32, horizon=16))
    for observation in policy.seen:
        assert not any(key.startswith("action.") for key in observation)
        assert observation["video.ego_view"].shape == (1, 256, 256, 3)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ({p: np.full((16, w), np.nan) for p, w in PARTS.items()}, AccuracyError, r"holds nan at \[0, 0\]"),
        ({p: np.zeros((16, w)) for p, w in PARTS.items() if p != "right_hand"}, ObservationError, "right_hand is miss"),
        ({p: np.zeros((4, w)) for p, w in PARTS.items()}, ObservationError, r"has shape \(4, 7\)"),
        ({p: np.zeros((16, 3)) for p, w in PARTS.items()}, ObservationError, r"has shape \(16, 3\)"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(dataset, answer, error, words) -> None:
    policy = Answers(lambda _: {f"action.{part}": value for part, value in answer.items()})
    with pytest.raises(error, match=words):
        run(policy, dataset, read_recording(dataset, 0, steps=32, horizon=16))


def test_names_and_horizons_that_do_not_exist_are_refused(dataset) -> None:
    with pytest.raises(PlanError, match="did you mean right_arm"):
        action_keys(MODALITIES, ["right_arms"])
    for wanted in (0, 17):
        with pytest.raises(PlanError, match="1 to 16"):
            choose_horizon(MODALITIES, wanted)
    sparse = {"action": SimpleNamespace(delta_indices=[0, 2, 4], modality_keys=[])}
    with pytest.raises(PlanError, match="offsets"):
        choose_horizon(sparse, None)
    with pytest.raises(DatasetError, match="no trajectory 7"):
        read_recording(dataset, 7, steps=4, horizon=4)


def test_the_difference_of_two_policies_is_told_per_key_and_against_its_range(dataset) -> None:
    recording = read_recording(dataset, 0, steps=32, horizon=16)
    first = Prediction(recording.actions, (1.0,))
    moved = {**recording.actions, "action.left_arm": recording.actions["action.left_arm"] + 0.1}
    span = {key: np.full(value.shape[1], 2.0) for key, value in recording.actions.items()}
    span["action.right_hand"][:] = 0.0
    found = difference([first], [Prediction(moved, (1.0,))], span)
    assert found["action.left_arm"] == pytest.approx({"max_abs": 0.1, "mean_abs": 0.1, "max_percent_of_range": 5.0})
    assert found["action.right_arm"] == {"max_abs": 0.0, "mean_abs": 0.0, "max_percent_of_range": 0.0}
    assert found["action.right_hand"]["max_percent_of_range"] is None


def test_how_close_two_policies_are_is_told_on_the_models_own_scale() -> None:
    low, high = np.array([0.0, 10.0, 5.0]), np.array([2.0, 30.0, 5.0])  # the last one never moves
    first = Prediction({"action.arm": np.array([[2.0, 30.0, 5.0], [0.0, 20.0, 5.0]])}, (1.0,))  # 1, 1, -1, 0
    second = Prediction({"action.arm": np.array([[2.0, 30.0, 7.0], [0.0, 24.0, 5.0]])}, (1.0,))  # 1, 1, -1, 0.4
    found = closeness([first], [second], {"action.arm": (low, high)})
    assert found["sqnr_db"] == pytest.approx(10 * np.log10(3 / 0.16))
    assert found["cosine"] == pytest.approx(3 / np.sqrt(3 * 3.16))
    assert closeness([first], [first], {"action.arm": (low, high)}) == {"cosine": pytest.approx(1), "sqnr_db": None}
    assert closeness([first], [second], {"action.arm": (high, high)}) == {"cosine": None, "sqnr_db": None}


class ToyConfig(DataConfig):
    """One arm: what the golden toy checkpoint, with 7 action and 9 state values, has room for."""

    video_keys = ("video.ego_view",)
    state_keys = ("state.right_arm",)
    action_keys = ("action.right_arm",)
    language_keys = ("annotation.human.action.task_description",)
    action_indices = tuple(range(6))

    def transform(self) -> ComposedModalityTransform:
        sized = []
        for own in super().transform().transforms:
            if isinstance(own, VideoResize):
                own = VideoResize(apply_to=self.video_keys, height=56, width=56, interpolation="linear")
            elif isinstance(own, GR00TTransform):
                own = GR00TTransform(state_horizon=1, action_horizon=6, max_state_dim=9, max_action_dim=7)
            sized.append(own)
        return ComposedModalityTransform(transforms=sized)


def test_real_weights_on_real_episodes_repeat_with_their_seed(golden: Path, demo: Path) -> None:
    config = ToyConfig()
    real = LeRobotDataset(demo, config.modality_config())
    model = load_model(golden / "checkpoint")
    sizes = model.config
    others = [name for name in SPECIAL_TOKENS if name != "<IMG_CONTEXT>"]
    tokens = {"<IMG_CONTEXT>": 500, **{name: 501 + i for i, name in enumerate(others)}}
    prompter = Prompter(
        synthetic_tokenizer(tokens, sizes.vocab_size),
        tokens,
        image_size=sizes.image_size,
        tokens_per_image=sizes.tokens_per_image,
    )
    policy = LocalPolicy(Gr00tPolicy(model, config, real.metadata("gr1"), prompter), "golden", seed=3)
    recording = read_recording(real, 2, steps=20, horizon=6)
    first = run(policy, real, recording, 6)
    again = run(policy, real, recording, 6)
    policy.restart()
    repeated = run(policy, real, recording, 6)
    key = "action.right_arm"
    np.testing.assert_array_equal(first.actions[key], repeated.actions[key])
    assert not np.array_equal(first.actions[key], again.actions[key])
    assert 0.0 < score(recording, first, [key]).mse < 100.0
