"""The meta folder of a LeRobot v2 dataset: info, modality, episodes, tasks, and statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, unknown
from .metadata import ROTATIONS, STATISTICS, DatasetMetadata, PartInfo, Statistics, VideoInfo, statistics_from

DEFAULT_COLUMNS = {"state": "observation.state", "action": "action"}


@dataclass(frozen=True)
class PartLayout:
    """Where a state or action part lies: ``column[start:end]`` of every row."""

    start: int
    end: int
    column: str
    info: PartInfo


@dataclass(frozen=True)
class ModalityLayout:
    """modality.json. `video` maps a view to its feature key, `annotation` a name to its parquet column."""

    state: Mapping[str, PartLayout]
    action: Mapping[str, PartLayout]
    video: Mapping[str, str]
    annotation: Mapping[str, str]

    def keys(self, section: str) -> list[str]:
        """Full keys of one section, such as ``video.ego_view``."""
        return [f"{section}.{name}" for name in getattr(self, section)]


@dataclass(frozen=True)
class Episode:
    """One line of episodes.jsonl; `length` in frames."""

    index: int
    length: int


@dataclass(frozen=True)
class DatasetInfo:
    """What info.json says about file names and cameras."""

    path: Path
    data_path: str
    video_path: str
    chunks_size: int
    features: Mapping[str, Any]

    def parquet_file(self, episode: int) -> Path:
        return self._file("data_path", self.data_path, episode)

    def video_file(self, episode: int, feature: str) -> Path:
        return self._file("video_path", self.video_path, episode, video_key=feature)

    def _file(self, field: str, template: str, episode: int, **names: str) -> Path:
        try:
            relative = template.format(episode_chunk=episode // self.chunks_size, episode_index=episode, **names)
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise DatasetError(
                f"{self.path}: {field} {template!r} cannot be filled in: {error!r}",
                known="a template with episode_chunk, episode_index" + (" and video_key" if names else ""),
            ) from error
        return self.path.parent.parent / relative

    def view(self, feature: str) -> VideoInfo:
        """The camera behind a video feature. Raises: DatasetError when info.json does not describe it."""
        if feature not in self.features:
            videos = [k for k, v in self.features.items() if isinstance(v, dict) and v.get("dtype") == "video"]
            raise unknown(DatasetError, f"{self.path}: features", feature, videos)
        entry = self.features[feature]
        try:
            names, shape = list(entry["names"]), list(entry["shape"])
            width, height = int(shape[names.index("width")]), int(shape[names.index("height")])
            if "channel" in names and "video.fps" in (entry.get("video_info") or {}):
                channels, fps = int(shape[names.index("channel")]), float(entry["video_info"]["video.fps"])
            else:
                channels, fps = int(entry["info"]["video.channels"]), float(entry["info"]["video.fps"])
        except (LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
            raise DatasetError(
                f"{self.path}: features.{feature} does not describe a video: {error!r}",
                known='"shape" and "names" with height, width, channel; "video_info" (or "info") with video.fps',
                fix="complete the entry in meta/info.json",
            ) from error
        return VideoInfo((width, height), channels, fps)


def read_info(root: Path) -> DatasetInfo:
    """Read meta/info.json. Raises: DatasetError."""
    path = root / "meta" / "info.json"
    info = _read_object(path)
    for name in ("data_path", "video_path", "chunks_size", "features"):
        if name not in info:
            raise DatasetError(f"{path}: key {name!r} is missing", known=sorted(info), fix="add it to meta/info.json")
    size = info["chunks_size"]
    if not isinstance(size, int) or size < 1:
        raise DatasetError(f"{path}: chunks_size is {size!r}", known="a positive integer, usually 1000")
    for name in ("data_path", "video_path"):
        if not isinstance(info[name], str):
            raise DatasetError(f"{path}: {name} is {info[name]!r}", known="a template, such as data/{episode_index}")
    if not isinstance(info["features"], dict):
        raise DatasetError(f"{path}: features is {type(info['features']).__name__}", known="an object")
    return DatasetInfo(path, info["data_path"], info["video_path"], size, info["features"])


def read_modality(root: Path) -> ModalityLayout:
    """Read meta/modality.json. Raises: DatasetError."""
    path = root / "meta" / "modality.json"
    content = _read_object(path)
    content.setdefault("annotation", {})
    for section in ("state", "action", "video", "annotation"):
        if not isinstance(content.get(section), dict):
            raise DatasetError(
                f"{path}: section {section!r} is missing or not an object",
                known=sorted(content),
                fix="modality.json is GR00T's addition to LeRobot: it names the parts and views",
            )
    parts = {s: {n: _part(path, s, n, e) for n, e in content[s].items()} for s in ("state", "action")}
    video = {name: str(_original_key(entry) or name) for name, entry in content["video"].items()}
    annotation = {n: str(_original_key(entry) or f"annotation.{n}") for n, entry in content["annotation"].items()}
    return ModalityLayout(parts["state"], parts["action"], video, annotation)


def _original_key(entry: Any) -> Any:
    return entry.get("original_key") if isinstance(entry, dict) else None


def _part(path: Path, section: str, name: str, entry: Any) -> PartLayout:
    where = f"{path}: {section}.{name}"
    try:
        start, end = int(entry["start"]), int(entry["end"])
        continuous = bool(np.issubdtype(np.dtype(entry.get("dtype", "float64")), np.floating))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{where} is malformed: {entry!r}",
            known='{"start": 0, "end": 7}, optionally original_key, absolute, rotation_type and a numpy dtype',
        ) from error
    if not 0 <= start < end:
        raise DatasetError(f"{where}: start {start}, end {end} is no slice", known="0 <= start < end")
    rotation = entry.get("rotation_type")
    if rotation is not None and rotation not in ROTATIONS:
        raise unknown(DatasetError, f"{where}.rotation_type", rotation, ROTATIONS)
    info = PartInfo(end - start, bool(entry.get("absolute", True)), rotation, continuous)
    return PartLayout(start, end, str(entry.get("original_key") or DEFAULT_COLUMNS[section]), info)


def read_episodes(root: Path) -> list[Episode]:
    """Read meta/episodes.jsonl, in file order. Raises: DatasetError, also for no episode or no frame at all."""
    path = root / "meta" / "episodes.jsonl"
    episodes: dict[int, Episode] = {}
    for number, line in _read_lines(path):
        try:
            episode = Episode(int(line["episode_index"]), int(line["length"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(
                f"{path}, line {number}: {error!r}", known='{"episode_index": 0, "length": 416, "tasks": [...]}'
            ) from error
        if episode.index < 0 or episode.length < 0:
            raise DatasetError(f"{path}, line {number}: negative episode_index or length in {line}")
        if episode.index in episodes:
            raise DatasetError(f"{path}, line {number}: episode {episode.index} is listed twice", fix="remove one line")
        episodes[episode.index] = episode
    if not sum(episode.length for episode in episodes.values()):
        raise DatasetError(
            f"{path}: {len(episodes)} episodes with 0 frames",
            known="at least one episode with a length of at least 1",
            fix="record or download an episode; the dataset is empty",
        )
    return list(episodes.values())


def read_tasks(root: Path) -> dict[int, str]:
    """Read meta/tasks.jsonl: task index -> instruction. Raises: DatasetError."""
    path = root / "meta" / "tasks.jsonl"
    tasks = {}
    for number, line in _read_lines(path):
        try:
            index, task = int(line["task_index"]), line["task"]
            if not isinstance(task, str):
                raise TypeError(f"task is {task!r}")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(f"{path}, line {number}: {error!r}", known='{"task_index": 0, "task": "..."}') from error
        tasks[index] = task
    return tasks


def read_statistics(root: Path) -> dict[str, Statistics] | None:
    """Read meta/stats.json, or None when it is absent or any entry is incomplete (then it has to be recomputed)."""
    path = root / "meta" / "stats.json"
    if not path.exists():
        return None
    columns = _read_object(path)
    try:
        return {name: statistics_from(entry, f"{path}: {name}", DatasetError) for name, entry in columns.items()}
    except DatasetError:
        return None


def build_metadata(
    tag: str, root: Path, info: DatasetInfo, layout: ModalityLayout, columns: Mapping[str, Statistics]
) -> DatasetMetadata:
    """Statistics of every part, sliced from those of its column, with the layout of every part and view.

    Args:
        columns: Statistics per parquet column.
    Raises: DatasetError for a column without statistics or one that is narrower than a part.
    """
    statistics: dict[str, dict[str, Statistics]] = {"state": {}, "action": {}}
    for section, values in statistics.items():
        for name, part in getattr(layout, section).items():
            if part.column not in columns:
                raise DatasetError(
                    f"{root / 'meta' / 'stats.json'}: no statistics for column {part.column!r} ({section}.{name})",
                    known=sorted(columns),
                    fix=f"correct original_key of {section}.{name} in meta/modality.json, or delete meta/stats.json "
                    "to have statistics computed from the parquet files",
                )
            column = columns[part.column]
            if part.end > column.min.size:
                raise DatasetError(
                    f"{root / 'meta' / 'modality.json'}: {section}.{name} ends at {part.end}",
                    known=f"column {part.column!r} is {column.min.size} wide",
                    fix="correct start and end in meta/modality.json",
                )
            values[name] = Statistics(**{f: getattr(column, f)[part.start : part.end] for f in STATISTICS})
    return DatasetMetadata(
        tag,
        {name: info.view(feature) for name, feature in layout.video.items()},
        {name: part.info for name, part in layout.state.items()},
        {name: part.info for name, part in layout.action.items()},
        statistics["state"],
        statistics["action"],
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: no such file",
            known="a GR00T LeRobot dataset holds meta/info.json, modality.json, episodes.jsonl and tasks.jsonl",
            fix="check --dataset_path, or convert the dataset to LeRobot v2 with a modality.json",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}", fix="fetch the file again") from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: invalid JSON: {error}", fix="correct the file or fetch it again") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds {type(content).__name__}", known="a JSON object")
    return content


def _read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    lines = []
    for number, text in enumerate(_read_text(path).splitlines(), start=1):
        try:
            if text.strip():
                lines.append((number, json.loads(text)))
        except ValueError as error:
            what = f"{path}, line {number}: invalid JSON: {error}"
            raise DatasetError(what, fix="one JSON object per line") from error
    return lines
