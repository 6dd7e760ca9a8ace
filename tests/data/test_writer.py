"""Datasets that are written row by row: read back by our reader and by LeRobot's own, whole or not there at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.data import LeRobotDataset, data_config
from gr00t_trt.data.writer import DatasetWriter
from gr00t_trt.errors import DatasetError

CONFIG = data_config("so100").modality_config()
LENGTHS = {7: 9, 2: 12}
"""Place -> rows, in the order in which they are kept."""
TASKS = {7: "put it down", 2: "pick it up"}


def row(place: int, number: int, size: int = 64) -> tuple[dict, dict]:
    """An observation and an action that tell which row they are."""
    image = np.full((size, size, 3), 20 * number + place, np.uint8)
    image[: size // 2, :, 0] = 255 - image[: size // 2, :, 0]
    state = {"state.single_arm": np.arange(5) + number / 3, "state.gripper": np.array([place])}
    action = {"action.single_arm": np.arange(5) - number / 7, "action.gripper": np.array([number])}
    return {"video.webcam": image, **state, "annotation.human.task_description": TASKS[place]}, action


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Two episodes, open at the same time; a third is dropped."""
    writer = DatasetWriter(tmp_path_factory.mktemp("writer") / "deep" / "set", CONFIG, fps=10, robot="arm")
    episodes = {place: writer.episode() for place in LENGTHS}
    dropped = writer.episode()
    dropped.add(*row(7, 0))
    dropped.drop()
    for place, length in LENGTHS.items():
        for number in range(length):
            episodes[place].add(*row(place, number))
    for place, episode in episodes.items():
        writer.keep(place, episode, TASKS[place], seed=place)
    return writer.close({"simulation": {"environment": "here"}})


def test_every_row_comes_back(written: Path) -> None:
    dataset = LeRobotDataset(written, CONFIG)
    assert [(e.index, e.length) for e in dataset.episodes] == [(0, 12), (1, 9)]
    for index, place in ((0, 2), (1, 7)):
        for number in (0, 5, LENGTHS[place] - 1):
            observation, action = row(place, number)
            found = dataset.step(index, number)
            np.testing.assert_array_equal(found["state.single_arm"][0], np.float32(observation["state.single_arm"]))
            np.testing.assert_array_equal(found["action.single_arm"][0], np.float32(action["action.single_arm"]))
            assert found["annotation.human.task_description"] == [TASKS[place]]
            apart = found["video.webcam"][0].astype(int) - observation["video.webcam"]
            assert abs(apart).mean() < 4


def test_the_meta_folder_is_complete(written: Path) -> None:
    info = json.loads((written / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v2.1", 21, 10)
    assert info["simulation"] == {"environment": "here"}
    assert info["features"]["action"]["names"] == [*(f"single_arm.{i}" for i in range(5)), "gripper.0"]
    episodes = [json.loads(line) for line in (written / "meta/episodes.jsonl").read_text().splitlines()]
    assert [episode["seed"] for episode in episodes] == [2, 7]
    stats = [json.loads(line)["stats"] for line in (written / "meta/episodes_stats.jsonl").read_text().splitlines()]
    pixels = stats[1]["observation.images.webcam"]
    assert np.shape(pixels["mean"]) == (3, 1, 1)
    frames = np.stack([row(7, number)[0]["video.webcam"] for number in range(9)]) / 255
    np.testing.assert_allclose(np.ravel(pixels["mean"]), frames.mean((0, 1, 2)))
    np.testing.assert_allclose(np.ravel(pixels["std"]), frames.std((0, 1, 2)))
    dataset = LeRobotDataset(written, CONFIG)
    metadata = dataset.metadata("new_embodiment")
    assert metadata.action_statistics["gripper"].max == [11.0]
    assert metadata.state_statistics["gripper"].mean == pytest.approx([(12 * 2 + 9 * 7) / 21])
    assert dataset.notes[0].startswith("Statistics of ")


LEROBOT = """
import sys
from pathlib import Path
from lerobot.datasets.v30.convert_dataset_v21_to_v30 import convert_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset
convert_dataset("set", root=Path(sys.argv[1]), push_to_hub=False)
dataset = LeRobotDataset("set", root=Path(sys.argv[1]) / "set", video_backend="pyav")
rows = [dataset[i] for i in (0, 11, 12, 20)]
print(len(dataset), dataset.num_episodes, [r["task"] for r in rows], [int(r["action"][5]) for r in rows])
print([round(float(r["observation.images.webcam"][2].mean()) * 255) for r in rows])
"""


def test_lerobot_reads_it(written: Path, tmp_path: Path) -> None:
    python = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
    if not python:
        pytest.skip("GR00T_TRT_LEROBOT_PYTHON names no interpreter that has lerobot")
    shutil.copytree(written, tmp_path / "set")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    command = [python, "-W", "ignore", "-c", LEROBOT, str(tmp_path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    numbers, pixels = done.stdout.splitlines()[-2:]
    assert numbers == f"21 2 {[TASKS[2]] * 2 + [TASKS[7]] * 2} [0, 11, 0, 8]"
    expected = [20 * number + place for place, number in ((2, 0), (2, 11), (7, 0), (7, 8))]
    np.testing.assert_allclose(json.loads(pixels), expected, atol=3)


def test_nothing_is_there_before_it_is_complete_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "set", CONFIG, fps=10, robot="arm")
    episode = writer.episode()
    episode.add(*row(2, 0))
    writer.keep(0, episode, "do it")
    assert not (tmp_path / "set").exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_never_written_over(tmp_path: Path) -> None:
    writer = DatasetWriter(tmp_path / "set", CONFIG, fps=10, robot="arm")
    episode = writer.episode()
    episode.add(*row(2, 0))
    writer.keep(0, episode, "do it")
    (tmp_path / "set").mkdir()
    with pytest.raises(DatasetError, match="it is there already"):
        writer.close()
    with pytest.raises(DatasetError, match="it is there already"):
        DatasetWriter(tmp_path / "set", CONFIG, fps=10, robot="arm")


def test_what_no_dataset_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="a whole number"):
        DatasetWriter(tmp_path / "rate", CONFIG, fps=12.5, robot="arm")
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="cannot be written: File exists"):
        DatasetWriter(tmp_path / "file" / "set", CONFIG, fps=10, robot="arm")
    writer = DatasetWriter(tmp_path / "set", CONFIG, fps=10, robot="arm")
    with pytest.raises(DatasetError, match="there is no episode to keep"):
        writer.close()
    writer = DatasetWriter(tmp_path / "set", CONFIG, fps=10, robot="arm")
    with pytest.raises(DatasetError, match="without a row"):
        writer.keep(0, writer.episode(), "do it")
    observation, action = row(2, 0)
    for change, words in (
        ({"state.gripper": np.array([np.nan])}, "state.gripper in row 0"),
        ({"video.webcam": np.zeros((63, 64, 3), np.uint8)}, "even height and width"),
        ({"video.webcam": np.zeros((64, 64, 3), np.float32)}, "float32"),
    ):
        with pytest.raises(DatasetError, match=words):
            writer.episode().add({**observation, **change}, action)
    with pytest.raises(DatasetError, match=r"no action\.gripper"):
        writer.episode().add(observation, {"action.single_arm": action["action.single_arm"]})
    writer.abandon()
