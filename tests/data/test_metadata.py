from __future__ import annotations

import json
import re

import numpy as np
import pytest

from gr00t_trt.data import DatasetMetadata, LeRobotDataset, Statistics, data_config, embodiment_index, read_metadata
from gr00t_trt.data.metadata import impossible
from gr00t_trt.errors import CheckpointError, PlanError

CONFIG = data_config("fourier_gr1_arms_only")
KEYS = (*CONFIG.video_keys, *CONFIG.state_keys, *CONFIG.action_keys)


def test_round_trip_with_extra_keys_and_other_tags(metadata, tmp_path):
    entry = metadata.to_dict()
    entry["statistics"]["num_trajectories"] = 7
    path = tmp_path / "experiment_cfg" / "metadata.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"gr1": entry, "oxe_droid": {"embodiment_tag": "oxe_droid"}}))
    read = read_metadata(tmp_path, "gr1")
    assert read.extra == {"num_trajectories": 7}
    assert read.to_dict() == entry
    read.write(tmp_path)
    content = json.loads(path.read_text())
    assert content["gr1"] == entry
    assert content["oxe_droid"] == {"embodiment_tag": "oxe_droid"}
    assert path.read_text().startswith('{\n    "gr1"'), "indented by four"
    np.testing.assert_array_equal(read.statistics("state.left_arm").q99, metadata.statistics("state.left_arm").q99)


def test_all_parts_are_there_and_resolution_is_width_first(metadata):
    entry = metadata.to_dict()
    assert entry["modalities"]["video"] == {"ego_view": {"resolution": [64, 48], "channels": 3, "fps": 20.0}}
    assert entry["modalities"]["state"]["left_arm"] == {
        "absolute": True,
        "rotation_type": None,
        "shape": [7],
        "continuous": True,
    }
    assert entry["embodiment_tag"] == "gr1"


def test_lookups_offer_the_nearest_key(metadata):
    with pytest.raises(PlanError, match=r"'state.left_arms'[\s\S]*did you mean state.left_arm\?"):
        metadata.part("state.left_arms")
    with pytest.raises(PlanError, match=r"'video.egoview'[\s\S]*did you mean video.ego_view"):
        metadata.view("video.egoview")


def test_absent_tag(metadata, tmp_path):
    metadata.write(tmp_path)
    with pytest.raises(PlanError, match=r"--embodiment_tag: no statistics for 'gr2'[\s\S]*did you mean gr1"):
        read_metadata(tmp_path, "gr2")


def break_(*path):
    def change(entry):
        for name in path[:-1]:
            entry = entry[name]
        del entry[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_("statistics"), r"gr1\.statistics is missing"),
        (break_("modalities", "video"), r"gr1\.modalities\.video is missing"),
        (break_("statistics", "state", "left_arm", "q99"), r"state\.left_arm: statistic 'q99' is missing"),
        (break_("modalities", "video", "ego_view", "resolution"), r"video\.ego_view is malformed"),
        (break_("modalities", "action", "left_arm", "shape"), r"action\.left_arm is malformed"),
        (lambda e: e["statistics"]["state"]["left_arm"]["min"].pop(), "statistics differ in length"),
        (lambda e: e["modalities"]["state"]["left_arm"].update(shape=[8]), r"are 7 wide[\s\S]*declares width 8"),
        (lambda e: e["modalities"]["state"]["left_arm"].update(rotation_type="rpy"), "unknown value 'rpy'"),
        (
            lambda e: e["statistics"]["state"]["left_arm"].update(min=[float("nan")] * 7),
            "left_arm: min is nan at index 0",
        ),
        (lambda e: e.update(embodiment_tag="oxe_droid"), "the entry 'gr1' says that its embodiment_tag is 'oxe_droid'"),
    ],
)
def test_malformed_entries(metadata, change, words):
    entry = json.loads(json.dumps(metadata.to_dict()))
    change(entry)
    with pytest.raises(CheckpointError, match=words):
        DatasetMetadata.from_dict("gr1", entry).check(KEYS)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"min": [0, 2], "max": [1, 1]}, "min 2 exceeds max 1 at index 1"),
        ({"q01": [0.5, 0], "q99": [0.2, 1]}, "q01 0.5 exceeds q99 0.2 at index 0"),
        ({"std": [0.1, -0.1]}, "std -0.1 is negative at index 1"),
        ({"max": [1, 1e300]}, r"max is 1e\+300 at index 1"),
        ({"mean": [np.inf, 0]}, "mean is inf at index 0"),
        ({"min": [1, 0]}, "min and max are both 1, but std is 0.1 at index 0"),
        ({"q01": [0.5, 0], "q99": [0.5, 1], "std": [0.3, 0.1]}, "q01 and q99 are both 0.5, but std is 0.3 at index 0"),
    ],
)
def test_impossible_statistics(values, words):
    good = {"min": [0, 0], "max": [1, 1], "mean": [0.5, 0.5], "std": [0.1, 0.1], "q01": [0, 0], "q99": [1, 1]}
    assert impossible(Statistics(**{k: np.array(v, np.float64) for k, v in good.items()})) is None
    given = Statistics(**{k: np.array(v, np.float64) for k, v in {**good, **values}.items()})
    assert re.fullmatch(words, impossible(given))


@pytest.mark.parametrize(
    "change",
    [
        lambda e: e["statistics"]["state"]["left_leg"].update(min=[float("nan")] * 6),
        lambda e: e["statistics"]["state"]["left_leg"].pop("q99"),
        lambda e: e["modalities"]["action"].update(other={"shape": "wide"}),
        lambda e: e["modalities"]["video"].update(wrist=None),
    ],
)
def test_entries_that_nobody_needs_decide_nothing(metadata, change):
    entry = json.loads(json.dumps(metadata.to_dict()))
    for section in ("statistics", "modalities"):
        entry[section]["state"]["left_leg"] = json.loads(json.dumps(entry[section]["state"]["left_hand"]))
    change(entry)
    DatasetMetadata.from_dict("gr1", entry).check(KEYS)


def test_a_constant_column_of_a_real_dataset_is_possible(demo):
    metadata = LeRobotDataset(demo, CONFIG.modality_config()).metadata("gr1")
    metadata.check([f"{s}.{name}" for s in ("state", "action") for name in getattr(metadata, s)])


def test_missing_and_invalid_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"experiment_cfg/metadata\.json: no such file"):
        read_metadata(tmp_path, "gr1")
    path = tmp_path / "metadata.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        read_metadata(path, "gr1")
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="holds list"):
        read_metadata(path, "gr1")


def test_embodiment_tags():
    indices = {"gr1": 24, "oxe_droid": 17, "agibot_genie1": 26, "new_embodiment": 31}
    assert {tag: embodiment_index(tag) for tag in indices} == indices
    with pytest.raises(PlanError, match=r"--embodiment_tag: unknown value 'gr_1'[\s\S]*did you mean gr1"):
        embodiment_index("gr_1")
