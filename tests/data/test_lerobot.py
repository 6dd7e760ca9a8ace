from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.data import LeRobotDataset, ModalityConfig
from gr00t_trt.data.parquet import Table, write_table
from gr00t_trt.data.video import VideoReader, write_video
from gr00t_trt.errors import DatasetError, PlanError

LENGTH = 20
LANGUAGE = "annotation.human.action.task_description"


def edit_json(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(root: Path, episode: int, change) -> None:
    path = root / f"data/chunk-000/episode_{episode:06d}.parquet"
    table = Table(path)
    columns = {name: table.column(name) for name in table.names}
    change(columns)
    write_table(path, columns)


def open_and_read(root: Path, config, index: int = 0):
    return LeRobotDataset(root, config.modality_config())[index]


def test_a_step(dataset):
    step = dataset[3]
    assert len(dataset) == 2 * LENGTH
    assert step["video.ego_view"].shape == (1, 48, 64, 3)
    assert step["video.ego_view"].dtype == np.uint8
    assert step["state.left_arm"].shape == (1, 7)
    assert step["action.left_arm"].shape == (16, 7)
    assert step["action.left_arm"].dtype == np.float64
    assert step[LANGUAGE] == ["pick the pear from the counter and place it in the plate"]
    assert set(step) == {k for c in dataset.modality_config.values() for k in c.modality_keys}


def test_flat_index_walks_episodes_in_order(dataset):
    for index, (episode, row) in {0: (0, 0), 19: (0, 19), 20: (1, 0), 39: (1, 19), -1: (1, 19)}.items():
        np.testing.assert_array_equal(dataset[index]["state.left_arm"], dataset.step(episode, row)["state.left_arm"])
    for index in (40, -41):
        with pytest.raises(IndexError):
            dataset[index]
    assert sum(1 for _ in dataset) == 40, "iteration ends"


def test_rows_outside_the_episode_repeat_or_vanish(damaged):
    path = damaged / "meta/modality.json"
    edit_json(path, lambda m: m["action"]["left_hand"].update(absolute=False))
    delta = [-2, 0, 2]
    config = {
        "video": ModalityConfig(delta, ["video.ego_view"]),
        "action": ModalityConfig(delta, ["action.left_arm", "action.left_hand"]),
        "language": ModalityConfig(delta, [LANGUAGE]),
    }
    dataset = LeRobotDataset(damaged, config)
    rows = dataset.column(0, "action")
    first, last = dataset.step(0, 0), dataset.step(0, LENGTH - 1)
    np.testing.assert_array_equal(first["action.left_arm"], rows[[0, 0, 2], :7])
    np.testing.assert_array_equal(last["action.left_arm"], rows[[17, 19, 19], :7])
    part = slice(14, 20)  # left_hand follows both arms
    np.testing.assert_array_equal(first["action.left_hand"][1:], rows[[0, 2], part])
    assert not first["action.left_hand"][0].any()
    assert not last["action.left_hand"][2].any()
    np.testing.assert_array_equal(first["video.ego_view"][0], first["video.ego_view"][1])
    np.testing.assert_array_equal(last["video.ego_view"][1], last["video.ego_view"][2])
    assert len(first[LANGUAGE]) == 3


def test_steps_past_the_end_are_padded(dataset):
    beyond = dataset.step(0, LENGTH + 5)
    np.testing.assert_array_equal(beyond["state.left_arm"], dataset.step(0, LENGTH - 1)["state.left_arm"])
    assert (beyond["action.left_arm"] == beyond["action.left_arm"][0]).all()


def test_raw_access_gives_every_key(dataset):
    raw = dataset.raw(1, 4)
    assert set(raw) == {k for s in ("video", "state", "action", "annotation") for k in dataset.layout.keys(s)}
    np.testing.assert_array_equal(raw["action.left_arm"][0], dataset.step(1, 4)["action.left_arm"][0])


def test_task_progress(synthetic):
    config = {"action": ModalityConfig([0, 1], ["action.task_progress"])}
    dataset = LeRobotDataset(synthetic, config)
    assert dataset[5]["action.task_progress"].tolist() == [[5 / LENGTH], [6 / LENGTH]]
    assert dataset.metadata("gr1").statistics("action.task_progress").std.tolist() == [0.2887]


def test_frames_by_seeking_are_the_frames_by_walking(tmp_path):
    def images():
        for i in range(60):
            image = np.zeros((32, 32, 3), np.uint8)
            image[:, : i // 2 + 1] = 255 - 3 * i
            yield image

    write_video(tmp_path / "a.mp4", images(), 20)
    walking = VideoReader(tmp_path / "a.mp4")
    assert len(walking) == 60
    np.testing.assert_allclose(walking.starts_s, np.arange(60) / 20)
    frames = walking.frames(range(60))
    for i, image in enumerate(images()):
        assert abs(frames[i].astype(int) - image).mean() < 12, "colours are RGB and frames are in order"
    jumping = VideoReader(tmp_path / "a.mp4")
    for i in (59, 0, 31, 30, 59, 1, 2, 58):
        np.testing.assert_array_equal(jumping.frames([i])[0], frames[i])
    np.testing.assert_array_equal(jumping.frames([5, 3, 5]), frames[[5, 3, 5]])
    jumping.close()


@pytest.mark.parametrize("rule", ["nearest", "on_screen"])
def test_exact_timestamps_give_the_row_under_every_rule(synthetic, config, dataset, rule):
    by_time = LeRobotDataset(synthetic, config.modality_config(), frame_lookup=rule)
    for row in (0, 7, 19):
        np.testing.assert_array_equal(by_time[row]["video.ego_view"], dataset[row]["video.ego_view"])


def test_unknown_lookup(synthetic, config):
    with pytest.raises(PlanError, match=r"frame_lookup: unknown value 'nearst'[\s\S]*did you mean nearest"):
        LeRobotDataset(synthetic, config.modality_config(), frame_lookup="nearst")


def test_statistics_are_recomputed_in_memory_and_equal_the_shipped_ones(damaged, metadata, config):
    stats = damaged / "meta/stats.json"
    for change in (stats.unlink, lambda: stats.write_text(json.dumps({"action": {"mean": [0.0]}}))):
        change()
        before = sorted(damaged.rglob("*"))
        found = LeRobotDataset(damaged, config.modality_config()).metadata("gr1")
        for key in ("state.left_arm", "action.right_hand"):
            for name in ("min", "max", "mean", "std", "q01", "q99"):
                np.testing.assert_array_equal(
                    getattr(found.statistics(key), name), getattr(metadata.statistics(key), name)
                )
        assert sorted(damaged.rglob("*")) == before
    assert json.loads(stats.read_text()) == {"action": {"mean": [0.0]}}


def test_no_statistics_and_nothing_to_compute_them_from(damaged, config):
    (damaged / "meta/stats.json").unlink()
    shutil.rmtree(damaged / "data")
    with pytest.raises(DatasetError, match=r"stats\.json: missing or incomplete, and there is no parquet"):
        LeRobotDataset(damaged, config.modality_config()).metadata("gr1")


def test_statistics_of_a_missing_or_narrow_column(damaged, config):
    edit_json(damaged / "meta/modality.json", lambda m: m["action"]["left_arm"].update(end=99))
    with pytest.raises(DatasetError, match=r"action\.left_arm ends at 99[\s\S]*26 wide"):
        LeRobotDataset(damaged, config.modality_config()).metadata("gr1")
    edit_json(damaged / "meta/modality.json", lambda m: m["action"]["left_arm"].update(original_key="nope"))
    with pytest.raises(DatasetError, match=r"000000\.parquet: column 'nope' is missing"):
        LeRobotDataset(damaged, config.modality_config()).metadata("gr1")


def unlink(name):
    return lambda root: (root / name).unlink()


def write(name, text):
    return lambda root: (root / name).write_text(text)


def info(change):
    return lambda root: edit_json(root / "meta/info.json", change)


def modality(change):
    return lambda root: edit_json(root / "meta/modality.json", change)


def parquet(change):
    return lambda root: rewrite(root, 0, change)


def cut(name, keep):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:keep])


