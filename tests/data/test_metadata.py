from __future__ import annotations

import json

import numpy as np
import pytest

from gr00t_trt.data import DatasetMetadata, embodiment_index, read_metadata
from gr00t_trt.errors import CheckpointError, PlanError


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
    with pytest.raises(PlanError, match=r"--embodiment_tag: unknown value 'gr2'[\s\S]*did you mean gr1"):
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
        (lambda e: e["modalities"]["state"]["left_arm"].update(shape=[8]), r"has width 7[\s\S]*declares width 8"),
        (lambda e: e["modalities"]["state"]["left_arm"].update(rotation_type="rpy"), "unknown value 'rpy'"),
        (lambda e: e["statistics"]["state"]["left_arm"].update(min=[float("nan")] * 7), "statistic 'min' holds nan"),
    ],
)
def test_malformed_entries(metadata, change, words):
    entry = json.loads(json.dumps(metadata.to_dict()))
    change(entry)
    with pytest.raises(CheckpointError, match=words):
        DatasetMetadata.from_dict("gr1", entry)


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
