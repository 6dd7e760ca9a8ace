"""LeRobot v3.0: the same steps as from version 2, and datasets without GR00T's modality.json."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from convert_to_v3 import PLACE, convert_to_v3, write

from gr00t_trt.data import LeRobotDataset, ModalityConfig, data_config
from gr00t_trt.errors import DatasetError

CONFIG = data_config("fourier_gr1_arms_only")
RULES = ("index", "nearest", "on_screen")


@pytest.fixture
def v3(synthetic: Path, tmp_path: Path) -> Path:
    return convert_to_v3(synthetic, tmp_path / "v3", [0, 1])


def equal(ours: LeRobotDataset, theirs: LeRobotDataset, episode: int, row: int) -> None:
    step = ours.step(episode, row)
    for key, value in theirs.step(episode, row).items():
        np.testing.assert_array_equal(step[key], value, err_msg=f"{key}, episode {episode}, row {row}")


@pytest.mark.parametrize("rule", RULES)
def test_the_demonstration_data_is_the_same_bit_for_bit(demo, tmp_path_factory, rule):
    v3 = tmp_path_factory.getbasetemp() / "demo_v3"
    if not v3.exists():
        convert_to_v3(demo, v3, [0, 1, 2])
    theirs = LeRobotDataset(demo, CONFIG.modality_config(), frame_lookup=rule)
    ours = LeRobotDataset(v3, CONFIG.modality_config(), frame_lookup=rule)
    assert [e.length for e in ours.episodes] == [416, 470, 470]
    for episode, rows in ((0, (0, 1, 415)), (1, (0, 60, 469)), (2, (0, 469)), (0, (415,))):
        for row in rows:
            equal(ours, theirs, episode, row)
    assert ours.metadata("gr1").to_dict() == theirs.metadata("gr1").to_dict()


def test_any_order_of_episodes_and_rows(synthetic, v3, metadata):
    theirs = LeRobotDataset(synthetic, CONFIG.modality_config())
    ours = LeRobotDataset(v3, CONFIG.modality_config())
    for index in (0, 39, 20, 19, 3, 21, -1):
        for key, value in theirs[index].items():
            np.testing.assert_array_equal(ours[index][key], value)
    (v3 / "meta/stats.json").unlink()
    computed = LeRobotDataset(v3, CONFIG.modality_config())
    assert computed.metadata("gr1").to_dict() == metadata.to_dict()
    assert "2 of" not in computed.notes[0]
    assert "1 of 1 parquet files" in computed.notes[0]


def listing(change):
    def edit(root: Path) -> None:
        path = root / f"meta/episodes/{PLACE}.parquet"
        columns = pq.read_table(path).to_pydict()
        change(columns)
        write(path, pa.table(columns))

    return edit


def rows(change):
    def edit(root: Path) -> None:
        path = root / f"data/{PLACE}.parquet"
        write(path, change(pq.read_table(path)))

    return edit


VIEW = "videos/observation.images.ego_view"
DAMAGES = {
    "no episodes": (lambda root: (root / f"meta/episodes/{PLACE}.parquet").unlink(), r"meta/episodes: no chunk-000"),
    "no tasks": (lambda root: (root / "meta/tasks.parquet").unlink(), r"meta/tasks\.parquet: no such file"),
    "twice": (listing(lambda c: c.update(episode_index=[0, 0])), r"meta/episodes, row 1: episode 0 is listed twice"),
    "no length": (listing(lambda c: c.pop("length")), r"column 'length' is missing"),
    "a length of text": (listing(lambda c: c.update(length=["a", "b"])), r"'length' holds .*, not numbers"),
    "other lengths": (
        listing(lambda c: c.update(length=[19, 21])),
        r"file-000\.parquet: 20 rows of episode 0\n  known: meta/episodes says 19",
    ),
    "longer": (listing(lambda c: c.update(length=[20, 21])), r"file-000\.parquet: 40 rows\n  known: .*says 41"),
    "without its camera": (listing(lambda c: c.pop(f"{VIEW}/from_timestamp")), r"ego_view/from_timestamp' is missing"),
    "a span of nothing": (listing(lambda c: c.update({f"{VIEW}/to_timestamp": [0.0, 1.0]})), r"from 0\.0 s to 0\.0 s"),
    "a span of NaN": (listing(lambda c: c.update({f"{VIEW}/from_timestamp": [float("nan"), 1.0]})), r"from nan s"),
    "a span elsewhere": (
        listing(lambda c: c.update({f"{VIEW}/from_timestamp": [7.0, 1.0], f"{VIEW}/to_timestamp": [8.0, 2.0]})),
        r"file-000\.mp4: no frame between 7\.0 s and 8\.0 s",
    ),
    "a file that is not there": (
        listing(lambda c: c.update({"data/file_index": [7, 7]})),
        r"file-007\.parquet: no such",
    ),
    "rows in disorder": (rows(lambda t: t.take([1, 0, *range(2, 40)])), r"frame_index is 1 in row 0 of episode 0"),
    "mixed episodes": (rows(lambda t: t.take([*range(19), 20, 19, *range(21, 40)])), "other rows lie between those of"),
    "no episode_index": (rows(lambda t: t.drop_columns("episode_index")), r"column 'episode_index' is missing"),
    "another version": (
        lambda root: (root / "meta/info.json").write_text(
            (root / "meta/info.json").read_text().replace('"v3.0"', '"v4.1"')
        ),
        r"codebase_version 'v4\.1' is not read here\n  known: LeRobot v2\.0, v2\.1 and v3\.0",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_each_damage_is_one_error(v3, name):
    change, words = DAMAGES[name]
    change(v3)
    with pytest.raises(DatasetError, match=words):
        LeRobotDataset(v3, CONFIG.modality_config()).step(0, 0)


def motors(names) -> dict:
    return {"dtype": "float32", "shape": [2], "names": names}


PLAIN = {
    "video": ModalityConfig([0], ["video.front"]),
    "state": ModalityConfig([0], ["state.state", "state.gripper.pos"]),
    "action": ModalityConfig([0, 1], ["action.action", "action.gripper.pos"]),
    "language": ModalityConfig([0], ["annotation.human.task_description", "annotation.task"]),
}


def png(level: int) -> bytes:
    context = av.CodecContext.create("png", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 64, 48, "rgb24", Fraction(1)
    frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*context.encode(frame), *context.encode(None)])


def images_of_lerobot(root: Path, names) -> Path:
    """What LeRobot writes with use_videos=False: images in the rows, no modality.json, video_path null."""
    count = 40
    vectors = np.arange(2 * count, dtype=np.float32).reshape(count, 2)
    columns = {
        "observation.state": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 2),
        "action": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel() + 1), 2),
        "observation.images.front": [{"bytes": png(20 + 5 * i), "path": f"frame-{i:06d}.png"} for i in range(count)],
        "timestamp": pa.array(np.arange(count) % 25 / 30, pa.float32()),
        "frame_index": np.arange(count) % 25,
        "episode_index": np.arange(count) // 25,
        "index": np.arange(count),
        "task_index": np.arange(count) // 25,
    }
    write(root / f"data/{PLACE}.parquet", pa.table(columns))
    listed = {"episode_index": [0, 1], "length": [25, 15], "data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    write(root / f"meta/episodes/{PLACE}.parquet", pa.table(listed))
    write(root / "meta/tasks.parquet", pa.table({"task_index": [0, 1], "task": ["push", "lift\u2028it"]}))
    image = {"dtype": "image", "shape": [48, 64, 3], "names": ["height", "width", "channels"]}
    info = {
        "codebase_version": "v3.0",
        "fps": 30,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": None,
        "features": {
            "observation.images.front": image,
            "observation.state": motors(names),
            "action": motors(names),
        },
    }
    (root / "meta/info.json").write_text(json.dumps(info))
    return root


@pytest.mark.parametrize("names", [["pan.pos", "gripper.pos"], {"motors": ["pan.pos", "gripper.pos"]}])
@pytest.mark.parametrize("rule", RULES)
def test_lerobots_own_dataset_with_images(tmp_path, names, rule):
    dataset = LeRobotDataset(images_of_lerobot(tmp_path, names), PLAIN, frame_lookup=rule)
    for episode, row, index in ((0, 0, 0), (0, 24, 24), (1, 0, 25), (1, 14, 39), (0, 17, 17), (0, 3, 3)):
        step = dataset.step(episode, row)
        assert (step["video.front"] == 20 + 5 * index).all()
        assert step["state.state"].tolist() == [[2 * index, 2 * index + 1]]
        assert step["state.gripper.pos"].tolist() == [[2 * index + 1]]
        assert (
            step["annotation.task"] == step["annotation.human.task_description"] == [["push", "lift\u2028it"][episode]]
        )
    metadata = dataset.metadata("new_embodiment")
    assert metadata.statistics("action.gripper.pos").max.tolist() == [80]
    assert set(metadata.state) == {"state", "pan.pos", "gripper.pos"}
    assert metadata.view("video.front").resolution == (64, 48)


@pytest.mark.parametrize("form", ["path", "bytes alone", "path alone"])
def test_images_in_files_or_without_a_struct(tmp_path, form):
    root = images_of_lerobot(tmp_path, None)
    path = root / f"data/{PLACE}.parquet"
    table = pq.read_table(path)
    images = table.column("observation.images.front").to_pylist()
    if "path" in form:
        for image in images:
            (root / image["path"]).write_bytes(image["bytes"])
    values = {
        "path": [{"bytes": None, "path": image["path"]} for image in images],
        "bytes alone": [image["bytes"] for image in images],
        "path alone": [image["path"] for image in images[:-1]] + ["../frame-000000.png"],
    }
    columns = table.drop_columns("observation.images.front")
    write(path, columns.append_column("observation.images.front", [values[form]]))
    dataset = LeRobotDataset(root, {"video": PLAIN["video"]})
    assert (dataset.step(1, 13)["video.front"] == 20 + 5 * 38).all()
    if form == "path":
        (root / "frame-000001.png").unlink()
        with pytest.raises(
            DatasetError, match=r"'observation.images.front', row 1: .*frame-000001\.png cannot be read"
        ):
            dataset.step(0, 1)
    if form == "path alone":
        with pytest.raises(DatasetError, match=r"row 14: '\.\./frame[\s\S]*inside the dataset folder"):
            dataset.step(1, 14)


def test_a_data_config_for_other_keys_is_told_what_there_is(tmp_path):
    root = images_of_lerobot(tmp_path, None)
    kind = {"state": ModalityConfig([0], ["state.single_arm"])}
    words = (
        r"info\.json: no state key 'state\.single_arm'[\s\S]*no modality\.json[\s\S]*known: state\.state\n[\s\S]*meta/"
    )
    with pytest.raises(DatasetError, match=words):
        LeRobotDataset(root, kind)


LEROBOT = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
WRITE = """
import sys, numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset
names = ["pan.pos", "gripper.pos"]
vector = {"dtype": "float32", "shape": (2,), "names": names}
camera = {"dtype": sys.argv[2], "shape": (48, 64, 3), "names": ["height", "width", "channels"]}
features = {"observation.state": vector, "action": vector, "observation.images.front": camera}
data = LeRobotDataset.create("us/ours", 30, features, root=sys.argv[1], use_videos=sys.argv[2] == "video")
for episode, length in enumerate((12, 9, 15)):
    for i in range(length):
        value = np.array([episode, i], np.float32)
        image = np.full((48, 64, 3), 20 + 6 * i + 2 * episode, np.uint8)
        data.add_frame({"observation.state": value, "action": value + 1, "observation.images.front": image,
                        "task": ["push", "lift"][episode % 2]})
    data.save_episode()
