"""A version 2 dataset rewritten as LeRobot v3.0: all episodes in one parquet file and one video per camera."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import av
import pyarrow as pa
import pyarrow.parquet as pq

PLACE = "chunk-000/file-000"


def convert_to_v3(source: Path, target: Path, episodes: list[int], *, modality: bool = True) -> Path:
    """Write `episodes` of a dataset into a new folder, and return it.

    Args:
        modality: Whether meta/modality.json goes along; LeRobot's own datasets have none.
    """
    info = json.loads((source / "meta/info.json").read_text())
    views = [name for name in info["features"] if (source / f"videos/chunk-000/{name}").is_dir()]
    tables = [pq.read_table(source / f"data/chunk-000/episode_{index:06d}.parquet") for index in episodes]
    listing: dict[str, list] = {"episode_index": episodes, "length": [len(table) for table in tables]}
    for name in ("chunk_index", "file_index"):
        listing |= {f"{prefix}/{name}": [0] * len(episodes) for prefix in ("data", *(f"videos/{v}" for v in views))}
    for view in views:
        clips = [source / f"videos/chunk-000/{view}/episode_{index:06d}.mp4" for index in episodes]
        ends = concatenate(clips, target / f"videos/{view}/{PLACE}.mp4")
        listing[f"videos/{view}/from_timestamp"] = [0.0, *ends[:-1]]
        listing[f"videos/{view}/to_timestamp"] = ends
    write(target / f"data/{PLACE}.parquet", pa.concat_tables(tables))
    write(target / f"meta/episodes/{PLACE}.parquet", pa.table(listing))
    lines = [json.loads(line) for line in (source / "meta/tasks.jsonl").read_text().split("\n") if line]
    tasks = {
        "task_index": [line["task_index"] for line in lines],
        "__index_level_0__": [line["task"] for line in lines],
    }
    write(target / "meta/tasks.parquet", pa.table(tasks))
    info |= {
        "codebase_version": "v3.0",
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    }
    (target / "meta/info.json").write_text(json.dumps(info))
    for name in ("stats.json", *(["modality.json"] if modality else [])):
        shutil.copy(source / "meta" / name, target / "meta" / name)
    return target


def write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def concatenate(clips: list[Path], target: Path) -> list[float]:
    """Copy the packets of some videos one after the other; returns where each ends, in seconds added up as floats."""
    target.parent.mkdir(parents=True, exist_ok=True)
    ends, offset = [], Fraction(0)
    with av.open(str(target), "w") as out:
        copy = None
        for clip in clips:
            with av.open(str(clip)) as read:
                stream = read.streams.video[0]
                copy = copy or out.add_stream_from_template(stream)
                shift = int(offset / stream.time_base)
                for packet in read.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                        out.mux(packet)
                offset += stream.duration * stream.time_base
                ends.append((ends[-1] if ends else 0.0) + float(stream.duration * stream.time_base))
    return ends
