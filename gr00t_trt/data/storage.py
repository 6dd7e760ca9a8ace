"""Where the rows and frames of a dataset's episodes lie, whatever the version of its format."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..errors import DatasetError
from .layout import Episode
from .parquet import Table
from .rows import EpisodeRows


@dataclass(frozen=True)
class Clip:
    """The frames of an episode and camera: those of a file that start in [begin_s, end_s)."""

    path: Path
    begin_s: float = 0.0
    end_s: float = float("inf")


class Storage(Protocol):
    """One version's files.

    Attributes:
        listing: What lists the episodes, and `tasks_file` the tasks: a path in the dataset, for errors.
        episodes: In the order of the flat step index.
    """

    listing: str
    tasks_file: str
    episodes: Sequence[Episode]

    def tasks(self) -> Mapping[int, str]:
        """Task index -> instruction. Raises: DatasetError."""

    def rows(self, episode: Episode) -> EpisodeRows:
        """An episode's rows; the last file stays in memory. Raises: DatasetError."""

    def file(self, episode: Episode) -> Path:
        """The parquet file of an episode's rows, present or not. Raises: DatasetError."""

    def clip(self, episode: Episode, feature: str) -> Clip:
        """Where a video feature's frames are. Raises: DatasetError."""

    def files(self) -> Sequence[Path]:
        """Every parquet file of rows that is listed, present or not."""

    def table(self, path: Path) -> Table:
        """One of `files`. Raises: DatasetError for another number of rows than is listed."""


def open_table(path: Path, rows: int, said: str) -> Table:
    """A table whose number of rows is known.

    Args:
        said: Where from, for the error.
    Raises: DatasetError for another number, before anything is decoded.
    """
    table = Table(path)
    if len(table) != rows:
        raise DatasetError(
            f"{path}: {len(table)} rows",
            known=said,
            fix="fetch the file again, or correct the length of its episodes",
        )
    return table


def present(paths: Sequence[Path]) -> Iterator[Path]:
    """Those of some files that are here: no git-lfs pointer stands in for them, as in a clone without large files."""
    for path in paths:
        if os.path.isfile(path):
            with path.open("rb") as file:
                if not file.read(24).startswith(b"version https://git-lfs"):
                    yield path