data.finalize()
"""


@pytest.mark.skipif(LEROBOT is None, reason="GR00T_TRT_LEROBOT_PYTHON names no Python that has LeRobot")
@pytest.mark.parametrize("kind", ["video", "image"])
def test_what_lerobot_writes(tmp_path, kind):
    done = subprocess.run(
        [str(LEROBOT), "-c", WRITE, str(tmp_path / "data"), kind],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rule, episode in itertools.product(RULES, (0, 2, 1)):
        dataset = LeRobotDataset(tmp_path / "data", PLAIN, frame_lookup=rule)
        for row in range((12, 9, 15)[episode]):
            step = dataset.step(episode, row)
            assert abs(step["video.front"].mean() - (20 + 6 * row + 2 * episode)) < 1.5
            assert step["state.state"].tolist() == [[episode, row]]
            assert step["annotation.task"] == [["push", "lift"][episode % 2]]
    metadata = dataset.metadata("new_embodiment")
    assert metadata.statistics("state.gripper.pos").max.tolist() == [14]
    # It averages the quantiles of episodes: those of a value that is the same all through each are no quantiles.
    assert (metadata.statistics("state.state").q01[0], metadata.statistics("state.state").q99[0]) == (0, 2)
    assert "averages" in dataset.notes[-1]
