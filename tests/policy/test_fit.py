"""What is refused when a policy is made, and what a policy notices while it answers."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from gr00t_trt.data import (
    ComposedModalityTransform,
    ConcatTransform,
    DataConfig,
    DatasetMetadata,
    GR00TTransform,
    Processing,
    StateActionSinCosTransform,
    data_config,
)
from gr00t_trt.errors import AccuracyError, CheckpointError, ObservationError, PlanError
from gr00t_trt.model import load_config
from gr00t_trt.policy import load_policy
from gr00t_trt.policy.fit import StateRanges, fitted

GEOMETRY = load_config("synthetic")
CONFIG = data_config("fourier_gr1_arms_only")


@pytest.fixture(scope="module")
def policy():
    return load_policy("synthetic")


@pytest.fixture(scope="module")
def metadata(policy):
    return policy.metadata


def changed(metadata: DatasetMetadata, section: str, part: str, **values) -> DatasetMetadata:
    entry = copy.deepcopy(metadata.to_dict())
    entry["statistics"][section][part].update(values)
    return DatasetMetadata.from_dict("gr1", entry, "changed.json")


@pytest.mark.parametrize("section", ["state", "action"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min": [float("nan")] * 7}, "min is nan at index 0"),
        ({"max": [-9.0] * 7}, "exceeds max -9 at index 0"),
        ({"std": [-1.0] * 7}, "std -1 is negative"),
        ({"q99": [1e300] * 7}, r"q99 is 1e\+300"),
    ],
)
def test_impossible_statistics_of_a_needed_part(metadata, section, values, words):
    with pytest.raises(CheckpointError, match=rf"changed\.json: statistics of {section}\.left_arm: [\s\S]*{words}"):
        fitted(CONFIG, changed(metadata, section, "left_arm", **values), GEOMETRY)


def test_the_weights_of_another_robot(metadata):
    for tag, ok in (("gr1", True), ("new_embodiment", True), ("oxe_droid", False), ("agibot_genie1", False)):
        own = replace(metadata, embodiment_tag=tag)
        if ok:
            fitted(CONFIG, own, GEOMETRY)
            continue
        with pytest.raises(PlanError, match=f"--embodiment_tag {tag} with the data config fourier_gr1_arms_only"):
            fitted(CONFIG, own, GEOMETRY)


class Arms(type(CONFIG)):
    """The built-in config with one thing changed by each test."""


def with_actions(**processing) -> DataConfig:
    config = Arms()
    config.action_processing = Processing(**processing)
    return config


def test_actions_whose_rotation_has_another_width(metadata):
    turned = {"left_hand": replace(metadata.action["left_hand"], rotation_type="rotation_6d")}
    own = replace(metadata, action={**metadata.action, **turned})
    with pytest.raises(PlanError, match=r"action\.left_hand: rotation_6d, 6 wide, converted to quaternion, 4 wide"):
        fitted(with_actions(mode=None, rotations={"left_hand": "quaternion"}), own, GEOMETRY)


def test_actions_that_have_no_inverse(metadata):
    with pytest.raises(PlanError, match=r"no inverse: [\s\S]*scale has no inverse"):
        fitted(with_actions(mode="scale"), metadata, GEOMETRY)


class Custom:
    """A user's own data config; `steps` are the transforms between video and the model's inputs."""

    def __init__(self, *steps, state_keys=CONFIG.state_keys):
        self.steps, self.state_keys = steps, state_keys

    def modality_config(self):
        return {**CONFIG.modality_config(), "state": replace_keys(CONFIG.modality_config()["state"], self.state_keys)}

    def transform(self):
        return ComposedModalityTransform([*CONFIG.transform().transforms[:5], *self.steps])


def replace_keys(config, keys):
    return replace(config, modality_keys=list(keys))


def test_an_action_key_that_the_inverse_forgets(metadata):
    concat = ConcatTransform((), CONFIG.video_keys, CONFIG.state_keys, CONFIG.action_keys[:3])
    with pytest.raises(PlanError, match=r"the inverse of the data config's transforms gives action\.left_arm, "):
        fitted(Custom(concat, GR00TTransform()), metadata, GEOMETRY)


def test_states_that_would_not_reach_the_model(metadata):
    concat = ConcatTransform((), CONFIG.video_keys, CONFIG.state_keys, CONFIG.action_keys)
    twice = [StateActionSinCosTransform(CONFIG.state_keys)]
    with pytest.raises(PlanError, match="state is 52 wide: the last 2 values would never reach the model"):
        fitted(Custom(*twice, concat, GR00TTransform(max_state_dim=50)), metadata, GEOMETRY)
    with pytest.raises(PlanError, match="makes states 60 wide, the model takes 64"):
        fitted(Custom(*twice, concat, GR00TTransform(max_state_dim=60)), metadata, GEOMETRY)


def test_degrees_for_radians_are_counted_and_said_once(policy, caplog):
    example = policy.example()
    ranges = StateRanges(CONFIG.state_keys, policy.metadata)
    inside = {key: value[None] for key, value in example.items() if key.startswith("state.")}
    with caplog.at_level(logging.WARNING):
        ranges.look(inside)
        assert not caplog.text
        assert not ranges.notes()
        degrees = {**inside, "state.left_arm": np.rad2deg(inside["state.left_arm"] + 1.0)}
        ranges.look(degrees)
        ranges.look(degrees)
    assert caplog.text.count("state.left_arm[0] is ") == 1
    assert "radians, not degrees" in caplog.text
    words = "2 of 3 observations lie far outside the range that the model was trained on"
    assert ranges.notes() == [("state.left_arm", words)]


def test_joints_that_were_held_still_have_the_range_of_their_part(metadata):
    low, high = metadata.statistics("state.left_arm").min, metadata.statistics("state.left_arm").max
    still = changed(metadata, "state", "left_arm", min=[0.0, *low[1:]], max=[0.0, *high[1:]], std=[0.0] * 7)
    ranges = StateRanges(["state.left_arm"], still)
    ranges.look({"state.left_arm": np.zeros((1, 1, 7)) + 0.01})
    assert not ranges.outside["state.left_arm"]


def test_a_policy_never_gives_nor_takes_what_is_not_finite(policy):
    noise = torch.zeros(1, 16, 32)
    noise[0, 3, 2] = float("nan")
    with pytest.raises(ObservationError, match="noise holds a NaN or an infinity"):
        policy.get_action(policy.example(), noise=noise)
    broken = load_policy("synthetic")
    broken.model.action_head.action_decoder.layer2.b.data[24, 0] = float("inf")
    with pytest.raises(AccuracyError, match=r"the policy's answer: action\.left_arm holds (inf|nan) at \[0, 0\]"):
        broken.get_action(broken.example())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_callers_autocast_does_not_change_an_action(policy, dtype):
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))
    wanted = policy.get_action(policy.example(), noise=noise)
    with torch.autocast("cpu", dtype=dtype):
        found = policy.get_action(policy.example(), noise=noise)
    for key, value in wanted.items():
        np.testing.assert_array_equal(found[key], value)
