"""Writing a LeRobot v2.1 dataset, row by row: parquet, H.264 videos, all of ``meta``, GR00T's modality.json among it.

It is built beside its place and renamed into it when it is complete, so that nobody ever finds half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..common.video_file import VideoWriter
from ..errors import DatasetError
from .layout import DEFAULT_COLUMNS
from .parquet import column_statistics, write_table

VIDEO = {"preset": "veryfast", "crf": "18", "g": "10", "profile": "high"}
"""Frames for training are read in any order: a key frame every ten keeps that cheap."""
CHUNK = 1000
"""Episodes in one folder."""
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
TASK_COLUMN = "task_index"
SAMPLED = 8
"""Of the pixels, one in so many either way goes into a video's statistics."""


class DatasetWriter:
    """A dataset that grows by whole episodes, several of which may be open at once.

    Args:
        path: The folder that `close` makes; it must not be there yet.
        config: Modality -> keys: every row has to hold those of ``video``, ``state`` and ``action``.
        fps: Rows per second.
        robot: What info.json calls the robot.
        names: Part -> the names of its numbers, for info.json; parts without are numbered.
    Raises: DatasetError for a path that is taken or cannot be written, and a rate that is no whole number.
    """

    def __init__(
        self,
        path: str | Path,
        config: Mapping[str, ModalityConfig],
        *,
        fps: float,
        robot: str,
        names: Mapping[str, Sequence[str]] | None = None,
    ):
        self.path = Path(path)
        refuse_taken(self.path)
        if fps < 1 or fps != int(fps):
            raise DatasetError(f"{self.path}: {fps:g} rows a second", known="a whole number, as LeRobot wants it")
        self.fps, self.robot = int(fps), robot
        self._names = dict(names or {})
        self.keys = {name: list(own.modality_keys) for name, own in config.items()}
        self._kept: dict[int, EpisodeWriter] = {}
        self._opened = 0
        with self.writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._building = Path(tempfile.mkdtemp(prefix=f".{self.path.name[:100]}.", dir=self.path.parent))

    def episode(self) -> EpisodeWriter:
        """A new episode, to be added to row by row, then kept or dropped."""
        self._opened += 1
        return EpisodeWriter(self, self._building / "open" / str(self._opened))

    def keep(self, place: int, episode: EpisodeWriter, instruction: str, **facts: Any) -> None:
        """Take an episode into the dataset.

        Args:
            place: Episodes are numbered from 0 in the order of their places, whichever was finished first.
            facts: Further entries of the episode's line in episodes.jsonl.
        Raises: DatasetError for an episode without a row, or a file that cannot be written.
        """
        if not len(episode):
            raise DatasetError(f"{self.path}: an episode without a row", fix="leave it out")
        episode.finish()
        episode.instruction, episode.facts = instruction, facts
        self._kept[place] = episode

    def __len__(self) -> int:
        """How many episodes are kept."""
        return len(self._kept)

    def close(self, about: Mapping[str, object] | None = None) -> Path:
        """Write what is missing, and put the dataset into its place.

        Args:
            about: Further entries of info.json, which readers ignore.
        Raises: DatasetError, also for no episode.
        """
        if not self._kept:
            self.abandon()
            raise DatasetError(f"{self.path}: not written: there is no episode to keep")
        episodes = [self._kept[place] for place in sorted(self._kept)]
        with self.writing():
            files = list(self._write_rows(episodes))
            self._write_meta(episodes, files, about or {})
            shutil.rmtree(self._building / "open")
            self._building.chmod(0o755)  # mkdtemp's folders are for their owner alone
            refuse_taken(self.path)
            os.rename(self._building, self.path)
        return self.path

    def abandon(self) -> None:
        """Leave nothing behind; after `close`, nothing happens."""
        shutil.rmtree(self._building, ignore_errors=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Raises: DatasetError for what the operating system or FFmpeg refuses meanwhile."""
        try:
            yield
        except OSError as error:  # FFmpeg's errors among them
            why = error.strerror or str(error)
            fix = "make room, or name another folder"
            raise DatasetError(f"{self.path}: the dataset cannot be written: {why}", fix=fix) from error

    def _write_rows(self, episodes: Sequence[EpisodeWriter]) -> Iterator[Path]:
        tasks, first = _tasks(episodes), 0
        for index, episode in enumerate(episodes):
            values = {"episode_chunk": index // CHUNK, "episode_index": index}
            path = self._building / DATA_PATH.format(**values)
            episode.columns = {**episode.columns, **self._bookkeeping(index, episode, tasks, first)}
            write_table(path, episode.columns)
            first += len(episode)
            for key, file in episode.files.items():
                target = self._building / VIDEO_PATH.format(video_key=_feature(key), **values)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(file, target)
            yield path

    def _bookkeeping(
        self, index: int, episode: EpisodeWriter, tasks: Mapping[str, int], first: int
    ) -> dict[str, np.ndarray]:
        rows = np.arange(len(episode))
        return {
            "timestamp": (rows / self.fps).astype(np.float32),
            "frame_index": rows,
            "episode_index": np.full(len(episode), index),
            "index": rows + first,
            TASK_COLUMN: np.full(len(episode), tasks[episode.instruction]),
            "next.done": rows == len(episode) - 1,
        }

    def _write_meta(
        self, episodes: Sequence[EpisodeWriter], files: Sequence[Path], about: Mapping[str, object]
    ) -> None:
        lengths, views, tasks = list(map(len, episodes)), self.keys["video"], _tasks(episodes)
        features = self._features(episodes[0])
        objects = {
            "info": {**described("v2.1", self.robot, self.fps, lengths, len(tasks), len(views), features), **about},
            "modality": self._modality(episodes[0]),
            "stats": {name: found.to_dict() for name, found in column_statistics(files).items()},
        }
        lists = {
            "tasks": [{"task_index": index, "task": task} for task, index in tasks.items()],
            "episodes": [
                {"episode_index": i, "tasks": [one.instruction], "length": len(one), **one.facts}
                for i, one in enumerate(episodes)
            ],
            "episodes_stats": [{"episode_index": i, "stats": one.statistics()} for i, one in enumerate(episodes)],
        }
        write_meta(self._building, objects, lists)

    def _features(self, example: EpisodeWriter) -> dict[str, object]:
        features: dict[str, object] = {}
        for section, column in DEFAULT_COLUMNS.items():
            widths = example.widths[section]
            names = [name for key in self.keys[section] for name in self._named(key.partition(".")[2], widths[key])]
            features[column] = {"dtype": "float32", "shape": [len(names)], "names": names}
        for key in self.keys["video"]:
            height, width = example.sizes[key]
            features[_feature(key)] = {
                "dtype": "video",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
                "info": {
                    "video.height": height,
                    "video.width": width,
                    "video.codec": "h264",
                    "video.pix_fmt": "yuv420p",
                    "video.is_depth_map": False,
                    "video.fps": self.fps,
                    "video.channels": 3,
                    "has_audio": False,
                },
            }
        for name, values in example.columns.items():
            features.setdefault(name, {"dtype": str(values.dtype), "shape": [1], "names": None})
        return features

    def _named(self, part: str, width: int) -> Sequence[str]:
        own = self._names.get(part, ())
        return own if len(own) == width else [f"{part}.{i}" for i in range(width)]

    def _modality(self, example: EpisodeWriter) -> dict[str, Mapping[str, object]]:
        parts = {
            section: slices({key.partition(".")[2]: width for key, width in example.widths[section].items()})
            for section in DEFAULT_COLUMNS
        }
        views = {key.partition(".")[2]: {"original_key": _feature(key)} for key in self.keys["video"]}
        language = [key.partition(".")[2] for key in self.keys.get("language", [])]
        return {**parts, "video": views, "annotation": {name: {"original_key": TASK_COLUMN} for name in language}}


def described(
    version: str, robot: str, fps: float, lengths: Sequence[int], tasks: int, views: int, features: Mapping[str, object]
) -> dict[str, object]:
    """The content of info.json, of a dataset whose files lie at `DATA_PATH` and `VIDEO_PATH`.

    Args:
        lengths: Rows of each episode. tasks, views: How many there are.
    """
    count = len(lengths)
    return {
        "codebase_version": version,
        "robot_type": robot,
        "total_episodes": count,
        "total_frames": sum(lengths),
        "total_tasks": tasks,
        "total_videos": count * views,
        "total_chunks": -(-count // CHUNK),
        "chunks_size": CHUNK,
        "fps": fps,
        "splits": {"train": f"0:{count}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH,
        "features": features,
    }


def slices(widths: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Part -> its place in the vector that they make up together, as modality.json says it."""
    ends = zip(widths.items(), accumulate(widths.values()), strict=True)
    return {name: {"start": end - width, "end": end} for (name, width), end in ends}


def write_meta(
    folder: Path, objects: Mapping[str, object], lists: Mapping[str, Sequence[Mapping[str, object]]]
) -> None:
    """Write a dataset's ``meta``: objects as NAME.json, lists as NAME.jsonl with an entry a line."""
    meta = folder / "meta"
    meta.mkdir(parents=True, exist_ok=True)
    for name, content in objects.items():
        (meta / f"{name}.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    for name, entries in lists.items():
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        (meta / f"{name}.jsonl").write_text(text, encoding="utf-8")


def refuse_taken(path: Path, flag: str = "") -> None:
    """Raises: DatasetError for a path where something is already. `flag`: what to call it before the path."""
    if os.path.lexists(path):
        what = f"{flag} {path}".strip()
        raise DatasetError(f"{what}: it is there already", known="a folder that does not exist", fix="name another one")


def _feature(key: str) -> str:
    return f"observation.images.{key.partition('.')[2]}"


def _tasks(episodes: Sequence[EpisodeWriter]) -> dict[str, int]:
    """Instruction -> its index, in the order in which they come."""
    return {text: index for index, text in enumerate(dict.fromkeys(one.instruction for one in episodes))}


class EpisodeWriter:
    """One episode of a `DatasetWriter`, which makes it.

    Attributes:
        columns: Column -> values [N] or [N, D], once it is finished. widths, sizes: Of its parts, and height and width
            of its views. files: View -> its video.
    """

    def __init__(self, dataset: DatasetWriter, folder: Path):
        self._dataset, self._folder = dataset, folder
        self._rows: dict[str, list[np.ndarray]] = {column: [] for column in DEFAULT_COLUMNS.values()}
        self._videos: dict[str, VideoWriter] = {}
        self._seen: dict[str, _Pixels] = {}
        self.columns: dict[str, np.ndarray] = {}
        self.widths: dict[str, dict[str, int]] = {section: {} for section in DEFAULT_COLUMNS}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.instruction = ""
        self.facts: Mapping[str, object] = {}
        self._length = 0

    def __len__(self) -> int:
        """How many rows it has."""
        return self._length

    @property
    def files(self) -> dict[str, Path]:
        return {key: video.path for key, video in self._videos.items()}

    def add(self, observation: Observation, action: Mapping[str, np.ndarray]) -> None:
        """Append a row: what was seen, and what was done then.

        Args:
            observation: ``video.<view>`` uint8 [H, W, 3], H and W even, and ``state.<part>`` [D].
            action: ``action.<part>`` [D]. Numbers are kept as float32.
        Raises: DatasetError for a part that is missing or changes its size, and numbers that are not finite.
        """
        row = {**observation, **action}
        keys = self._dataset.keys
        missing = [key for section in ("video", "state", "action") for key in keys[section] if key not in row]
        if missing:
            raise DatasetError(f"{self._dataset.path}: a row has no {', '.join(missing)}", known=sorted(row))
        for section, column in DEFAULT_COLUMNS.items():
            self._rows[column].append(np.concatenate([self._part(section, key, row[key]) for key in keys[section]]))
        with self._dataset.writing():
            for key in keys["video"]:
                self._frame(key, np.asarray(row[key]))
        self._length += 1

    def _part(self, section: str, key: str, value: Any) -> np.ndarray:
        part = np.asarray(value, np.float32).reshape(-1)
        width = self.widths[section].setdefault(key, part.size)
        if part.size != width or not np.isfinite(part).all():
            where = f"{self._dataset.path}: {key} in row {self._length}"
            raise DatasetError(f"{where} is {part.tolist()}", known=f"{width} finite numbers, as in the first row")
        return part

    def _frame(self, key: str, image: np.ndarray) -> None:
        size = self.sizes.setdefault(key, (image.shape[0], image.shape[1]))
        even = image.ndim == 3 and not (size[0] % 2 or size[1] % 2)
        if not even or image.shape != (*size, 3) or image.dtype != np.uint8:
            what = f"{self._dataset.path}: a frame of {key} is {image.dtype} {list(image.shape)}"
            raise DatasetError(what, known=f"uint8 {[*size, 3]} as the first one, of even height and width")
        if key not in self._videos:
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"{key.partition('.')[2]}.mp4"
            self._videos[key], self._seen[key] = VideoWriter(path, self._dataset.fps, VIDEO), _Pixels()
        self._videos[key].add(image)
        self._seen[key].add(image)

    def finish(self) -> None:
        """Complete its videos. Raises: DatasetError."""
        with self._dataset.writing():
            for video in self._videos.values():
                video.close()
        self.columns = {name: np.stack(rows) for name, rows in self._rows.items()}
        self._rows.clear()

    def drop(self) -> None:
        """Forget the episode, its videos included."""
        for video in self._videos.values():
            video.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def statistics(self) -> dict[str, dict[str, list[Any]]]:
        """What LeRobot's episodes_stats.jsonl says of an episode: of every column, and of every view's pixels."""
        out = {}
        for name, values in self.columns.items():
            rows = values.astype(np.float64).reshape(len(self), -1)
            whole = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
            out[name] = {**{what: value.tolist() for what, value in whole.items()}, "count": [len(self)]}
        return out | {_feature(key): pixels.statistics() for key, pixels in self._seen.items()}


@dataclass
class _Pixels:
    """Sums over a view's sampled pixels, by colour, from 0 to 1."""

    frames: int = 0
    pixels: int = 0
    total: Any = 0.0
    squares: Any = 0.0
    low: Any = 1.0
    high: Any = 0.0

    def add(self, image: np.ndarray) -> None:
        colours = image[::SAMPLED, ::SAMPLED].reshape(-1, 3).astype(np.float64) / 255
        self.frames, self.pixels = self.frames + 1, self.pixels + len(colours)
        self.total, self.squares = self.total + colours.sum(0), self.squares + (colours**2).sum(0)
        self.low, self.high = np.minimum(self.low, colours.min(0)), np.maximum(self.high, colours.max(0))

    def statistics(self) -> dict[str, list[Any]]:
        mean = self.total / self.pixels
        spread = np.sqrt(np.maximum(self.squares / self.pixels - mean**2, 0.0))
        whole = {"min": self.low, "max": self.high, "mean": mean, "std": spread}
        return {**{name: value.reshape(3, 1, 1).tolist() for name, value in whole.items()}, "count": [self.frames]}
