from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from gr00t_trt.data import DatasetMetadata, LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.tools.metadata.program import main

CONFIG = "so100"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_dataset(tmp_path_factory.mktemp("cache"), data_config=CONFIG, length=8, resolution=(64, 48))


def test_it_writes_what_a_policy_reads(recorded, tmp_path, capsys):
    out = tmp_path / "experiment_cfg" / "metadata.json"
    assert main([str(recorded), "--data-config", CONFIG, "--out", str(out)]) == 0
    expected = LeRobotDataset(recorded, data_config(CONFIG).modality_config()).metadata("new_embodiment")
    assert DatasetMetadata.load(tmp_path, "new_embodiment").to_dict() == expected.to_dict()
    said = capsys.readouterr()
    assert "video.webcam: 64 x 48 at 20 frames per second" in said.out
    assert f"are those of {recorded}/meta/stats.json" in said.out.replace("\n", "")
    assert f"written: {out}, entry new_embodiment" in said.err
    for part in ("state.single_arm", "state.gripper", "action.single_arm", "action.gripper"):
        assert part in said.out


def test_entries_are_merged_by_tag_and_not_overwritten(recorded, tmp_path, capsys):
    out = tmp_path / "metadata.json"
    out.write_text(json.dumps({"gr1": {"kept": 1}}))
    arguments = [str(recorded), "--out", str(out)]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "has an entry new_embodiment\n  add --force" in capsys.readouterr().err
    before = out.read_text()
    out.write_text(before.replace('"absolute": true', '"absolute": false'))
    assert main([*arguments, "--force"]) == 0
    assert out.read_text() == before
    assert list(json.loads(before)) == ["gr1", "new_embodiment"]


def test_what_is_computed_is_said(recorded, tmp_path, capsys):
    folder = shutil.copytree(recorded, tmp_path / "data")
    (folder / "meta/stats.json").unlink()
    (folder / "data/chunk-000/episode_000001.parquet").unlink()
    assert main([str(folder), "--data_config", CONFIG]) == 0
    assert "1 of 2 parquet files being here" in capsys.readouterr().out


def test_constant_elements_are_named(demo, capsys):
    assert main([str(demo), "--embodiment_tag", "gr1"]) == 0
    lines = {
        line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith(("state", "act"))
    }
    assert len(lines) == 16
    assert lines["state.left_leg"].rstrip().endswith("yes")
    assert lines["action.right_hand"].rstrip().endswith("elements 5")
    assert lines["action.right_arm"].rstrip().endswith("no")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere: no such dataset folder"),
        ([], "DATASET"),
        (["{data}", "--data_config", "fourier_gr1_arms_only"], "no video key 'video.ego_view'"),
        (["{data}", "--embodiment_tag", "g1"], "unknown value 'g1'"),
        (["{data}", "--out", "checkpoint"], "experiment_cfg/metadata.json"),
        (["{data}", "--out", "{data}/meta/tasks.jsonl.json/x.json"], "cannot be written"),
        (["{data}", "--out", "{data}/meta/list.json"], "holds list"),
    ],
)
def test_bad_input_is_one_error(recorded, tmp_path, capsys, arguments, words):
    folder = shutil.copytree(recorded, tmp_path / "data")
    (folder / "meta/tasks.jsonl.json").write_text("{}")
    (folder / "meta/list.json").write_text("[]")
    assert main([text.replace("{data}", str(folder)) for text in arguments]) == 2
    said = capsys.readouterr().err.replace("\n", " ")
    assert words in said
    assert "Traceback" not in said
