"""Parquet columns as numpy arrays, and their statistics. The one file that imports pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, refetch
from .metadata import Statistics

MAX_VALUES_PER_ROW = 10_000
"""A few kilobytes of parquet can decode to gigabytes of one number; no state or action is this wide."""
_LISTS = ("is_list", "is_large_list", "is_fixed_size_list", "is_list_view", "is_large_list_view")
_IMAGE_ROWS = 16
"""Images decoded at once from their column."""


class Table:
    """A parquet file; nothing but its schema is read before a column is asked for, and then that column alone.

    Args:
        path: A parquet file.
    Raises: DatasetError when it is missing or corrupt.
    """

    def __init__(self, path: Path):
        self.path = path
        # pyarrow would take a folder for a table in many files; Path.is_file fails for a name that is too long.
        if not os.path.isfile(path):
            raise DatasetError(
                f"{path}: no such file",
                known="the dataset's meta folder lists this episode",
                fix="download the episode, or choose one that is present",
            )
        with self._errors(), self._open() as file:
            self._metadata, self._schema = file.metadata, file.schema_arrow
        self._arrays: dict[str, np.ndarray] = {}
        self._images: tuple[str, int, Iterator[Any]] | None = None
        self._batch: list[Any] = []

    def __len__(self) -> int:
        return int(self._metadata.num_rows)

    @property
    def names(self) -> list[str]:
        return list(self._schema.names)

    @property
    def numeric_names(self) -> list[str]:
        """Columns of numbers, booleans, or lists of them."""
        import pyarrow.types as types

        names = []
        for field in self._schema:
            kind = field.type
            while _is_list(kind):
                kind = kind.value_type
            if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
                names.append(field.name)
        return names

    def column(self, name: str) -> np.ndarray:
        """One column, [N] for scalars and [N, D] for lists, in the file's dtype.

        Raises: DatasetError for a missing column, rows of unequal width, or null values.
        """
        if name not in self._arrays:
            self._check(name)
            with self._errors():
                self._arrays[name] = self._to_numpy(name)
        return self._arrays[name]

    def numbers(self, name: str) -> np.ndarray:
        """A column of numbers as [N, D]. Raises: DatasetError, also for one that holds anything else."""
        column = self.column(name)
        if column.dtype == object or column.dtype.kind not in "iufb":
            raise DatasetError(f"{self.path}: column {name!r} holds {column.dtype}, not numbers")
        return column if column.ndim == 2 else column[:, None]

    def scalars(self, name: str) -> np.ndarray:
        """A column of one number a row, [N]. Raises: DatasetError, also for any other width."""
        column = self.numbers(name)
        if column.shape[1] != 1:
            raise DatasetError(f"{self.path}: column {name!r} is {column.shape[1]} wide", known="one number a row")
        return column[:, 0]

    def texts(self, name: str) -> list[str]:
        """A column of text. Raises: DatasetError, also for one that holds anything else."""
        values = self.column(name).tolist()
        if not all(isinstance(value, str) for value in values):
            raise DatasetError(f"{self.path}: column {name!r} holds something else than text")
        return values

    def image(self, name: str, row: int) -> Any:
        """One value of an image column: ``{"bytes": ..., "path": ...}``, bytes, or a path. Raises: DatasetError.

        Walking forward decodes every row once, a few at a time.
        """
        if self._images is None or self._images[0] != name or not self._images[1] <= row:
            self._check(name)
            self._images, self._batch = (name, 0, self._batches(name)), []
        name, first, batches = self._images
        with self._errors():
            while row >= first + len(self._batch):
                first += len(self._batch)
                self._batch = next(batches)
                self._images = (name, first, batches)
        return self._batch[row - first]

    def _batches(self, name: str) -> Iterator[list[Any]]:
        with self._open() as file:
            for batch in file.iter_batches(_IMAGE_ROWS, columns=[name]):
                yield batch.column(name).to_pylist()

    def _open(self) -> Any:
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(self.path, metadata=getattr(self, "_metadata", None))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns what pyarrow raises about the file into a DatasetError."""
        import pyarrow

        try:
            yield
        except (OSError, pyarrow.ArrowException, UnicodeDecodeError, KeyError, StopIteration) as error:
            # Further lines may hold the file's own bytes.
            reason = (str(error).strip().splitlines() or ["it ends early"])[0]
            what = f"{self.path}: not a readable parquet file: {reason}"
            raise DatasetError(what, fix=refetch(self.path)) from error

    def _check(self, name: str) -> None:
        """Raises: DatasetError for a column that is missing, there twice, or too large to be decoded."""
        if self.names.count(name) != 1:
            many = name in self.names
            raise DatasetError(
                f"{self.path}: column {name!r} is {'there twice' if many else 'missing'}",
                known=sorted(self.names),
                fix="write the file again" if many else "correct original_key in meta/modality.json, or add the column",
            )
        with self._errors():  # names of columns are decoded here, and may be damaged
            values = max((sum(sizes) for sizes in self._sizes(name).values()), default=0)
        if values > MAX_VALUES_PER_ROW * max(1, len(self)):
            raise DatasetError(
                f"{self.path}: column {name!r} decodes to {values} values in {len(self)} rows",
                known=f"at most {MAX_VALUES_PER_ROW} values a row",
                fix=refetch(self.path),
            )

    def _sizes(self, name: str) -> dict[str, list[int]]:
        """Number of values of each leaf of a column, per row group."""
        sizes: dict[str, list[int]] = {}
        for group in range(self._metadata.num_row_groups):
            rows = self._metadata.row_group(group)
            for index in range(rows.num_columns):
                leaf = rows.column(index)
                if leaf.path_in_schema == name or leaf.path_in_schema.startswith(f"{name}."):
                    sizes.setdefault(leaf.path_in_schema, []).append(leaf.num_values)
        return sizes

    def _to_numpy(self, name: str) -> np.ndarray:
        import pyarrow
        import pyarrow.compute

        with self._open() as file:
            column = file.read(columns=[name]).column(name)
        width, rows = None, len(column)
        while _is_list(column.type):
            self._refuse_nulls(name, column, 1)
            values = pyarrow.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)
            widths = np.unique(pyarrow.compute.list_value_length(column).to_numpy())
            if len(widths) > 1:
                raise DatasetError(
                    f"{self.path}: rows of column {name!r} differ in width: {widths[:8].tolist()}",
                    fix="every row needs the same number of values",
                )
            width, column = (width or 1) * (int(widths[0]) if len(widths) else 0), values
        self._refuse_nulls(name, column, width or 1)
        array = np.asarray(column.to_numpy())
        return array if width is None else array.reshape(rows, width)

    def _refuse_nulls(self, name: str, column: Any, width: int) -> None:
        if column.null_count:
            row = int(np.flatnonzero(column.is_null().to_numpy())[0]) // width
            what = f"{self.path}: column {name!r} holds null values, the first in row {row}"
            raise DatasetError(what, fix="every frame needs a value")


