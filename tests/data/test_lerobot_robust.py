"""What nobody asked for decides nothing, what is asked for is right or one error, and no file keeps one waiting."""

from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_lerobot import LANGUAGE, LENGTH, PARQUET, POINTER, VIDEO, VIEW, edit_json, rewrite

from gr00t_trt.data import LeRobotDataset, ModalityConfig
from gr00t_trt.errors import DatasetError, Gr00tError

FIELDS = ("max", "min", "mean", "std", "q01", "q99")


def entry(width: int = 26, **changes) -> dict:
    values = {"max": 3.0, "min": -3.0, "mean": 0.0, "std": 1.0, "q01": -2.5, "q99": 2.5}
    return {name: [value] * width for name, value in values.items()} | changes


def statistics(root, config, key="action.left_arm"):
    dataset = LeRobotDataset(root, config.modality_config())
    return dataset.metadata("gr1").statistics(key), dataset.notes


def rows(change):
    return lambda root: rewrite(root, 0, change)


def replaced(columns, name, row, value):
    columns[name] = columns[name].astype(np.float64)
    columns[name][row] = value


def repeated(columns):
    for name, values in columns.items():
        columns[name] = np.concatenate([values, values[-1:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (rows(lambda c: replaced(c, "frame_index", 5, 6)), r"frame_index is 6\.0 in row 5 of episode 0\n  known: 5"),
        (rows(lambda c: c.update(frame_index=np.arange(LENGTH) + 1)), "frame_index is 1 in row 0"),
        (rows(lambda c: c.update(episode_index=np.ones(LENGTH))), "episode_index is 1.0 in row 0 of episode 0"),
        (rows(repeated), r"000000\.parquet: 21 rows\n  known: meta/episodes\.jsonl says 20 for episode 0"),
        (rows(lambda c: replaced(c, "action", (3, 2), np.nan)), r"column 'action' holds nan in row 3, element 2"),
        (
            rows(lambda c: replaced(c, "observation.state", (2, 0), np.inf)),
            "'observation.state' holds inf in row 2, ele",
        ),
    ],
)
def test_rows_that_cannot_be_right(damaged, config, change, words):
    change(damaged)
    dataset = LeRobotDataset(damaged, config.modality_config())
    with pytest.raises(DatasetError, match=words):
        dataset.step(0, 2)
    dataset.step(1, 2)


def test_a_nan_stops_the_rows_and_parts_that_need_it(damaged, config):
    rewrite(damaged, 0, lambda c: replaced(c, "action", (3, 2), np.nan))
    (damaged / "meta/stats.json").unlink()
    dataset = LeRobotDataset(damaged, config.modality_config())
    dataset.step(0, 4)
    with pytest.raises(DatasetError, match=r"000000\.parquet: column 'action' holds nan in row 3, element 2"):
        dataset.metadata("gr1")
    hand = LeRobotDataset(damaged, {"action": ModalityConfig([0], ["action.left_hand"])})
    hand.step(0, 3)
    assert set(hand.metadata("gr1").action) == {"left_hand", "right_arm", "right_hand"}


OTHERS = {
    "a camera": {VIEW: {name: [[[0.1]], [[0.2]], [[0.3]]] for name in FIELDS}},
    "counts and further quantiles": {"action": entry(count=[9], q50=[0.0])},
    "a reward that is NaN": {"next.reward": {name: [float("nan")] for name in FIELDS}},
    "an entry without quantiles": {"timestamp": {"max": [1.0], "min": [0.0]}},
    "null": {"index": None, "task_index": dict.fromkeys(FIELDS)},
    "text": {"note": dict.fromkeys(FIELDS, "x"), "more": "x"},
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_entries_of_stats_json_change_nothing(damaged, config, name):
    edit_json(damaged / "meta/stats.json", lambda s: s.update({"action": entry(), **OTHERS[name]}))
    found, notes = statistics(damaged, config)
    assert found.max.tolist() == [3.0] * 7
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("incomplete", "why"),
    [
        ({k: v for k, v in entry().items() if k[0] != "q"}, "action: no q01, q99"),
        (None, "action: no entry"),
        (entry(q01=None), "action: no q01"),
        (entry(std=[2.9] * 26, q01=[0.0] * 26, q99=[0.0] * 26), "action: its q01 and q99 are averages"),
    ],
)
def test_what_stats_json_lacks_is_computed_and_said(damaged, config, metadata, incomplete, why):
    edit_json(damaged / "meta/stats.json", lambda s: s.update({"action": incomplete, "observation.state": entry()}))
    rewrite(damaged, 1, lambda c: c.update({"observation.state": np.full((LENGTH, 26), np.nan)}))
    (damaged / "data/chunk-000/episode_000000.parquet").touch()
    found, notes = statistics(damaged, config)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(found, name), getattr(metadata.statistics("action.left_arm"), name))
    assert statistics(damaged, config, "state.left_arm")[0].max.tolist() == [3.0] * 7
    assert "'observation.state' are those of" in notes[0]
    assert why in notes[1]
    assert "2 of 2 parquet files" in notes[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"min": [4.0] * 26}, r"column 'action', action\.left_arm: min 4 exceeds max 3"),
        ({"max": [float("nan")] * 26}, "action.left_arm: max is nan"),
        ({"mean": [None] * 26}, "action: statistics are not lists of numbers"),
        ({"mean": ["0"] * 26}, "action: statistics are not lists of numbers"),
        ({"std": [-1.0] * 26}, "action.left_arm: std -1 is negative"),
        ({"q01": [2.9] * 26}, "q01 2.9 exceeds q99 2.5"),
        ({"q01": [0.0]}, "action: statistics differ in length"),
        ({"max": "much"}, "action: statistics are not lists of numbers"),
    ],
)
def test_statistics_that_no_recording_has_are_an_error(damaged, config, change, words):
    edit_json(damaged / "meta/stats.json", lambda s: s.update(action=entry(**change)))
    with pytest.raises(DatasetError, match=rf"meta/stats\.json.*{words}"):
        statistics(damaged, config)


