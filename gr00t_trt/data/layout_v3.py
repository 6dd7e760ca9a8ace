"""LeRobot v3.0: many episodes per parquet file and video, listed in parquet files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from .layout import DatasetInfo, Episode, check_episodes
from .parquet import Table
from .rows import EpisodeRows
from .storage import Clip, open_table

MOST_EPISODES = 10_000_000
MOST_TASKS = 1_000_000


class StorageV3:
    """The files of a version 3 dataset; see `Storage`. Raises: DatasetError for malformed episode listings."""

    listing, tasks_file = "meta/episodes", "meta/tasks.parquet"

    def __init__(self, root: Path, info: DatasetInfo):
        self._root, self._info = root, info
        self._tables = self._listings()
        self._columns: dict[str, np.ndarray] = {}
        indices, lengths = self._whole("episode_index"), self._whole("length")
        listed = [Episode(int(index), int(length)) for index, length in zip(indices, lengths, strict=True)]
        places = [(f"row {row}", episode) for row, episode in enumerate(listed)]
        self.episodes: Sequence[Episode] = check_episodes(root / self.listing, places)
        self._row = {episode.index: row for row, episode in enumerate(listed)}
        self._files = self._data_files()
        self._rows_of: Counter[Path] = Counter()
        for path, episode in zip(self._files, listed, strict=True):
            self._rows_of[path] += episode.length
        self._table: Table | None = None
        self._last: EpisodeRows | None = None

    def tasks(self) -> dict[int, str]:
        """The text is the column ``task``, or the index of a pandas table, whatever that is called."""
        table = Table(self._root / self.tasks_file)
        _bound(table, MOST_TASKS)
        names = [name for name in table.names if name != "task_index"]
        if len(names) != 1 and "task" not in names:
            raise DatasetError(f"{table.path}: columns {names}", known="task_index and task")
        texts = table.texts("task" if "task" in names else names[0])
        return dict(zip(table.scalars("task_index").tolist(), texts, strict=True))

    def file(self, episode: Episode) -> Path:
        return self._files[self._row[episode.index]]

    def rows(self, episode: Episode) -> EpisodeRows:
        path = self.file(episode)
        if self._table is None or self._table.path != path:
            self._table = self.table(path)
        if self._last is None or self._last.episode != episode:
            self._last = EpisodeRows(self._table, self._start(self._table, episode), episode)
        return self._last

    def clip(self, episode: Episode, feature: str) -> Clip:
        prefix = f"videos/{feature}"
        values = {**self._numbers(prefix, episode), "video_key": feature}
        path = self._info.file("video_path", values, self._info.view_names())
        begin, end = (self._at(f"{prefix}/{edge}_timestamp", episode) for edge in ("from", "to"))
        if not 0 <= begin < end < float("inf"):
            what = f"{self._root / self.listing}: episode {episode.index}: {feature} from {begin} s to {end} s"
            raise DatasetError(what, known="from_timestamp < to_timestamp", fix="correct the episode's row")
        return Clip(path, begin, end)

    def files(self) -> list[Path]:
        return [path for path, rows in self._rows_of.items() if rows]

    def table(self, path: Path) -> Table:
        rows = self._rows_of[path]
        return open_table(path, rows, f"{self.listing} says {rows} for the episodes in this file")

    def _listings(self) -> list[Table]:
        paths = sorted((self._root / self.listing).glob("chunk-*/file-*.parquet"))
        if not paths:
            raise DatasetError(
                f"{self._root / self.listing}: no chunk-000/file-000.parquet",
                known="LeRobot v3.0 lists its episodes there",
                fix="check --dataset_path, or fetch the dataset's meta folder again",
            )
        tables = [Table(path) for path in paths]
        _bound(tables[0], MOST_EPISODES, sum(map(len, tables)))
        return tables

    def _column(self, name: str) -> np.ndarray:
        """A column of the listing, all files of it; float64 or int64 [episodes]."""
        if name not in self._columns:
            self._columns[name] = np.concatenate([table.scalars(name) for table in self._tables])
        return self._columns[name]

    def _whole(self, name: str) -> np.ndarray:
        column = self._column(name)
        if column.dtype.kind not in "iu":
            raise DatasetError(f"{self._root / self.listing}: {name} is {column.dtype}", known="whole numbers")
        return column

    def _at(self, name: str, episode: Episode) -> Any:
        return self._column(name)[self._row[episode.index]].item()

    def _numbers(self, prefix: str, episode: Episode) -> dict[str, int | str]:
        return {name: int(self._whole(f"{prefix}/{name}")[self._row[episode.index]]) for name in _PLACE}

    def _data_files(self) -> list[Path]:
        """The data file of every listed episode."""
        places = list(zip(*(self._whole(f"data/{name}").tolist() for name in _PLACE), strict=True))
        files = {
            place: self._info.file("data_path", dict(zip(_PLACE, place, strict=True)))
            for place in dict.fromkeys(places)
        }
        return [files[place] for place in places]

    def _start(self, table: Table, episode: Episode) -> int:
        """The first row of an episode in its file."""
        rows = np.flatnonzero(table.scalars("episode_index") == episode.index)
        if len(rows) != episode.length:
            raise DatasetError(
                f"{table.path}: {len(rows)} rows of episode {episode.index}",
                known=f"{self.listing} says {episode.length}",
                fix="fetch the file again, or correct the length of the episode",
            )
        if rows[-1] - rows[0] >= len(rows):
            what = f"{table.path}: other rows lie between those of episode {episode.index}"
            raise DatasetError(what, fix="write the rows of each episode one after the other")
        return int(rows[0])


_PLACE = ("chunk_index", "file_index")


def _bound(table: Table, most: int, rows: int | None = None) -> None:
    found = len(table) if rows is None else rows
    if found > most:
        raise DatasetError(f"{table.path}: {found} rows", known=f"at most {most}")