def short_video(root):
    frames = (np.zeros((48, 64, 3), np.uint8) for _ in range(5))
    write_video(root / VIDEO, frames, 20)


def small_video(root):
    write_video(root / VIDEO, (np.zeros((32, 32, 3), np.uint8) for _ in range(LENGTH)), 20)


PARQUET = "data/chunk-000/episode_000000.parquet"
VIDEO = "videos/chunk-000/observation.images.ego_view/episode_000000.mp4"
VIEW = "observation.images.ego_view"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
DAMAGES = {
    "no info": (unlink("meta/info.json"), r"meta/info\.json: no such file[\s\S]*--dataset_path"),
    "no modality": (
        unlink("meta/modality.json"),
        r"no state key 'state\.left_arm'[\s\S]*no modality\.json[\s\S]*known: state\.state\n[\s\S]*\"start\": 0",
    ),
    "no episodes": (unlink("meta/episodes.jsonl"), r"meta/episodes\.jsonl: no such file"),
    "no tasks": (unlink("meta/tasks.jsonl"), r"meta/tasks\.jsonl: no such file"),
    "info not JSON": (write("meta/info.json", "{"), r"meta/info\.json: invalid JSON"),
    "info a list": (write("meta/info.json", "[]"), r"info\.json: holds list"),
    "episodes not JSON": (write("meta/episodes.jsonl", "{}\n{"), r"episodes\.jsonl, line 2: invalid JSON"),
    "episode without length": (write("meta/episodes.jsonl", '{"episode_index": 0}'), r"line 1: KeyError\('length'\)"),
    "negative length": (write("meta/episodes.jsonl", '{"episode_index": 0, "length": -1}'), "line 1: negative"),
    "zero episodes": (write("meta/episodes.jsonl", ""), r"episodes\.jsonl: 0 episodes with 0 frames"),
    "zero frames": (write("meta/episodes.jsonl", '{"episode_index": 0, "length": 0}'), "1 episodes with 0 frames"),
    "endless episode": (
        write("meta/episodes.jsonl", '{"episode_index": 0, "length": Infinity}'),
        r"line 1: OverflowError",
    ),
    "episode twice": (
        write("meta/episodes.jsonl", '{"episode_index": 0, "length": 5}\n' * 2),
        r"episodes\.jsonl, line 2: episode 0 is listed twice",
    ),
    "a null task": (write("meta/tasks.jsonl", '{"task_index": 0, "task": null}'), "task is None"),
    "no tasks listed": (write("meta/tasks.jsonl", ""), r"holds task index 0[\s\S]*tasks\.jsonl has none"),
    "a task without text": (
        write("meta/tasks.jsonl", '{"task_index": 0}'),
        r"tasks\.jsonl, line 1: KeyError\('task'\)",
    ),
    "a key of info": (info(lambda i: i.pop("data_path")), r"info\.json: key 'data_path' is missing"),
    "chunks_size": (info(lambda i: i.update(chunks_size=0)), "chunks_size is 0"),
    "template": (info(lambda i: i.update(data_path="{chunk}.parquet")), r"data_path '\{chunk\}.parquet' cannot be"),
    "template with an attribute": (info(lambda i: i.update(data_path="{episode_index.x}")), "cannot be filled in"),
    "null template": (info(lambda i: i.update(video_path=None)), r"info\.json: video_path is None"),
    "no features": (info(lambda i: i.update(features={})), r"features: unknown value[\s\S]*known: none"),
    "feature": (info(lambda i: i["features"].pop(VIEW)), rf"features: unknown value '{VIEW}'"),
    "feature without fps": (
        info(lambda i: (i.pop("fps"), i["features"][VIEW].pop("video_info"))),
        "does not describe a video",
    ),
    "endless part": (modality(lambda m: m["state"]["left_arm"].update(end=float("inf"))), "left_arm is malformed"),
    "annotation a list": (modality(lambda m: m.update(annotation=["x"])), "section 'annotation' is missing or not"),
    "section": (modality(lambda m: m.pop("video")), "section 'video' is missing"),
    "part without end": (modality(lambda m: m["state"]["left_arm"].pop("end")), r"state\.left_arm is malformed"),
    "empty slice": (modality(lambda m: m["state"]["left_arm"].update(end=0)), "start 0, end 0 is no slice"),
    "rotation": (modality(lambda m: m["state"]["left_arm"].update(rotation_type="6d")), "unknown value '6d'"),
    "part missing": (
        modality(lambda m: m["state"].update(left_arms=m["state"].pop("left_arm"))),
        r"no state key 'state\.left_arm'[\s\S]*known: .*state\.left_arms[\s\S]*--data_config",
    ),
    "part too wide": (modality(lambda m: m["state"]["right_hand"].update(end=30)), r"is 26 wide[\s\S]*\[20:30\]"),
    "no parquet": (unlink(PARQUET), r"episode_000000\.parquet: no such file"),
    "parquet cut": (cut(PARQUET, 1000), r"episode_000000\.parquet: not a readable parquet file"),
    "parquet a folder": (lambda root: ((root / PARQUET).unlink(), (root / PARQUET).mkdir()), "parquet: no such file"),
    "parquet a pointer": (write(PARQUET, POINTER), r"episode_000000\.parquet: not a readable[\s\S]*git lfs pull"),
    "column missing": (parquet(lambda c: c.pop("action")), r"000000\.parquet: column 'action' is missing"),
    "column narrow": (
        parquet(lambda c: c.update(action=c["action"][:, :10])),
        r"column 'action' is 10 wide[\s\S]*action\.right_hand takes|column 'action' is 10 wide",
    ),
    "column of text": (parquet(lambda c: c.update(action=np.array(["a"] * LENGTH))), "not numbers"),
    "rows missing": (
        parquet(lambda c: c.update({k: v[:7] for k, v in c.items()})),
        r"7 rows[\s\S]*says 20 for episode 0",
    ),
    "task index": (
        parquet(lambda c: c.update({LANGUAGE: np.full(LENGTH, 77)})),
        r"holds task index 77[\s\S]*tasks\.jsonl has 0, 1, 2, 3",
    ),
    "no video": (unlink(VIDEO), r"episode_000000\.mp4: no such video"),
    "video of nothing": (write(VIDEO, ""), r"episode_000000\.mp4: not a readable video"),
    "video a pointer": (write(VIDEO, POINTER), r"episode_000000\.mp4: not a readable video[\s\S]*git lfs pull"),
    "video not a video": (write(VIDEO, "not an mp4" * 50), "not a readable video"),
    "video cut": (cut(VIDEO, 1500), "not a readable video"),
    "video small": (small_video, r"frames are 32 x 32[\s\S]*says 64 x 48"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_one_error_that_names_the_file(damaged, config, name):
    change, words = DAMAGES[name]
    change(damaged)
    with pytest.raises(DatasetError, match=words) as caught:
        open_and_read(damaged, config)
    assert str(damaged) in str(caught.value)


def test_rows_without_a_frame_do_not_block_the_others(damaged, config, dataset):
    short_video(damaged)
    short = LeRobotDataset(damaged, config.modality_config())
    assert short.step(0, 4)["video.ego_view"].shape == (1, 48, 64, 3)
    np.testing.assert_array_equal(short.step(1, 9)["video.ego_view"], dataset.step(1, 9)["video.ego_view"])
    with pytest.raises(DatasetError, match=r"episode_000000\.mp4: no frame for row 5[\s\S]*5 frames"):
        short.step(0, 5)


def test_broken_frame_data_is_an_error(damaged, config):
    path = damaged / VIDEO
    content = bytearray(path.read_bytes())
    start = content.find(b"mdat") + 4
    size = int.from_bytes(content[start - 8 : start - 4], "big")
    content[start : start - 8 + size] = bytes(size - 8)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"episode_000000\.mp4: frame \d+"):
        open_and_read(damaged, config, 6)


def test_no_such_folder_or_episode(tmp_path, config, dataset):
    with pytest.raises(DatasetError, match=r"nowhere: no such dataset folder[\s\S]*--dataset_path"):
        LeRobotDataset(tmp_path / "nowhere", config.modality_config())
    with pytest.raises(DatasetError, match=r"no episode 9[\s\S]*2 episodes: 0, 1"):
        dataset.step(9, 0)


def test_absent_episodes_are_noticed_when_read(damaged, config):
    (damaged / "data/chunk-000/episode_000001.parquet").unlink()
    dataset = LeRobotDataset(damaged, config.modality_config())
    assert dataset[0]["state.left_arm"].shape == (1, 7)
    with pytest.raises(DatasetError, match=r"episode_000001\.parquet: no such file"):
        dataset[LENGTH]


def test_without_pyav_the_install_command_is_told(synthetic, config, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(DatasetError, match="pip install av"):
        LeRobotDataset(synthetic, config.modality_config()).step(0, 0)