def test_impossible_statistics_of_elements_that_no_part_needs(damaged, config):
    def change(stats):
        for bound, value in (("min", 4.0), ("max", 3.0)):
            stats["action"][bound][25] = value

    edit_json(damaged / "meta/stats.json", change)
    kind = {"action": ModalityConfig([0], ["action.left_arm"])}
    found = LeRobotDataset(damaged, kind).metadata("gr1")
    assert set(found.action) == {"left_arm", "left_hand", "right_arm"}


def test_episodes_that_are_not_here(damaged, config, metadata):
    (damaged / PARQUET).write_text(POINTER)
    (damaged / VIDEO).write_text(POINTER)
    assert statistics(damaged, config)[0].max.tolist() == metadata.statistics("action.left_arm").max.tolist()
    dataset = LeRobotDataset(damaged, config.modality_config())
    dataset.step(1, 0)
    with pytest.raises(DatasetError, match=r"episode_000000\.[\s\S]*git lfs pull"):
        dataset.step(0, 0)
    (damaged / "meta/stats.json").unlink()
    assert "1 of 2 parquet files" in statistics(damaged, config)[1][0]


def other_entries(modality) -> None:
    modality["state"] |= {"broken": {"start": 3}, "nowhere": {"start": 0, "end": 3, "original_key": "absent"}}
    modality["action"] |= {"wide": {"start": 0, "end": 99}, "odd": None, "text": {"start": "a", "end": "b"}}
    modality["video"] |= {"absent": {"original_key": "observation.images.absent"}, "odd": {"original_key": 7}}
    modality["annotation"] |= {"absent": {"original_key": "absent"}}
    modality["state"]["velocity"] = {"start": 0, "end": 2, "original_key": "observation.velocity"}


