"""LeRobot v2 datasets in GR00T's flavour: parquet rows and video frames of any step, read when asked for.

Source: dataset layout and padding rules as in Isaac-GR00T, gr00t/data/dataset.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import DatasetError, PlanError, unknown
from .layout import Episode, build_metadata, read_episodes, read_info, read_modality, read_statistics, read_tasks
from .metadata import DatasetMetadata, PartInfo, Statistics
from .parquet import Table, column_statistics
from .video import VideoReader, look_up

FRAME_LOOKUPS = ("index", "nearest", "on_screen")
TASK_PROGRESS = "action.task_progress"
"""Reserved key: how far into the episode a row is, in [0, 1)."""
PROGRESS_STATISTICS = Statistics(*(np.array([v]) for v in (1.0, 0.0, 0.5, 0.2887, 0.01, 0.99)))
"""Its maximum, minimum, mean, standard deviation and quantiles: those of a uniform distribution."""


class LeRobotDataset:
    """Steps of a dataset on disk. The folder is only ever read.

    Args:
        path: Folder with ``meta``, ``data`` and ``videos``.
        modality_config: Modality name (``video``, ``state``, ``action``, ``language``) -> keys and offsets.
        frame_lookup: Which video frame belongs to row i. ``index``: frame i. ``nearest``: the frame whose start
            time is nearest to the row's timestamp (decord). ``on_screen``: the frame shown at that time (torchcodec).
            With timestamps that lie just before the next frame starts, as in GR00T's demo data, ``nearest`` gives
            frame i + 1 and the others frame i.
    Raises: DatasetError for a missing or malformed meta file, an unknown key or an empty dataset; PlanError for an
        unknown `frame_lookup`. Episode files are opened when first read.
    """

    def __init__(self, path: str | Path, modality_config: Mapping[str, ModalityConfig], *, frame_lookup: str = "index"):
        if frame_lookup not in FRAME_LOOKUPS:
            raise unknown(PlanError, "frame_lookup", frame_lookup, FRAME_LOOKUPS)
        self.path = Path(path)
        if not self.path.is_dir():
            raise DatasetError(
                f"{self.path}: no such dataset folder", fix="check --dataset_path; `synthetic` makes one up"
            )
        self.frame_lookup = frame_lookup
        self.modality_config = dict(modality_config)
        self.info = read_info(self.path)
        self.layout = read_modality(self.path)
        self.episodes: list[Episode] = read_episodes(self.path)
        self.tasks = read_tasks(self.path)
        self._ends = list(accumulate(e.length for e in self.episodes))
        self._by_index = {e.index: e for e in self.episodes}
        self._table: tuple[int, Table] | None = None
        self._readers: dict[tuple[int, str], VideoReader] = {}
        for modality, config in self.modality_config.items():
            if modality not in ("video", "state", "action", "language"):
                raise unknown(PlanError, "modality_config", modality, ("video", "state", "action", "language"))
            section = "annotation" if modality == "language" else modality
            for key in config.modality_keys:
                if key not in self.layout.keys(section) and key != TASK_PROGRESS:
                    raise DatasetError(
                        f"{self.path}/meta/modality.json: no {modality} key {key!r}, which the data config asks for",
                        known=self.layout.keys(section),
                        fix="choose the --data_config that was made for this robot, or add the key",
                    )
                if modality == "video":
                    self.info.view(self.layout.video[key.partition(".")[2]])

    def __len__(self) -> int:
        """Number of steps: the sum of all episode lengths in episodes.jsonl."""
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
            episode: ``episode_index`` of episodes.jsonl.
            base_index: Row; beyond the end of the episode everything is padded.
        Returns: Full key -> value. ``video.*`` uint8 [T, H, W, 3] RGB, rows outside the episode clamped;
            ``state.*`` and ``action.*`` float64 [T, D], outside rows repeating the first or last one, or zero for
            parts that are not absolute; ``annotation.*`` list of T strings, clamped.
        Raises: DatasetError naming the file for anything missing, corrupt or too short.
        """
        out: dict[str, Any] = {}
        for config in self.modality_config.values():
            rows = base_index + np.asarray(config.delta_indices, dtype=np.int64)
            for key in config.modality_keys:
                out[key] = self._value(self._episode(episode), key, rows)
        return out

    def raw(self, episode: int, base_index: int) -> dict[str, Any]:
        """Every key of modality.json at one row, whatever the modality config; values as in `step` with T = 1."""
        rows = np.array([base_index], dtype=np.int64)
        keys = [key for section in ("video", "state", "action", "annotation") for key in self.layout.keys(section)]
        return {key: self._value(self._episode(episode), key, rows) for key in keys}

    def column(self, episode: int, name: str) -> np.ndarray:
        """A whole parquet column of one episode, [N] or [N, D]."""
        return self._rows(self._episode(episode)).column(name)

    def metadata(self, tag: str) -> DatasetMetadata:
        """Statistics and layout under embodiment tag `tag`.

        Statistics come from meta/stats.json; when that is absent or incomplete they are computed from all parquet
        files that are present. Nothing is written.

        Raises: DatasetError when no statistics can be had.
        """
        columns = read_statistics(self.path)
        if columns is None:
            files = sorted((self.path / "data").glob("*/*.parquet"))
            if not files:
                raise DatasetError(
                    f"{self.path}/meta/stats.json: missing or incomplete, and there is no parquet file to compute from",
                    known="data/chunk-XXX/episode_YYYYYY.parquet",
                    fix="download meta/stats.json or at least one episode",
                )
            columns = column_statistics(files)
        metadata = build_metadata(tag, self.path, self.info, self.layout, columns)
        action = self.modality_config.get("action")
        if action is not None and TASK_PROGRESS in action.modality_keys:
            name = TASK_PROGRESS.partition(".")[2]
            metadata = replace(
                metadata,
                action={**metadata.action, name: PartInfo(1)},
                action_statistics={**metadata.action_statistics, name: PROGRESS_STATISTICS},
            )
        return metadata

    def close(self) -> None:
        """Close the video files of the last episode."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()

    def _episode(self, index: int) -> Episode:
        if index not in self._by_index:
            raise DatasetError(
                f"{self.path}/meta/episodes.jsonl: no episode {index}",
                known=f"{len(self.episodes)} episodes: {_summary([e.index for e in self.episodes])}",
                fix="choose a listed episode_index",
            )
        episode = self._by_index[index]
        if not episode.length:
            raise DatasetError(f"{self.path}/meta/episodes.jsonl: episode {index} has 0 frames", fix="leave it out")
        return episode

    def _rows(self, episode: Episode) -> Table:
        """The table of an episode; that of the last one is kept."""
        if self._table is None or self._table[0] != episode.index:
            table = Table(self.info.parquet_file(episode.index))
            if len(table) < episode.length:
                raise DatasetError(
                    f"{table.path}: {len(table)} rows",
                    known=f"meta/episodes.jsonl says {episode.length} for episode {episode.index}",
                    fix="fetch the episode again, or correct its length",
                )
            self._table = (episode.index, table)
        return self._table[1]

    def _reader(self, episode: Episode, view: str) -> VideoReader:
        """The video of an episode and view; those of the last episode stay open."""
        if any(index != episode.index for index, _ in self._readers):
            self.close()
        if (episode.index, view) not in self._readers:
            reader = VideoReader(self.info.video_file(episode.index, self.layout.video[view]))
            if len(reader) < episode.length:
                frames = len(reader)
                reader.close()
                raise DatasetError(
                    f"{reader.path}: {frames} frames",
                    known=f"episode {episode.index} has {episode.length} rows",
                    fix="the video is cut short: fetch it again",
                )
            self._readers[episode.index, view] = reader
        return self._readers[episode.index, view]

    def _value(self, episode: Episode, key: str, rows: np.ndarray) -> Any:
        section, _, name = key.partition(".")
        inside = np.clip(rows, 0, episode.length - 1)
        if key == TASK_PROGRESS:
            return (inside / episode.length)[:, None]
        if section == "video":
            return self._frames(episode, name, inside)
        if section == "annotation":
            return self._texts(episode, name, inside)
        part = getattr(self.layout, section)[name]
        column = self._numbers(episode, part.column)
        if part.end > column.shape[1]:
            raise DatasetError(
                f"{self._rows(episode).path}: column {part.column!r} is {column.shape[1]} wide",
                known=f"meta/modality.json: {key} takes [{part.start}:{part.end}]",
                fix="correct start and end in meta/modality.json",
            )
        values = column[inside, part.start : part.end].astype(np.float64)
        if not part.info.absolute:
            values[rows != inside] = 0.0
        return values

    def _numbers(self, episode: Episode, name: str) -> np.ndarray:
        column = self._rows(episode).column(name)
        if column.dtype == object or column.dtype.kind not in "iufb":
            raise DatasetError(f"{self._rows(episode).path}: column {name!r} holds {column.dtype}, not numbers")
        return column.reshape(len(column), -1)

    def _frames(self, episode: Episode, view: str, rows: np.ndarray) -> np.ndarray:
        reader = self._reader(episode, view)
        times = np.zeros(0) if self.frame_lookup == "index" else self._numbers(episode, "timestamp")[rows, 0]
        frames = reader.frames(look_up(self.frame_lookup, rows, times, reader.start_times).tolist())
        width, height = self.info.view(self.layout.video[view]).resolution
        if frames.shape[1:3] != (height, width):
            raise DatasetError(
                f"{reader.path}: frames are {frames.shape[2]} x {frames.shape[1]}",
                known=f"meta/info.json says {width} x {height} for {self.layout.video[view]}",
                fix="correct the shape in meta/info.json",
            )
        return frames

    def _texts(self, episode: Episode, name: str, rows: np.ndarray) -> list[str]:
        column = self.layout.annotation[name]
        texts = []
        for value in self._numbers(episode, column)[rows, 0].tolist():
            if value not in self.tasks:
                raise DatasetError(
                    f"{self._rows(episode).path}: column {column!r} holds task index {value}",
                    known=f"meta/tasks.jsonl has {_summary(list(self.tasks))}",
                    fix="add the task to meta/tasks.jsonl, or correct original_key in meta/modality.json",
                )
            texts.append(self.tasks[value])
        return texts


def _summary(numbers: Sequence[int]) -> str:
    if len(numbers) > 8:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers)) or "none"
