"""What a training reads: rows and frames as the dataset's own reader gives them, statistics, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import GR1, SO100, options, part_of, same

from gr00t_trt.data import LeRobotDataset, VideoHorizontalFlip, data_config, write_synthetic_dataset
from gr00t_trt.data.transforms import ComposedModalityTransform
from gr00t_trt.errors import DatasetError, Gr00tError, PlanError, UsageError
from gr00t_trt.finetune.samples import Frame, TrainingData, open_training_data, read_sources

SIZE = (64, 48)


@pytest.fixture(scope="module")
def gr1(folder: Path) -> Path:
    return write_synthetic_dataset(folder / "gr1", data_config=GR1, episodes=3, length=20, resolution=SIZE)


@pytest.fixture(scope="module")
def so100(folder: Path) -> Path:
    return write_synthetic_dataset(folder / "so100", data_config=SO100, episodes=2, length=12, resolution=SIZE)


@pytest.fixture(scope="module")
def cache(folder: Path) -> Path:
    return folder / "cache"


@pytest.fixture(scope="module")
def data(gr1: Path, cache: Path) -> TrainingData:
    return open_training_data(options([gr1], cache, eval_episodes=1))


def test_samples_are_the_rows_of_the_dataset(data, gr1):
    config = data_config(GR1)
    dataset = LeRobotDataset(gr1, config.modality_config())
    transform = config.transform()
    transform.set_metadata(data.metadata["gr1"])
    for episode, row in ((0, 0), (1, 7), (0, 12), (2, 19)):
        step = dataset.step(episode, row)
        found = data.inputs([Frame(0, episode, row)], [0], None)
        wanted = transform.apply(dict(step))
        assert torch.equal(found["state"], wanted["state"])
        assert found["embodiment_id"].tolist() == [24]
        pixels = (found["eagle_pixel_values"] * 0.5 + 0.5) * 255
        np.testing.assert_allclose(pixels.numpy()[0], np.moveaxis(wanted["images"][0, 0, 0], -1, 0), atol=1e-4)
        back = transform.unapply({"action": found["action"][0].double()})
        for key in config.action_keys:
            np.testing.assert_allclose(back[key], step[key], atol=1e-5, err_msg=key)
        assert found["action_mask"].sum().item() == 16 * 26
        assert not found["action"][~found["action_mask"]].any()


def test_rows_beyond_the_end_repeat_the_last(demo, oracle):
    wanted = json.loads((oracle.folder / "mixture.json").read_text())["padding"]
    key, row = wanted["key"], wanted["base_index"]
    found = open_training_data(options([demo], episodes="present"))
    values = found.recordings[0]._observe(wanted["episode"], row)[key]
    assert values[0].tolist() == wanted["values_first_row"]
    assert values[-1].tolist() == wanted["values_last_row"]
    assert (values == values[-1]).all(axis=1).sum() == wanted["rows_equal_to_the_last"]
    assert values.dtype == wanted["dtype"]


@pytest.mark.parametrize("what", ["cached", "rows cached"])
def test_relative_rows_beyond_the_end_are_zero_from_the_cache_too(gr1, tmp_path, what):
    copy = Path(shutil.copytree(gr1, tmp_path / "data"))
    modality = json.loads((copy / "meta/modality.json").read_text())
    modality["action"]["left_arm"]["absolute"] = False
    (copy / "meta/modality.json").write_text(json.dumps(modality))
    limit = None if what == "cached" else 0.0002
    found = open_training_data(options([copy], tmp_path / "cache", frame_cache_gb=limit))
    theirs = LeRobotDataset(copy, data_config(GR1).modality_config())
    for row in (19, 10, 0):
        step, ours = theirs.step(1, row), found.recordings[0]._observe(1, row)
        assert list(ours) == list(step)
        for key, value in step.items():
            np.testing.assert_array_equal(ours[key], value, err_msg=key)
    assert not found.recordings[0]._observe(1, 19)["action.left_arm"][1:].any()
    kept = sum(path.stat().st_size > 20 * 9216 for path in (tmp_path / "cache").glob("*.frames"))
    assert kept == (what == "cached")


def test_the_cache_gives_the_bytes_of_the_decoder(demo, tmp_path):
    small = part_of(demo, tmp_path / "data", [0])
    theirs = LeRobotDataset(demo, data_config(GR1).modality_config())
    view = "video.ego_view"
    wanted = theirs.values(0, view, np.arange(60))
    found = open_training_data(options([small], tmp_path / "cache"))
    for _ in range(2):
        for row in (0, 17, 59):
            np.testing.assert_array_equal(found.recordings[0]._observe(0, row)[view][0], wanted[row])
    assert len(list((tmp_path / "cache").glob("*.frames"))) == 1


def test_version_3_of_the_format_gives_the_same_samples(gr1, cache, data, tmp_path):
    spec = importlib.util.spec_from_file_location("convert", Path(__file__).parents[1] / "data" / "convert_to_v3.py")
    convert = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(convert)
    v3 = convert.convert_to_v3(gr1, tmp_path / "v3", [0, 1, 2])
    found = open_training_data(options([v3], cache, eval_episodes=1))
    assert found.description == data.description
    frames = [data.frame(42, position) for position in range(6)] + list(data.held_out[:2])
    assert frames[:6] == [found.frame(42, position) for position in range(6)]
    assert same(data.inputs(frames, range(8), 42), found.inputs(frames, range(8), 42))


def test_augmentation_depends_on_seed_and_position_alone(data):
    frames = [Frame(0, 0, 3), Frame(0, 1, 5)]
    pixels = lambda *arguments: data.inputs(*arguments)["eagle_pixel_values"]  # noqa: E731
    first = pixels(frames, [8, 9], 42)
    assert torch.equal(first, pixels(frames, [8, 9], 42))
    assert torch.equal(first[1:], pixels(frames[1:], [9], 42))
    assert not torch.equal(first, pixels(frames, [9, 8], 42))
    assert not torch.equal(first, pixels(frames, [8, 9], 43))
    plain = pixels(frames, [8, 9], None)
    assert torch.equal(plain, pixels(frames, [0, 0], None))
    assert torch.equal(plain, replace(data, augment=False).inputs(frames, [8, 9], 42)["eagle_pixel_values"])


def test_held_out_episodes_are_the_last(data):
    assert (data.steps, data.pass_length) == (40, 40)
    assert data.held_out == [Frame(0, 2, row) for row in range(20)]
    assert {data.frame(1, position).episode for position in range(80)} == {0, 1}
    assert "2 episodes, 40 frames, 1 held out." in data.notes[0]
    assert any("Frame cache" in note and "3 of 3 episodes" in note for note in data.notes)


def test_two_robots_in_one_training(gr1, so100, cache):
    found = open_training_data(
        options([gr1, so100], cache, configs=[GR1, SO100], tags=["gr1", "new_embodiment"], weights=[1, 2])
    )
    assert found.embodiment_ids == {"gr1": 24, "new_embodiment": 31}
    alone = open_training_data(options([so100], cache, configs=[SO100], tags=["new_embodiment"]))
    assert found.metadata["new_embodiment"].to_dict() == alone.metadata["new_embodiment"].to_dict()
    assert found.pass_length == 60 + 48
    picked = [found.frame(0, position).dataset for position in range(found.pass_length)]
    assert (picked.count(0), picked.count(1)) == (60, 48)
    inputs = found.inputs([Frame(0, 0, 1), Frame(1, 0, 2)], [0, 1], 42)
    assert inputs["embodiment_id"].tolist() == [24, 31]
    assert inputs["action_mask"].sum((1, 2)).tolist() == [16 * 26, 16 * 6]
    assert inputs["state_mask"].sum((1, 2)).tolist() == [52, 6]
    own = alone.inputs([Frame(0, 0, 2)], [1], 42)
    for name in ("state", "action", "eagle_pixel_values"):
        assert torch.equal(inputs[name][-1:], own[name]), name


def test_robots_with_different_numbers_of_cameras(gr1, folder, cache):
    two = write_synthetic_dataset(
        folder / "dual", data_config="so100_dualcam", episodes=1, length=6, resolution=(32, 32)
    )
    found = open_training_data(
        options([gr1, two], cache, configs=[GR1, "so100_dualcam"], tags=["gr1", "new_embodiment"])
    )
    inputs = found.inputs([Frame(0, 0, 1), Frame(1, 0, 2)], [0, 1], 42)
    assert len(inputs["eagle_pixel_values"]) == 3
    assert inputs["eagle_attention_mask"].sum(1).diff().item() > 200
    alone = [found.inputs([frame], [p], 42) for p, frame in enumerate((Frame(0, 0, 1), Frame(1, 0, 2)))]
    assert torch.equal(inputs["eagle_pixel_values"], torch.cat([each["eagle_pixel_values"] for each in alone]))


def test_two_datasets_of_one_tag_have_common_statistics(gr1, cache, tmp_path):
    other = write_synthetic_dataset(tmp_path / "o", data_config=GR1, episodes=1, length=20, resolution=SIZE, seed=5)
    found = open_training_data(options([gr1, other], cache))
    one, two = (open_training_data(options([path], cache)).metadata["gr1"] for path in (gr1, other))
    merged = found.metadata["gr1"].statistics("action.left_arm")
    parts = [each.statistics("action.left_arm") for each in (one, two)]
    np.testing.assert_allclose(merged.mean, 0.75 * parts[0].mean + 0.25 * parts[1].mean)
    np.testing.assert_array_equal(merged.max, np.maximum(parts[0].max, parts[1].max))
    for recording in found.recordings:
        sample = recording.sample(0, 3, None)
        assert sample["action"].abs().max() <= 1
    assert "75.0 % of the samples" in found.notes[0]


def test_missing_episodes_are_refused_or_left_out(demo, cache):
    with pytest.raises(DatasetError, match=r"2 of 5 listed episodes are not here: 3, 4[\s\S]*--episodes present"):
        open_training_data(options([demo], cache))
    found = open_training_data(options([demo], cache, episodes="present", frame_cache_gb=0.0))
    assert found.steps == 1356
    whole = LeRobotDataset(demo, data_config(GR1).modality_config()).metadata("gr1").statistics("action.left_arm")
    here = found.metadata["gr1"].statistics("action.left_arm")
    assert (here.max <= whole.max).all()
    assert (here.max < whole.max).any()
    assert any("computed from the rows, 3 of 5 parquet files" in note for note in found.notes)
    assert any(note.startswith("gr1: these columns never change") for note in found.notes)
    assert any("keeps 0 of 3 episodes" in note and "--frame_cache_gb" in note for note in found.notes)


def test_a_missing_video_counts_as_a_missing_episode(gr1, cache, tmp_path):
    copy = Path(shutil.copytree(gr1, tmp_path / "data"))
    next((copy / "videos").rglob("episode_000001.mp4")).unlink()
    with pytest.raises(DatasetError, match=r"1 of 3 listed episodes are not here: 1\n.*episode_000001.mp4, for one"):
        open_training_data(options([copy], cache))
    assert open_training_data(options([copy], cache, episodes="present")).steps == 40


class Flipped(type(data_config(GR1))):
    """Every image may be flipped."""

    def transform(self):
        return ComposedModalityTransform([VideoHorizontalFlip(self.video_keys), super().transform()])


class Short(type(data_config(GR1))):
    action_indices = tuple(range(8))
    embodiment_tag = None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"eval_episodes": 3}, DatasetError, r"--eval_episodes 3: .*gr1 has 3 episodes"),
        ({"eval_episodes": -1}, UsageError, r"--eval_episodes -1"),
        ({"sampling": "upstreem"}, UsageError, r"--sampling: unknown value 'upstreem'[\s\S]*did you mean upstream"),
        ({"episodes": "some"}, UsageError, r"--episodes: unknown value 'some'"),
        ({"frame_lookup": "indx"}, PlanError, r"frame_lookup: unknown value 'indx'"),
        ({"weights": [0]}, UsageError, r"--dataset_weights: 0"),
        ({"weights": [0.5], "sampling": "upstream"}, UsageError, r"no dataset has the weight 1"),
        (
            {"configs": ["so100"], "tags": ["new_embodiment"]},
            DatasetError,
            r"gr1/meta/modality.json: no video key 'video.webcam'",
        ),
        ({"configs": [Flipped()]}, PlanError, r"VideoHorizontalFlip is not carried out in a training"),
        ({"configs": ["nothing"]}, PlanError, r"--data_config: unknown value 'nothing'"),
        ({"tags": ["oxe_droid"]}, PlanError, r"--embodiment_tag oxe_droid"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(gr1, cache, change, error, message):
    with pytest.raises(error, match=message):
        open_training_data(options([gr1], cache, **change))


def test_without_augmentation_nothing_random_is_refused(gr1, cache):
    with pytest.raises(PlanError):
        open_training_data(options([gr1], cache, configs=[Flipped()]))
    found = open_training_data(options([gr1], cache, configs=[Flipped()], augment=False))
    assert found.inputs([Frame(0, 0, 0)], [0], 42)["action"].shape == (1, 16, 32)


def test_datasets_that_do_not_go_together_are_refused(gr1, so100, cache, tmp_path):
    both = {"configs": [GR1, Short()], "tags": ["gr1", "new_embodiment"]}
    with pytest.raises(PlanError, match="data configs with 16 and 8 action rows in one training"):
        open_training_data(options([gr1, gr1], cache, **both))
    with pytest.raises(PlanError, match=f"--embodiment_tag new_embodiment: two data configs, {GR1} and so100"):
        open_training_data(options([gr1, so100], cache, configs=[GR1, SO100], tags=["new_embodiment"]))
    smaller = write_synthetic_dataset(tmp_path / "s", data_config=GR1, episodes=1, length=4, resolution=(32, 48))
    with pytest.raises(DatasetError, match=r"s: video.ego_view is 32 x 48 pixels[\s\S]*64 x 48 pixels, as in .*gr1"):
        open_training_data(options([gr1, smaller], cache))


def test_values_of_flags_belong_to_datasets():
    found = read_sources(["a", "b"], ["x"], ["gr1", "oxe_droid"], [1, 0.5])
    assert [(s.path, s.config, s.tag, s.weight) for s in found] == [("a", "x", "gr1", 1), ("b", "x", "oxe_droid", 0.5)]
    with pytest.raises(UsageError, match=r"--data_config: 3 values for 2 datasets"):
        read_sources(["a", "b"], ["x", "y", "z"], ["gr1"])
    with pytest.raises(UsageError, match=r"--dataset_path: a is named twice"):
        read_sources(["a", "b", "a"], ["x"], ["gr1"])
    assert len(read_sources(["synthetic", "synthetic"], [GR1, SO100], ["gr1", "new_embodiment"])) == 2


def test_synthetic_is_made(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = open_training_data(options(["synthetic"], "off", configs=[data_config(GR1)]))
    assert (found.steps, found.embodiment_ids) == (64, {"gr1": 24})


def test_a_row_that_is_no_number_names_file_and_row(gr1, tmp_path):
    from gr00t_trt.data.parquet import Table, write_table

    copy = Path(shutil.copytree(gr1, tmp_path / "data"))
    path = copy / "data/chunk-000/episode_000001.parquet"
    table = Table(path)
    columns = {name: table.column(name).copy() for name in table.names}
    columns["action"][4, 2] = np.nan
    write_table(path, columns)
    found = open_training_data(options([copy], tmp_path / "cache"))
    assert found.inputs([Frame(0, 0, 4)], [0], 42)["action"].isfinite().all()
    with pytest.raises(Gr00tError, match=r"episode_000001.parquet: column 'action' holds nan in row 4, element 2"):
        found.inputs([Frame(0, 1, 15)], [0], 42)
    assert len(list((tmp_path / "cache").glob("*.frames"))) == 1
