"""Statistics of a dataset's parts, from its meta/stats.json or computed from its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ..common.notice import warn_once
from ..errors import DatasetError, Gr00tError
from .layout import DatasetInfo, ModalityLayout, PartLayout
from .meta_files import read_object
from .metadata import STATISTICS, DatasetMetadata, Statistics, VideoInfo, impossible, statistics_from
from .parquet import Table, statistics_of_columns
from .storage import Storage, present

Advance = Callable[[int, int], None]
"""Told how many of how many are done."""


class PartStatistics:
    """Statistics of the columns that some parts need.

    Args:
        parts: Full key -> layout, of the parts that are needed.
        advance: Told about the reading of parquet files, which takes long in a large dataset.
        from_rows: Compute them, whatever stats.json says.
    Raises: DatasetError where they cannot be had, or are ones that no recording can have.

    Attributes:
        notes: Where they come from, in whole sentences.
    """

    def __init__(
        self,
        root: Path,
        storage: Storage,
        parts: Mapping[str, PartLayout],
        advance: Advance,
        *,
        from_rows: bool = False,
    ):
        self._root, self._storage, self._parts, self._advance = root, storage, parts, advance
        self._from_rows = from_rows
        self.notes: list[str] = []
        self._file = root / "meta" / "stats.json"
        self._entries = self._read()
        needed = dict.fromkeys(part.column for part in parts.values())
        absent = {name: why for name in needed if (why := self._lacking(name))}
        found = [name for name in needed if name not in absent]
        self._columns = {name: self._from_file(name) for name in found}
        if found:
            self.notes.append(f"Statistics of {', '.join(map(repr, found))} are those of {self._file}.")
        if absent:
            self._columns |= self._computed(absent)
        for key, part in parts.items():
            self._check(key, part, self._file if part.column in found else root / "data")

    def _read(self) -> Mapping[str, object]:
        try:
            return read_object(self._file) if self._file.exists() else {}
        except DatasetError:
            if self._parts:
                raise
            return {}

    def _from_file(self, column: str) -> Statistics:
        return statistics_from(self._entries.get(column), f"{self._file}: {column}", DatasetError)

    def _lacking(self, column: str) -> str:
        """Why a column's statistics have to be computed from the rows; empty where those of the file are used."""
        if self._from_rows:
            return "episodes that it covers are missing"
        entry = self._entries.get(column)
        if not isinstance(entry, Mapping):
            return "no entry"
        missing = [name for name in STATISTICS if entry.get(name) is None]
        if missing:
            return f"no {', '.join(missing)}"
        values = self._from_file(column)
        parts = [part for part in self._parts.values() if part.column == column and part.end <= values.min.size]
        if any(_averaged(_slice(values, part)) for part in parts):
            return "its q01 and q99 are averages over episodes"
        return ""

    def of(self, part: PartLayout) -> Statistics | None:
        """Statistics of a part, needed or not; None where those of one that is not needed cannot be had."""
        column = self._columns.get(part.column)
        if column is None:
            try:
                column = self._from_file(part.column)
            except DatasetError:
                return None
        if part.end > column.min.size:
            return None
        sliced = _slice(column, part)
        return sliced if impossible(sliced) is None else None

    def _check(self, key: str, part: PartLayout, source: Path) -> None:
        column = self._columns[part.column]
        if part.end > column.min.size:
            raise DatasetError(
                f"{self._root / 'meta' / 'modality.json'}: {key} ends at {part.end}",
                known=f"column {part.column!r} is {column.min.size} wide",
                fix="correct start and end in meta/modality.json",
            )
        problem = impossible(_slice(column, part))
        if problem is not None:
            what = f"{source}: statistics of column {part.column!r}, {key}: {problem}"
            fix = f"take {part.column!r} out of meta/stats.json, and its statistics are computed from the rows"
            raise DatasetError(what, fix=fix if source == self._file else "correct the recording")

    def _computed(self, absent: Mapping[str, str]) -> dict[str, Statistics]:
        """Statistics of columns that stats.json lacks, over all parquet files that are here."""
        listed = self._storage.files()
        files = list(present(listed))
        if not files:
            raise DatasetError(
                f"{self._file}: missing or incomplete, and there is no parquet file to compute from",
                known="a file of rows in data/chunk-000",
                fix="download meta/stats.json or at least one episode",
            )
        why = "; ".join(f"{name}: {reason}" for name, reason in absent.items())
        self.notes.append(
            f"{self._file} has no statistics to use ({why}): they are computed from the rows, "
            f"{len(files)} of {len(listed)} parquet files being here."
        )
        if not self._from_rows and (self._file.exists() or len(files) < len(listed)):
            warn_once(self.notes[-1])
        return statistics_of_columns(self._tables(files), {name: self._elements(name) for name in absent})

    def _tables(self, files: list[Path]) -> Iterator[Table]:
        for number, path in enumerate(files):
            self._advance(number, len(files))
            yield self._storage.table(path)

    def _elements(self, column: str) -> np.ndarray:
        """Elements of a column that the needed parts take."""
        parts = [part for part in self._parts.values() if part.column == column]
        return np.unique(np.concatenate([np.arange(part.start, part.end) for part in parts]))


def _slice(column: Statistics, part: PartLayout) -> Statistics:
    return Statistics(**{name: getattr(column, name)[part.start : part.end] for name in STATISTICS})


def _averaged(values: Statistics) -> bool:
    """Whether q01 and q99 lie too close together for what else is known, as an average over episodes does.

    LeRobot 0.4 averages the quantiles of the episodes, weighted by their lengths; of a value that moves between
    episodes only, both are its mean.
    """
    with np.errstate(invalid="ignore"):
        inner, whole = values.q99 - values.q01, values.max - values.min
    slack = 1e-6 * np.maximum(1.0, np.abs(values.mean))
    ordered = (values.min - slack <= values.q01) & (inner >= -slack) & (values.q99 <= values.max + slack)
    # 98 % of the values lie within `inner`, and no other farther from there than `whole`.
    most = np.hypot(inner, 0.02**0.5 * whole)
    return bool(ordered.all() and (values.std > 1.25 * most + slack).any())


def build_metadata(
    tag: str, info: DatasetInfo, layout: ModalityLayout, statistics: PartStatistics, views: Iterable[str]
) -> DatasetMetadata:
    """Every part with its statistics, and every view; of those that are not needed, the ones that can be had.

    Args:
        views: Those that are needed, by short name.
    Raises: DatasetError for a needed view that info.json does not describe.
    """
    found = {
        section: {name: values for name, part in getattr(layout, section).items() if (values := statistics.of(part))}
        for section in ("state", "action")
    }
    return DatasetMetadata(
        tag,
        _views(info, layout, set(views)),
        {name: layout.state[name].info for name in found["state"]},
        {name: layout.action[name].info for name in found["action"]},
        found["state"],
        found["action"],
        source=str(info.path.parent.parent),
    )


def _views(info: DatasetInfo, layout: ModalityLayout, needed: set[str]) -> dict[str, VideoInfo]:
    out = {}
    for name, feature in layout.video.items():
        try:
            out[name] = info.view(feature)
        except Gr00tError:
            if name in needed:
                raise
    return out
