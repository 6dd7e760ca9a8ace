"""LeRobot datasets: rows and video frames of any step, read when asked for. GR00T's modality.json names the parts.

Source: dataset layout and padding rules as in Isaac-GR00T, gr00t/data/dataset.py.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import DatasetError, PlanError, unknown
from .dataset_statistics import Advance, PartStatistics, build_metadata
from .features import layout_from_features
from .frame_lookup import FRAME_LOOKUPS, by_number, by_time, refuse_other_rate
from .images import stored_images
from .layout import DatasetInfo, Episode, PartLayout, read_info, read_modality
from .layout_v2 import StorageV2
from .layout_v3 import StorageV3
from .metadata import DatasetMetadata, PartInfo, Statistics
from .storage import Storage
from .video import EpisodeVideo, VideoReader

TASK_PROGRESS = "action.task_progress"
"""Reserved key: how far into the episode a row is, in [0, 1)."""
PROGRESS_STATISTICS = Statistics(*(np.array([v]) for v in (1.0, 0.0, 0.5, 0.2887, 0.01, 0.99)))
"""Its maximum, minimum, mean, standard deviation and quantiles: those of a uniform distribution."""
_SECTIONS = {"video": "video", "state": "state", "action": "action", "language": "annotation"}
"""Modality -> section of modality.json."""


class LeRobotDataset:
    """Steps of a dataset on disk, in LeRobot's format v2.0, v2.1 or v3.0. The folder is only ever read.

    Only what the keys of the modality config need is read and checked. Without meta/modality.json, parts and views
    are those of info.json's features: `features.layout_from_features` says under which names.

    Args:
        path: Folder with ``meta``, ``data`` and, unless images lie in the parquet files, ``videos``.
        modality_config: Modality name (``video``, ``state``, ``action``, ``language``) -> keys and offsets.
        frame_lookup: Which video frame belongs to row i. ``index``: frame i. ``nearest``: the frame whose start
            time is nearest to the row's timestamp (decord). ``on_screen``: the frame shown at that time (torchcodec).
            With timestamps that lie just before the next frame starts, as in GR00T's demo data, ``nearest`` gives
            frame i + 1 and the others frame i. A timestamp may lie LeRobot's tolerance beside its frame; where
            taking it exactly gives an episode's rows more different frames, it is taken exactly. Images of a parquet
            file belong to their rows.
    Raises: DatasetError for a missing or malformed meta file, an unknown key or an empty dataset; PlanError for an
        unknown `frame_lookup`. Episode files are opened when first read.

    Attributes:
        notes: Sentences for the user about what was found while reading, such as which file statistics come from.
    """

    def __init__(self, path: str | Path, modality_config: Mapping[str, ModalityConfig], *, frame_lookup: str = "index"):
        if frame_lookup not in FRAME_LOOKUPS:
            raise unknown(PlanError, "frame_lookup", frame_lookup, FRAME_LOOKUPS)
        self.path = Path(path)
        if not os.path.isdir(self.path):
            raise DatasetError(
                f"{self.path}: no such dataset folder", fix="check --dataset_path; `synthetic` makes one up"
            )
        self.frame_lookup = frame_lookup
        self.modality_config = dict(modality_config)
        self.notes: list[str] = []
        self.info: DatasetInfo = read_info(self.path)
        named = (self.path / "meta" / "modality.json").exists()
        self.layout = read_modality(self.path) if named else layout_from_features(self.info)
        self._check_keys()
        self._storage: Storage = (StorageV2 if self.info.version == 2 else StorageV3)(self.path, self.info)
        self.episodes: Sequence[Episode] = self._storage.episodes
        self._ends = list(accumulate(e.length for e in self.episodes))
        self._by_index = {e.index: e for e in self.episodes}
        self._readers: dict[Path, VideoReader] = {}
        self._videos: dict[str, EpisodeVideo] = {}
        self._filmed: Episode | None = None

    @cached_property
    def tasks(self) -> Mapping[int, str]:
        """Task index -> instruction. Raises: DatasetError."""
        return self._storage.tasks()

    def __len__(self) -> int:
        """Number of steps: the sum of all episode lengths in the meta folder."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Observation:
        """Step by flat index: all base rows of the first episode in file order, then of the second, and so on."""
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        position = bisect_right(self._ends, index)
        episode = self.episodes[position]
        return self.step(episode.index, index - (self._ends[position] - episode.length))

    def step(self, episode: int, base_index: int) -> Observation:
        """The configured keys at row `base_index` plus each modality's offsets.

        Args:
            episode: ``episode_index`` of the meta folder.
            base_index: Row; beyond the end of the episode everything is padded.
        Returns: Full key -> value. ``video.*`` uint8 [T, H, W, 3] RGB, rows outside the episode clamped;
            ``state.*`` and ``action.*`` float64 [T, D], outside rows repeating the first or last one, or zero for
            parts that are not absolute; ``annotation.*`` list of T strings, clamped.
        Raises: DatasetError naming the file for anything missing, corrupt, too short or out of order, a value that is
            not finite, and a row whose timestamp lies outside the video.
        """
        return {key: self.values(episode, key, rows) for key, rows in self.rows(base_index).items()}

    def keys(self, *modalities: str) -> list[str]:
        """The configured keys of some modalities, such as ``state``; none of one that is not configured."""
        configs = [self.modality_config[name] for name in modalities if name in self.modality_config]
        return [key for config in configs for key in config.modality_keys]

    def rows(self, base_index: int) -> dict[str, np.ndarray]:
        """Configured key -> `base_index` plus its modality's offsets, int64 [T]; also rows outside the episode."""
        return {
            key: base_index + np.asarray(config.delta_indices, dtype=np.int64)
            for config in self.modality_config.values()
            for key in config.modality_keys
        }

    def values(self, episode: int, key: str, rows: np.ndarray) -> Any:
        """One key at some rows of an episode, int64 [T], as in `step`."""
        return self._value(self._episode(episode), key, rows)

    def blank_outside(self, key: str, values: Any, outside: np.ndarray) -> Any:
        """Set the rows of a part that lie outside the episode to zero, unless it is absolute.

        Args:
            values: Of the nearest row inside, [T, D]; changed in place. Anything but a part is left as it is.
            outside: bool [T].
        """
        section = key.partition(".")[0]
        if section in ("state", "action") and key != TASK_PROGRESS and not self._part(key).info.absolute:
            values[outside] = 0.0
        return values

    def files(self, episode: int) -> list[Path]:
        """The files that the configured keys of an episode are read from, present or not. Raises: DatasetError."""
        found = self._episode(episode)
        features = [self.layout.video[key.partition(".")[2]] for key in self.keys("video")]
        clips = [self._storage.clip(found, name).path for name in features if not self.info.is_image(name)]
        return [self._storage.file(found), *clips]

    def raw(self, episode: int, base_index: int) -> Observation:
        """Every key of the layout at one row, whatever the modality config; values as in `step` with T = 1."""
        rows = np.array([base_index], dtype=np.int64)
        keys = [key for section in _SECTIONS.values() for key in self.layout.keys(section)]
        return {key: self._value(self._episode(episode), key, rows) for key in keys}

    def column(self, episode: int, name: str) -> np.ndarray:
        """A whole parquet column of one episode, [N] or [N, D]."""
        return self._storage.rows(self._episode(episode)).column(name)

    def metadata(
        self, tag: str, advance: Advance = lambda done, total: None, *, from_rows: bool = False
    ) -> DatasetMetadata:
        """Statistics and layout under embodiment tag `tag`; `notes` says where the statistics come from.

        They come from meta/stats.json; what it lacks of the configured keys is computed from all parquet files that
        are present. Parts and views that are not configured are there when they can be had. Nothing is written.

        Args:
            advance: Told how many of how many parquet files are read.
            from_rows: Compute those of the configured keys, whatever stats.json says.
        Raises: DatasetError when no statistics can be had, and for ones that no recording can have.
        """
        wanted = {key: self._part(key) for key in self.keys("state", "action") if key != TASK_PROGRESS}
        statistics = PartStatistics(self.path, self._storage, wanted, advance, from_rows=from_rows)
        self.notes += [note for note in statistics.notes if note not in self.notes]
        views = [key.partition(".")[2] for key in self.keys("video")]
        metadata = build_metadata(tag, self.info, self.layout, statistics, views)
        if TASK_PROGRESS in self.keys("action"):
            name = TASK_PROGRESS.partition(".")[2]
            metadata = replace(
                metadata,
                action={**metadata.action, name: PartInfo(1)},
                action_statistics={**metadata.action_statistics, name: PROGRESS_STATISTICS},
            )
        return metadata

    def close(self) -> None:
        """Close the video files of the last episode."""
        self._videos.clear()
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _check_keys(self) -> None:
        for modality, config in self.modality_config.items():
            if modality not in _SECTIONS:
                raise unknown(PlanError, "modality_config", modality, _SECTIONS)
            for key in config.modality_keys:
                if key == TASK_PROGRESS:
                    continue
                self.layout.require(_SECTIONS[modality], key)
                if modality == "video":
                    self.info.view(self.layout.video[key.partition(".")[2]])

    def _part(self, key: str) -> PartLayout:
        section, _, name = key.partition(".")
        return getattr(self.layout, section)[name]

    def _episode(self, index: int) -> Episode:
        listing = self.path / self._storage.listing
        if index not in self._by_index:
            raise DatasetError(
                f"{listing}: no episode {index}",
                known=f"{len(self.episodes)} episodes: {_summary([e.index for e in self.episodes])}",
                fix="choose a listed episode_index",
            )
        episode = self._by_index[index]
        if not episode.length:
            raise DatasetError(f"{listing}: episode {index} has 0 frames", fix="leave it out")
        return episode

    def _value(self, episode: Episode, key: str, rows: np.ndarray) -> Any:
        section, _, name = key.partition(".")
        inside = np.clip(rows, 0, episode.length - 1)
        if key == TASK_PROGRESS:
            return (inside / episode.length)[:, None]
        if section == "video":
            return self._frames(episode, name, inside)
        if section == "annotation":
            return self._texts(episode, name, inside)
        part = self._part(key)
        return self.blank_outside(key, self._storage.rows(episode).part(key, part, inside), rows != inside)

    def _frames(self, episode: Episode, view: str, rows: np.ndarray) -> np.ndarray:
        feature = self.layout.video[view]
        width, height = self.info.view(feature).resolution
        if self.info.is_image(feature):
            source = self._storage.rows(episode)
            path, frames = source.table.path, stored_images(source, feature, rows, self.path, width * height)
        else:
            video = self._video(episode, feature)
            if self.frame_lookup == "index":
                numbers = by_number(rows, video)
            else:
                numbers = by_time(self.frame_lookup, rows, self._storage.rows(episode).timestamps(), video)
            path, frames = video.path, video.frames(numbers)
        if frames.shape[1:3] != (height, width):
            raise DatasetError(
                f"{path}: frames are {frames.shape[2]} x {frames.shape[1]}",
                known=f"meta/info.json says {width} x {height} for {feature}",
                fix="correct the shape in meta/info.json",
            )
        return frames

    def _video(self, episode: Episode, feature: str) -> EpisodeVideo:
        """An episode's frames of a video feature; files stay open until another episode needs others."""
        if self._filmed != episode:
            self._filmed = episode
            self._videos.clear()
        if feature not in self._videos:
            clip, clock = self._storage.clip(episode, feature), self._storage.rows(episode).clock()
            video = EpisodeVideo(self._reader(clip.path), clip.begin_s, clip.end_s)
            if self.frame_lookup == "index" and clock is not None:
                refuse_other_rate(clock, video)
            self._videos[feature] = video
        return self._videos[feature]

    def _reader(self, path: Path) -> VideoReader:
        if path not in self._readers:
            used = {video.path for video in self._videos.values()}
            for other in [other for other in self._readers if other not in used]:
                self._readers.pop(other).close()
            self._readers[path] = VideoReader(path)
        return self._readers[path]

    def _texts(self, episode: Episode, name: str, rows: np.ndarray) -> list[str]:
        column = self.layout.annotation[name]
        source = self._storage.rows(episode)
        texts = []
        for value in source.scalars(column)[rows].tolist():
            if value not in self.tasks:
                raise DatasetError(
                    f"{source.table.path}: column {column!r} holds task index {value}",
                    known=f"{self._storage.tasks_file} has {_summary(list(self.tasks))}",
                    fix=f"add the task to {self._storage.tasks_file}, or correct original_key in meta/modality.json",
                )
            texts.append(self.tasks[value])
        return texts


def _summary(numbers: Sequence[int]) -> str:
    if len(numbers) > 8:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"