def _is_list(kind: Any) -> bool:
    import pyarrow.types

    # Views of lists came with pyarrow 16.
    return any(getattr(pyarrow.types, name)(kind) for name in _LISTS if hasattr(pyarrow.types, name))


def column_statistics(paths: Iterable[Path]) -> dict[str, Statistics]:
    """Statistics of every numeric column over all given parquet files, as `statistics_of_columns`."""
    tables = [Table(path) for path in paths]
    names = dict.fromkeys(name for table in tables for name in table.numeric_names)
    return statistics_of_columns(tables, {name: np.zeros(0, np.int64) for name in names})


def statistics_of_columns(tables: Iterable[Table], needed: Mapping[str, np.ndarray]) -> dict[str, Statistics]:
    """Statistics of some columns over all rows of some tables.

    Values are stacked and cast to float32; standard deviation is that of the population; quantiles interpolate
    linearly.

    Args:
        needed: Column -> int64 [K], elements of its rows that must be finite.
    Raises: DatasetError when a file is corrupt, a column is no numbers or its width differs between files, or a
        needed element is not finite; it names file, column, row and element.
    """
    stacked: dict[str, list[np.ndarray]] = {name: [] for name in needed}
    for table in tables:
        for name, elements in needed.items() if len(table) else ():
            rows = table.numbers(name)
            refuse_non_finite(rows, f"{table.path}: column {name!r}", elements[elements < rows.shape[1]])
            with np.errstate(over="ignore"):
                stacked[name].append(rows.astype(np.float32))
    out = {}
    for name, arrays in stacked.items():
        widths = {a.shape[1] for a in arrays}
        if len(widths) > 1:
            raise DatasetError(f"column {name!r} is {sorted(widths)} wide in different episodes of one dataset")
        if arrays:
            out[name] = _statistics(np.concatenate(arrays))
    return out


def refuse_non_finite(values: np.ndarray, where: str, elements: np.ndarray, rows: np.ndarray | None = None) -> None:
    """Raises: DatasetError naming row and element for a NaN or an infinity.

    Args:
        values: [N, D].
        elements: int64 [K], which of the D are looked at.
        rows: int64 [M], which of the N; all when None.
    """
    rows = np.arange(len(values)) if rows is None else rows
    bad = ~np.isfinite(values[rows][:, elements])
    if bad.any():
        row, element = np.argwhere(bad)[0]
        what = f"{where} holds {values[rows[row], elements[element]]} in row {rows[row]}, element {elements[element]}"
        raise DatasetError(what, known="finite numbers", fix="leave the episode out, or correct the recording")


def _statistics(rows: np.ndarray) -> Statistics:
    with np.errstate(invalid="ignore", over="ignore"):
        quantiles = np.quantile(rows, [0.01, 0.99], axis=0)
        found = (rows.max(0), rows.min(0), rows.mean(0), rows.std(0), *quantiles)
    return Statistics(*(values.astype(np.float64) for values in found))


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of equal length, [N] or [N, D], as one parquet file."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({k: v if v.ndim == 1 else list(v) for k, v in columns.items()}), path)
