"""What a LeRobot dataset is made of: info.json, modality.json, and the episodes and tasks of version 2."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import Any

import numpy as np

from ..errors import DatasetError, Gr00tError, unknown
from .meta_files import LONGEST_SHOWN, read_lines, read_object, shown, whole_number
from .metadata import ROTATIONS, Entry, PartInfo, VideoInfo, read_each

DEFAULT_COLUMNS = {"state": "observation.state", "action": "action"}
MAX_PIXELS_PER_SIDE = 16384
MOST_ROWS = 10**9
LONGEST_PATH = 1000
_WIDTH = re.compile(r"(0?[1-9]\d?)?d?")
_MODALITY_EXAMPLE = (
    '{"state": {"single_arm": {"start": 0, "end": 5}, "gripper": {"start": 5, "end": 6}}, "action": {...}, '
    '"video": {"webcam": {"original_key": "observation.images.front"}}, '
    '"annotation": {"human.task_description": {"original_key": "task_index"}}}'
)


@dataclass(frozen=True)
class PartLayout:
    """Where a state or action part lies: ``column[start:end]`` of every row."""

    start: int
    end: int
    column: str
    info: PartInfo


@dataclass(frozen=True)
class ModalityLayout:
    """Parts, views and annotations. `video` maps a view to its feature key, `annotation` a name to its column.

    Attributes:
        path: The file that says so: modality.json, or info.json in a dataset without one.
        broken: Full key or section -> what is wrong with its entry; raised when it is asked for.
    """

    path: Path
    state: Mapping[str, PartLayout]
    action: Mapping[str, PartLayout]
    video: Mapping[str, str]
    annotation: Mapping[str, str]
    broken: Mapping[str, Gr00tError] = field(default_factory=dict)

    def keys(self, section: str) -> list[str]:
        """Full keys of one section, such as ``video.ego_view``."""
        return [f"{section}.{name}" for name in getattr(self, section)]

    def require(self, section: str, key: str) -> None:
        """Raises: DatasetError where the dataset has no such key in this section, or its entry is malformed."""
        if key in self.keys(section):
            return
        for name in (key, section):
            if name in self.broken:
                raise self.broken[name]
        what = f"{self.path}: no {section} key {key!r}, which the data config asks for"
        fix = "choose the --data_config that was made for this robot, or add the key"
        if self.path.name == "info.json":
            what = f"{what}, and no modality.json beside it"
            fix = f"write meta/modality.json, which names parts and views, such as {_MODALITY_EXAMPLE}"
        raise DatasetError(what, known=self.keys(section), fix=fix)


@dataclass(frozen=True)
class Episode:
    """One recorded episode; `length` in frames."""

    index: int
    length: int


@dataclass(frozen=True)
class DatasetInfo:
    """info.json: version of the format (2 or 3), file names, cameras.

    Attributes:
        chunks_size: Episodes per folder in version 2.
    """

    path: Path
    version: int
    data_path: str
    video_path: str | None
    chunks_size: int
    features: Mapping[str, Any]
    fps: Any = None

    def view_names(self) -> tuple[str, ...]:
        """What a template of videos must hold so that every view has its own."""
        videos = [name for name in self.cameras() if not self.is_image(name)]
        return ("video_key",) if len(videos) > 1 else ()

    def file(self, template: str, values: Mapping[str, int | str], needed: tuple[str, ...] = ()) -> Path:
        """A template of info.json, ``data_path`` or ``video_path``, filled in.

        Args:
            needed: Names without which it would be the same file for different episodes or views.
        Raises: DatasetError for a malformed template, or one that leads out of the dataset's folder.
        """
        text = getattr(self, template)
        known = f"a template with {', '.join(values)}"
        if not isinstance(text, str):
            raise DatasetError(f"{self.path}: {template} is {shown(text)}", known=known)
        what = f"{self.path}: {template} {shown(text)}"
        try:
            relative = _fill(text, values, needed)
        except ValueError as error:
            raise DatasetError(f"{what} cannot be filled in: {error}", known=known) from error
        if not inside(relative):
            raise DatasetError(f"{what} leads out of the dataset folder", known=f"{known}, below the folder")
        return self.path.parent.parent / relative

    def is_image(self, feature: str) -> bool:
        """Whether a camera's frames are images in the parquet files instead of a video."""
        entry = self.features.get(feature)
        return isinstance(entry, dict) and entry.get("dtype") == "image"

    def view(self, feature: str) -> VideoInfo:
        """The camera behind a video or image feature. Raises: DatasetError when info.json does not describe it."""
        if feature not in self.features:
            raise unknown(DatasetError, f"{self.path}: features", feature, self.cameras())
        try:
            return _view(self.features[feature], self.fps)
        except (LookupError, ValueError, TypeError, OverflowError, AttributeError) as error:
            raise DatasetError(
                f"{self.path}: features.{feature} does not describe a video: {error!r}",
                known='"shape" and "names" with height, width, channel; "video_info" (or "info") with video.fps',
                fix="complete the entry in meta/info.json",
            ) from error

    def cameras(self) -> list[str]:
        """Video and image features."""
        found = self.features.items()
        return [k for k, v in found if isinstance(v, dict) and v.get("dtype") in ("video", "image")]


