"""Files for the Rerun viewer, written by the three programs and read back with the SDK."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from rrd import curve, read

from gr00t_trt.errors import PlanError, RecordError, UsageError
from gr00t_trt.evaluate.program import main as evaluate
from gr00t_trt.evaluate.timeline import Moment, Timeline
from gr00t_trt.rollout.program import main as rollout
from gr00t_trt.simulate.program import main as simulate

LOCAL = ["--model_path", "synthetic"]


@pytest.fixture
def rerun():
    return pytest.importorskip("rerun", reason="rerun-sdk is not installed: pip install 'gr00t_trt[rerun]'")


def test_an_evaluation_holds_what_the_dataset_and_the_record_hold(rerun, demo: Path, tmp_path: Path) -> None:
    path, record = tmp_path / "new" / "e.rrd", tmp_path / "r.json"
    argv = [*LOCAL, "--dataset_path", str(demo), "--steps", "40", "--rerun", str(path), "--record", str(record)]
    assert evaluate(argv) == 0
    found = read(path)
    rows = np.stack(
        pyarrow.parquet.read_table(demo / "data/chunk-000/episode_000000.parquet").column("action").to_pylist()
    )
    recorded = found["/trajectory 0/recorded/right_arm"]
    np.testing.assert_array_equal(curve(recorded), rows[:40, 22:29])
    assert [entry["step"] for entry in recorded] == list(range(40))
    np.testing.assert_allclose([entry["time"] for entry in recorded], np.arange(40) / 20)
    candidate = json.loads(record.read_text())["evaluation"]["candidates"][0]
    latencies = curve(found["/trajectory 0/eager fp32/latency_ms"])[:, 0]
    np.testing.assert_allclose(latencies, candidate["latency_ms"]["samples"])
    predicted = curve(found["/trajectory 0/eager fp32/predicted/right_arm"])
    error = candidate["trajectories"][0]["per_dimension_mse"]["action.right_arm"]
    np.testing.assert_allclose(np.square(predicted - rows[:40, 22:29]).mean(axis=0), error)
    shapes = [entry["Tensor:data"][0]["shape"] for entry in found["/trajectory 0/eager fp32/chunk/right_arm"]]
    assert shapes == [[16, 7], [16, 7], [8, 7]]
    frames = found["/trajectory 0/frames/ego_view"]
    assert [entry["step"] for entry in frames] == [0, 16, 32]
    assert picture(frames[0]).shape == (256, 256, 3)


def picture(entry: dict) -> np.ndarray:
    from PIL import Image

    (blob,) = entry["EncodedImage:blob"]
    return np.asarray(Image.open(io.BytesIO(bytes(blob))))


def test_a_simulation_has_a_branch_for_each_environment(rerun, tmp_path: Path) -> None:
    path = tmp_path / "s.rrd"
    argv = [*LOCAL, "--n_episodes", "1", "--n_action_steps", "8", "--max_episode_steps", "24", "--rerun"]
    assert simulate([*argv, str(path), "--record", str(tmp_path / "r.json")]) == 0
    found = read(path)
    played = json.loads((tmp_path / "r.json").read_text())["simulation"]["played"][0]
    queries = played["episodes"][0]["queries"]
    assert [entry["step"] for entry in found["/environment 0/latency_ms"]] == [8 * i for i in range(queries)]
    assert curve(found["/environment 0/predicted/single_arm"]).shape == (8 * queries, 5)
    assert curve(found["/environment 0/state/single_arm"]).shape == (queries, 5)
    assert picture(found["/environment 0/frames/webcam"][0]).shape == (256, 256, 3)


def test_what_an_expert_does_is_in_its_branch(rerun, tmp_path: Path) -> None:
    path = tmp_path / "s.rrd"
    argv = ["--scripted", "--n_episodes", "1", "--n_action_steps", "8", "--max_episode_steps", "12", "--rerun"]
    assert simulate([*argv, str(path), "--record", str(tmp_path / "r.json")]) == 0
    found = read(path)
    assert [entry["step"] for entry in found["/environment 0/sent/gripper"]] == list(range(12))
    assert curve(found["/environment 0/state/single_arm"]).shape == (2, 5)


def test_a_rollout_holds_what_was_sent_in_both_ways_of_executing(rerun, tmp_path: Path) -> None:
    path = tmp_path / "r.rrd"
    argv = [*LOCAL, "--actions_to_execute", "2", "--compare_overlap", "--warmup", "0", "--rerun", str(path)]
    assert rollout([*argv, "--record", str(tmp_path / "r.json")]) == 0
    found, modes = read(path), json.loads((tmp_path / "r.json").read_text())["rollout"]["modes"]
    for name, mode in modes.items():
        assert curve(found[f"/{name}/sent/single_arm"]).shape == (16, 5)
        assert len(found[f"/{name}/latency_ms"]) == mode["queries"]
        assert picture(found[f"/{name}/frames/front"][0]).ndim == 3
    sent, planned = (curve(found[f"/synchronous/{what}/single_arm"]) for what in ("sent", "predicted"))
    np.testing.assert_array_equal(sent, planned)  # one after the other, every row that was planned was sent


def test_what_cannot_work_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(UsageError, match=r"name it .*a\.rrd"):
        Timeline(tmp_path / "a.txt", "test")
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(PlanError, match=r"rerun-sdk: not installed\n.*install"):
        Timeline(tmp_path / "a.rrd", "test")
    assert evaluate([*LOCAL, "--dataset_path", "synthetic", "--rerun", str(tmp_path / "a.rrd")]) == 2
    assert "--rerun needs rerun-sdk" in capsys.readouterr().err


def test_what_could_not_be_written_is_told_at_the_end(rerun, tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "a.rrd", "test")
    timeline.value(Moment(0.0), ("curve",), np.zeros((2, 2)))
    timeline.shown(Moment(1.0), {"video.front": np.zeros((1, 4, 4, 7), np.uint8)})
    with pytest.raises(RecordError, match="cannot be written"):
        timeline.close()
    with pytest.raises(RecordError):
        Timeline(tmp_path / "a.rrd" / "b.rrd", "test")
