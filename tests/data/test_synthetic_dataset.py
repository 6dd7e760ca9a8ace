from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest

from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset, write_synthetic_dataset
from gr00t_trt.data.parquet import column_statistics
from gr00t_trt.errors import DatasetError, PlanError

SMALL = {"episodes": 1, "length": 6, "resolution": (32, 32)}


def test_shipped_statistics_are_those_of_the_rows(synthetic):
    shipped = json.loads((synthetic / "meta/stats.json").read_text())
    computed = column_statistics(sorted((synthetic / "data").glob("*/*.parquet")))
    assert shipped == {name: value.to_dict() for name, value in computed.items()}


def test_a_data_config_in_a_file_of_ones_own(cache, tmp_path):
    source = tmp_path / "deep" / "arm.py"
    source.parent.mkdir()
    source.write_text("from gr00t_trt.data.embodiments import So100DataConfig as Arm\n")
    folder = synthetic_dataset(cache, data_config=f"{source}:Arm", **SMALL)
    assert folder.parent == cache
    assert len(LeRobotDataset(folder, data_config("so100").modality_config())) == 6


def test_scenes_and_joints_move_smoothly_and_differ_between_views(cache):
    config = data_config("so100_dualcam")
    folder = synthetic_dataset(cache, data_config="so100_dualcam", episodes=1, length=18, resolution=(64, 48))
    dataset = LeRobotDataset(folder, config.modality_config())
    frames = np.stack([dataset[i]["video.front"][0] for i in range(18)]).astype(int)
    assert (abs(np.diff(frames, axis=0)).max(axis=(1, 2, 3)) > 20).all()
    assert abs(frames[0] - dataset[0]["video.wrist"][0]).mean() > 5
    state = dataset.column(0, "observation.state")
    assert 0 < abs(np.diff(state, axis=0)).max() < 0.5
    np.testing.assert_allclose(dataset.column(0, "action")[:-1], state[1:])


def test_the_seed_decides(tmp_path):
    def rows(name, seed):
        folder = write_synthetic_dataset(tmp_path / name, data_config="so100", seed=seed, **SMALL)
        return LeRobotDataset(folder, data_config("so100").modality_config()).column(0, "action")

    np.testing.assert_array_equal(rows("a", 1), rows("b", 1))
    assert (rows("a", 1) != rows("c", 2)).any()


def test_episodes_of_a_second_chunk_are_where_the_reader_looks(tmp_path, monkeypatch):
    for module in ("synthetic", "writer"):
        monkeypatch.setattr(f"gr00t_trt.data.{module}.CHUNK", 1)
    folder = write_synthetic_dataset(tmp_path, data_config="so100", **{**SMALL, "episodes": 2})
    dataset = LeRobotDataset(folder, data_config("so100").modality_config())
    assert all(path.is_file() and "chunk-001" in path.parts for path in dataset.files(1))
    assert json.loads((folder / "meta/info.json").read_text())["total_chunks"] == 2


def test_quaternions_have_unit_length(tmp_path):
    folder = write_synthetic_dataset(tmp_path, data_config="bimanual_panda_hand", **SMALL)
    step = LeRobotDataset(folder, data_config("bimanual_panda_hand").modality_config())[0]
    np.testing.assert_allclose(np.linalg.norm(step["state.left_arm_eef_quat"], axis=-1), 1)


def test_reused_when_complete_and_repaired_when_not(tmp_path):
    folder = synthetic_dataset(tmp_path, data_config="so100", **SMALL)
    before = (folder / "meta/info.json").stat().st_mtime_ns
    assert synthetic_dataset(tmp_path, data_config="so100", **SMALL) == folder
    assert (folder / "meta/info.json").stat().st_mtime_ns == before
    next(folder.rglob("*.mp4")).unlink()
    synthetic_dataset(tmp_path, data_config="so100", **SMALL)
    assert list(folder.rglob("*.mp4"))
    assert list(tmp_path.iterdir()) == [folder], "nothing is left beside it"


@pytest.mark.parametrize("damaged", [False, True])
def test_several_at_once(tmp_path, damaged):
    results = []
    if damaged:
        next(synthetic_dataset(tmp_path, data_config="so100", **SMALL).rglob("*.parquet")).unlink()
    threads = [
        threading.Thread(target=lambda: results.append(synthetic_dataset(tmp_path, data_config="so100", **SMALL)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert set(tmp_path.iterdir()) == set(results)
    assert LeRobotDataset(results[0], data_config("so100").modality_config())[0]["state.gripper"].shape == (1, 1)


def test_a_failed_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("gr00t_trt.data.synthetic.write_video", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic_dataset(tmp_path, data_config="so100", **SMALL)
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)


def test_sizes_that_cannot_be_written(tmp_path):
    with pytest.raises(PlanError, match=r"0 episodes of 6 rows"):
        write_synthetic_dataset(tmp_path, episodes=0, length=6)
    with pytest.raises(PlanError, match=r"at 33 x 32"):
        write_synthetic_dataset(tmp_path, resolution=(33, 32))
    with pytest.raises(PlanError, match="unknown value 'so10'"):
        write_synthetic_dataset(tmp_path, data_config="so10")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no user ids here")
def test_it_is_made_for_this_user_alone_and_nobody_elses_is_taken(tmp_path):
    cache = tmp_path / "cache"
    folder = synthetic_dataset(cache, data_config="so100", **SMALL)
    assert [path.stat().st_mode & 0o777 for path in (cache, folder)] == [0o700, 0o700]
    for path in (folder, cache):
        path.chmod(0o777)
        with pytest.raises(DatasetError, match="others may write to it"):
            synthetic_dataset(cache, data_config="so100", **SMALL)
        path.chmod(0o755)
    assert synthetic_dataset(cache, data_config="so100", **SMALL) == folder