def _fill(template: str, values: Mapping[str, int | str], needed: tuple[str, ...]) -> str:
    # Not str.format: a width of a billion would be carried out, and attributes of the values read.
    out, used = [], set()
    for literal, name, width, conversion in Formatter().parse(template):
        out.append(literal)
        if name is None:
            continue
        value = values.get(name)
        if value is None or conversion or (width and (isinstance(value, str) or not _WIDTH.fullmatch(width))):
            raise ValueError(f"{{{shown(name)}}} is not one of its names with a width of at most two digits")
        used.add(name)
        out.append(format(value, width or ""))
    missing = [name for name in needed if name not in used]
    if missing:
        raise ValueError(f"without {{{missing[0]}}} it names the same file for every episode or view")
    path = "".join(out)
    if len(path) > LONGEST_PATH:
        raise ValueError(f"the name has {len(path)} characters")
    return path


def inside(relative: str) -> bool:
    """Whether a path of a dataset's file stays in the dataset's folder."""
    path = PurePosixPath(relative.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in relative


def _view(entry: Any, fps: Any) -> VideoInfo:
    shape = [whole_number(side) for side in entry["shape"]]
    names = list(entry.get("names") or (("height", "width", "channel") if shape[-1] in (1, 3, 4) else ()))
    height, width = shape[names.index("height")], shape[names.index("width")]
    if not (0 < width <= MAX_PIXELS_PER_SIDE and 0 < height <= MAX_PIXELS_PER_SIDE):
        raise ValueError(f"{width} x {height} pixels")
    said = {**(entry.get("info") or {}), **(entry.get("video_info") or {})}
    named = [shape[names.index(name)] for name in ("channel", "channels") if name in names]
    channels = named[0] if named else whole_number(said["video.channels"])
    rate = next((float(v) for v in (said.get("video.fps"), entry.get("fps"), fps) if v is not None), None)
    if rate is None or not 0 < rate < float("inf"):
        raise ValueError(f"video.fps is {rate}")
    return VideoInfo((width, height), channels, rate)


def read_info(root: Path) -> DatasetInfo:
    """Read meta/info.json. Raises: DatasetError."""
    path = root / "meta" / "info.json"
    info = read_object(path)
    for name in ("data_path", "features"):
        if name not in info:
            raise DatasetError(f"{path}: key {name!r} is missing", known=sorted(info), fix="add it to meta/info.json")
    version = _version(path, str(info.get("codebase_version", "v2.0")))
    size = info.get("chunks_size", 1000)
    if version == 2 and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
        raise DatasetError(f"{path}: chunks_size is {shown(size)}", known="a positive integer, usually 1000")
    if not isinstance(info["data_path"], str):
        known = "a template, such as data/{episode_index}"
        raise DatasetError(f"{path}: data_path is {shown(info['data_path'])}", known=known)
    if not isinstance(info["features"], dict):
        raise DatasetError(f"{path}: features is {type(info['features']).__name__}", known="an object")
    video_path = info.get("video_path")
    return DatasetInfo(path, version, info["data_path"], video_path, size, info["features"], info.get("fps"))


def _version(path: Path, said: str) -> int:
    match = re.match(r"v?([23])(?!\d)", said)
    if match is None:
        raise DatasetError(
            f"{path}: codebase_version {shown(said)} is not read here",
            known="LeRobot v2.0, v2.1 and v3.0",
            fix="convert the dataset with LeRobot's own conversion scripts",
        )
    return int(match[1])


def read_modality(root: Path) -> ModalityLayout:
    """Read meta/modality.json; entries that are malformed stand in `broken`. Raises: DatasetError."""
    path = root / "meta" / "modality.json"
    content, broken = {"annotation": {}, **read_object(path)}, dict[str, Gr00tError]()

    def read(section: str, one: Callable[[object, str], Entry]) -> dict[str, Entry]:
        entries = content.get(section)
        if isinstance(entries, dict):
            return read_each(entries, section, f"{path}: ", one, broken)
        what = f"{path}: section {section!r} is missing or not an object"
        fix = "modality.json is GR00T's addition to LeRobot: it names the parts and views"
        broken[section] = DatasetError(what, known=sorted(content), fix=fix)
        return {}

    return ModalityLayout(
        path,
        read("state", partial(_part, DEFAULT_COLUMNS["state"])),
        read("action", partial(_part, DEFAULT_COLUMNS["action"])),
        # Without original_key, a view is the feature of its own name, and an annotation the column of its full key.
        {name: feature or name for name, feature in read("video", _original_key).items()},
        {name: column or f"annotation.{name}" for name, column in read("annotation", _original_key).items()},
        broken,
    )


def _original_key(entry: Any, where: str) -> str | None:
    key = entry.get("original_key") if isinstance(entry, dict) else None
    if not isinstance(key, (str, type(None))):
        raise DatasetError(f"{where}: original_key is {shown(key)}", known="the name of a column or feature")
    return key


def _part(default_column: str, entry: Any, where: str) -> PartLayout:
    try:
        start, end = whole_number(entry["start"]), whole_number(entry["end"])
        continuous = bool(np.issubdtype(np.dtype(entry.get("dtype", "float64")), np.floating))
        absolute, rotation = entry.get("absolute", True), entry.get("rotation_type")
        if not isinstance(absolute, bool):
            raise ValueError(f"absolute is {shown(absolute)}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DatasetError(
            f"{where} is malformed: {shown(entry)}",
            known='{"start": 0, "end": 7}, optionally original_key, absolute, rotation_type and a numpy dtype',
        ) from error
    if not 0 <= start < end:
        raise DatasetError(f"{where}: start {start}, end {end} is no slice", known="0 <= start < end")
    if rotation is not None and rotation not in ROTATIONS:
        raise unknown(DatasetError, f"{where}.rotation_type", str(rotation)[:LONGEST_SHOWN], ROTATIONS)
    column = _original_key(entry, where) or default_column
    return PartLayout(start, end, column, PartInfo(end - start, absolute, rotation, continuous))


def read_episodes(root: Path) -> list[Episode]:
    """Read meta/episodes.jsonl, in file order. Raises: DatasetError, also for no episode or no frame at all."""
    path = root / "meta" / "episodes.jsonl"

    def read(line: Any) -> Episode:
        return Episode(whole_number(line["episode_index"]), whole_number(line["length"]))

    return check_episodes(path, _each_line(path, read, '{"episode_index": 0, "length": 416, "tasks": [...]}'))


def check_episodes(path: Path, listed: list[tuple[str, Episode]]) -> list[Episode]:
    """Episodes with the places where `path` lists them. Raises: DatasetError for impossible ones, or no frame."""
    episodes: dict[int, Episode] = {}
    for place, episode in listed:
        if episode.index < 0 or episode.length < 0:
            raise DatasetError(f"{path}, {place}: negative episode_index or length in {episode}")
        if episode.index > MOST_ROWS or episode.length > MOST_ROWS:
            raise DatasetError(f"{path}, {place}: {episode}", known=f"at most {MOST_ROWS:.0e} episodes and frames")
        if episode.index in episodes:
            raise DatasetError(f"{path}, {place}: episode {episode.index} is listed twice", fix="remove one of them")
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

    def read(line: Any) -> tuple[int, str]:
        index, task = whole_number(line["task_index"]), line["task"]
        if not isinstance(task, str):
            raise TypeError(f"task is {task!r}")
        return index, task

    return dict(task for _, task in _each_line(path, read, '{"task_index": 0, "task": "..."}'))


def _each_line(path: Path, read: Callable[[Any], Entry], known: str) -> list[tuple[str, Entry]]:
    """What `read` makes of every line, with the place of the line. Raises: DatasetError for what it cannot read."""
    out = []
    for number, line in read_lines(path):
        try:
            out.append((f"line {number}", read(line)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DatasetError(f"{path}, line {number}: {error!r}", known=known) from error
    return out
