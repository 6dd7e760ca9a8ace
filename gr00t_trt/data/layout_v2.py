"""LeRobot v2.0 and v2.1: one parquet file per episode, one video per episode and camera."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from .layout import DatasetInfo, Episode, read_episodes, read_tasks
from .parquet import Table
from .rows import EpisodeRows
from .storage import Clip, open_table


class StorageV2:
    """The files of a version 2 dataset; see `Storage`. Raises: DatasetError for a malformed episodes.jsonl."""

    listing, tasks_file = "meta/episodes.jsonl", "meta/tasks.jsonl"

    def __init__(self, root: Path, info: DatasetInfo):
        self._root, self._info = root, info
        self.episodes: Sequence[Episode] = read_episodes(root)
        # A single episode needs no number in its files' names.
        self._needed = () if len(self.episodes) == 1 else ("episode_index",)
        self._last: EpisodeRows | None = None

    def tasks(self) -> dict[int, str]:
        return read_tasks(self._root)

    def rows(self, episode: Episode) -> EpisodeRows:
        if self._last is None or self._last.episode != episode:
            self._last = EpisodeRows(self._open(episode), 0, episode)
        return self._last

    def file(self, episode: Episode) -> Path:
        return self._info.file("data_path", self._place(episode), self._needed)

    def clip(self, episode: Episode, feature: str) -> Clip:
        values = {**self._place(episode), "video_key": feature}
        return Clip(self._info.file("video_path", values, (*self._info.view_names(), *self._needed)))

    def files(self) -> list[Path]:
        return list(self._by_file)

    def table(self, path: Path) -> Table:
        return self._open(self._by_file[path])

    def _place(self, episode: Episode) -> dict[str, int | str]:
        return {"episode_chunk": episode.index // self._info.chunks_size, "episode_index": episode.index}

    @cached_property
    def _by_file(self) -> dict[Path, Episode]:
        return {self.file(episode): episode for episode in self.episodes if episode.length}

    def _open(self, episode: Episode) -> Table:
        said = f"{self.listing} says {episode.length} for episode {episode.index}"
        return open_table(self.file(episode), episode.length, said)