def other_columns(root) -> None:
    table = pq.read_table(root / PARQUET)
    ragged = [[1.0], [1.0, 2.0]] * (LENGTH // 2)
    for name, values in {
        "observation.velocity": ragged,
        "note": [None] * LENGTH,
        "next.reward": [None] * LENGTH,
    }.items():
        table = table.drop_columns([name] if name in table.column_names else []).append_column(name, [values])
    pq.write_table(table, root / PARQUET)


def test_other_parts_and_columns_change_nothing(damaged, config, dataset, metadata):
    edit_json(damaged / "meta/modality.json", other_entries)
    other_columns(damaged)
    found = LeRobotDataset(damaged, config.modality_config())
    for key, value in dataset.step(0, 3).items():
        np.testing.assert_array_equal(found.step(0, 3)[key], value)
    assert found.metadata("gr1").to_dict() == metadata.to_dict()
    (damaged / "meta/stats.json").unlink()
    assert found.metadata("gr1").to_dict() == metadata.to_dict()
    for key in ("state.broken", "action.odd", "action.text"):
        with pytest.raises(DatasetError, match=rf"{key} is malformed"):
            LeRobotDataset(damaged, {key.partition(".")[0]: ModalityConfig([0], [key])})


def test_tasks_and_sections_that_nobody_asks_for(damaged):
    (damaged / "meta/tasks.jsonl").unlink()
    edit_json(damaged / "meta/modality.json", lambda m: (m.pop("video"), m.update(annotation=7)))
    edit_json(damaged / "meta/info.json", lambda i: i.update(features={VIEW: 7}, video_path=None))
    dataset = LeRobotDataset(damaged, {"state": ModalityConfig([0], ["state.left_arm"])})
    assert dataset.step(0, 0)["state.left_arm"].shape == (1, 7)
    assert dataset.metadata("gr1").video == {}


def test_text_files_as_editors_write_them(damaged, config, metadata):
    task = "pick\u2028the\u0085pear\x0b\u2029up"
    path = damaged / "meta/tasks.jsonl"
    lines = [json.loads(line) | {"task": task} for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\r\n" for line in lines), encoding="utf-8", newline=""
    )
    for name in ("info.json", "modality.json", "episodes.jsonl", "tasks.jsonl", "stats.json"):
        path = damaged / "meta" / name
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    dataset = LeRobotDataset(damaged, config.modality_config())
    assert dataset.step(0, 0)[LANGUAGE] == [task]
    assert dataset.metadata("gr1").to_dict() == metadata.to_dict()


DEEP = 100_000


@pytest.mark.parametrize("text", ["[" * DEEP, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP, "[" * 500 + "]" * 500])
@pytest.mark.parametrize("name", ["info.json", "modality.json", "episodes.jsonl", "tasks.jsonl", "stats.json"])
def test_nesting_without_end(damaged, config, name, text):
    (damaged / "meta" / name).write_text(text)

    def read() -> None:
        dataset = LeRobotDataset(damaged, config.modality_config())
        dataset.step(0, 0)
        dataset.metadata("gr1")

    began = time.perf_counter()
    with pytest.raises(DatasetError, match=rf"{name}.*: invalid JSON: nested deeper than 100 levels"):
        read()
    assert time.perf_counter() - began < 1


TEMPLATES = {
    "{episode_index:0999999999d}": "cannot be filled in",
    "{episode_index:999999999}": "cannot be filled in",
    "{episode_index.__class__.__init__.__globals__}": "cannot be filled in",
    "{episode_index!r}": "cannot be filled in",
    "{episode_index:{episode_chunk}}": "cannot be filled in",
    "{0}": "cannot be filled in",
    "{episode_index": "cannot be filled in",
    "data/all.parquet": "names the same file for every episode",
    "/etc/{episode_index}": "leads out of the dataset folder",
    "../{episode_index}": "leads out of the dataset folder",
    "data/../../{episode_index}": "leads out of the dataset folder",
    "": "names the same file for every episode",
    "{episode_index}\0": "leads out of the dataset folder",
    "a" * 300 + "{episode_index}": "no such",
    "a" * 10**6 + "{episode_index}": "cannot be filled in: the name has 1000001 characters",
}


@pytest.mark.parametrize("field", ["data_path", "video_path"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda text: text[:20] + str(len(text)))
def test_templates_of_file_names(damaged, config, field, template):
    edit_json(damaged / "meta/info.json", lambda i: i.update({field: template}))
    began = time.perf_counter()
    with pytest.raises(DatasetError, match=TEMPLATES[template]) as caught:
        LeRobotDataset(damaged, config.modality_config()).step(0, 0)
    assert time.perf_counter() - began < 1
    assert len(str(caught.value)) < 2000


def test_two_views_need_a_file_each(damaged, config):
    def one_file(info) -> None:
        info["video_path"] = info["video_path"].replace("{video_key}", VIEW)
        info["features"]["observation.images.wrist"] = info["features"][VIEW]

    edit_json(damaged / "meta/info.json", one_file)
    with pytest.raises(DatasetError, match=r"without \{video_key\} it names the same file for every episode or view"):
        LeRobotDataset(damaged, config.modality_config()).step(0, 0)


def test_a_view_that_leads_out_of_the_folder(damaged, config):
    def out(modality) -> None:
        modality["video"]["ego_view"]["original_key"] = "../../x"

    edit_json(damaged / "meta/modality.json", out)
    edit_json(damaged / "meta/info.json", lambda i: i["features"].update({"../../x": i["features"][VIEW]}))
    with pytest.raises(DatasetError, match="leads out of the dataset folder"):
        LeRobotDataset(damaged, config.modality_config()).step(0, 0)


@pytest.mark.parametrize("count", [20, 6_000_000])
def test_a_parquet_file_that_decodes_to_gigabytes(damaged, config, count):
    """Either many more rows than the episode has, or more values a row than any robot."""
    width = 60_000 if count == 20 else 1
    offsets = pa.array(np.arange(count + 1, dtype=np.int64) * width, pa.int64())
    lists = pa.LargeListArray.from_arrays(offsets, pa.array(np.zeros(count * width, np.int8)))
    pq.write_table(pa.table({"observation.state": lists}), damaged / PARQUET)
    del lists
    assert (damaged / PARQUET).stat().st_size < 200_000
    began = time.perf_counter()
    with pytest.raises(Gr00tError, match=r"6000000 rows[\s\S]*says 20|decodes to 1200000 values in 20 rows"):
        LeRobotDataset(damaged, {"state": ModalityConfig([0], ["state.left_arm"])}).step(0, 0)
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(
    ("kept", "swapped", "words"),
    [
        (("index",), "index", "index is 3 in row 4"),
        (("timestamp",), "timestamp", r"timestamp is 0\.15.* in row 4"),
        (("frame_index", "timestamp"), "timestamp", None),
    ],
)
def test_rows_out_of_order_without_a_frame_index(damaged, config, kept, swapped, words):
    """Whichever column says the order; a clock that jumps does not, beside one that counts."""
    table = pq.read_table(damaged / PARQUET)
    names = [n for n in table.column_names if n not in {"index", "frame_index", "timestamp"} - set(kept)]
    table = table.select(names)
    values = table.column(swapped).to_pylist()
    values[3], values[4] = values[4], values[3]
    pq.write_table(table.set_column(names.index(swapped), swapped, [values]), damaged / PARQUET)
    dataset = LeRobotDataset(damaged, config.modality_config())
    if words is None:
        dataset.step(0, 0)
        return
    with pytest.raises(DatasetError, match=words):
        dataset.step(0, 0)
