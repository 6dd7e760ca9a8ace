"""The rows of one episode, checked to be its rows and in order."""

from __future__ import annotations

import numpy as np

from ..errors import DatasetError
from .layout import Episode, PartLayout
from .parquet import Table, refuse_non_finite


class EpisodeRows:
    """Rows ``start`` to ``start + episode.length`` of a table.

    Args:
        table: The file that holds them, perhaps with those of other episodes.
    Raises: DatasetError where ``frame_index`` does not count 0, 1, 2, ..., ``index`` does not increase, or
        ``episode_index`` is another's. Timestamps are asked for the order of the rows where neither index is there.
    """

    def __init__(self, table: Table, start: int, episode: Episode):
        self.table, self.episode, self._start = table, episode, start
        self._timestamps: np.ndarray | None = None
        self._refuse_others("frame_index", np.arange(episode.length), "write the rows in order of frame_index")
        self._refuse_disorder("index" if {"index", "frame_index"} & set(table.names) else "timestamp")
        self._refuse_others("episode_index", np.full(episode.length, episode.index), "the file is another episode's")

    def __len__(self) -> int:
        return self.episode.length

    def column(self, name: str) -> np.ndarray:
        """A column's values, [N] or [N, D]. Raises: DatasetError as `Table.column`."""
        return self.table.column(name)[self._start : self._start + len(self)]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as [N, D]. Raises: DatasetError as `Table.numbers`."""
        return self.table.numbers(name)[self._start : self._start + len(self)]

    def scalars(self, name: str) -> np.ndarray:
        """A column of one number a row, [N]. Raises: DatasetError as `Table.scalars`."""
        return self.table.scalars(name)[self._start : self._start + len(self)]

    def image(self, name: str, row: int) -> object:
        """One value of an image column, as `Table.image`."""
        return self.table.image(name, self._start + row)

    def part(self, key: str, part: PartLayout, rows: np.ndarray) -> np.ndarray:
        """A state or action part at some rows, float64 [T, D].

        Args:
            rows: int64 [T], each in [0, N).
        Raises: DatasetError for a column that is too narrow, or a value that is not finite.
        """
        column = self.numbers(part.column)
        if part.end > column.shape[1]:
            raise DatasetError(
                f"{self.table.path}: column {part.column!r} is {column.shape[1]} wide",
                known=f"{key} takes [{part.start}:{part.end}]",
                fix="correct start and end in meta/modality.json",
            )
        refuse_non_finite(column, f"{self.table.path}: column {part.column!r}", np.arange(part.start, part.end), rows)
        return column[rows, part.start : part.end].astype(np.float64)

    def timestamps(self) -> np.ndarray:
        """Seconds of every row, float64 [N]. Raises: DatasetError unless they are finite and increase."""
        if self._timestamps is None:
            times = self.scalars("timestamp").astype(np.float64)
            refuse_non_finite(times[:, None], f"{self.table.path}: column 'timestamp'", np.zeros(1, np.int64))
            stuck = np.flatnonzero(np.diff(times) <= 0)
            if len(stuck):
                row = int(stuck[0]) + 1
                raise DatasetError(
                    f"{self.table.path}: timestamp {times[row]:.6f} in row {row} after {times[row - 1]:.6f}",
                    known="timestamps increase from row to row",
                    fix="correct the timestamps, or take frames by number: --frame_lookup index",
                )
            self._timestamps = times
        return self._timestamps

    def clock(self) -> np.ndarray | None:
        """As `timestamps`; None where the table has none that can be used."""
        try:
            return self.timestamps()
        except DatasetError:
            return None

    def _refuse_disorder(self, name: str) -> None:
        """Rows in another order than a column that says it; one that holds no numbers says nothing."""
        if name not in self.table.names:
            return
        try:
            falls = np.flatnonzero(np.diff(self.scalars(name).astype(np.float64)) < (0 if name == "timestamp" else 1))
        except DatasetError:
            return
        if len(falls):
            row = int(falls[0]) + 1
            what = f"{self.table.path}: {name} is {self.scalars(name)[row]} in row {row}"
            known = f"more than {self.scalars(name)[row - 1]}, that of the row before"
            raise DatasetError(what, known=known, fix=f"write the rows in order of {name}")

    def _refuse_others(self, name: str, expected: np.ndarray, fix: str) -> None:
        if name not in self.table.names:
            return
        other = np.flatnonzero(self.scalars(name) != expected)
        if len(other):
            row = int(other[0])
            found = self.scalars(name)[row]
            what = f"{self.table.path}: {name} is {found} in row {row} of episode {self.episode.index}"
            raise DatasetError(what, known=f"{expected[row]}", fix=fix)
