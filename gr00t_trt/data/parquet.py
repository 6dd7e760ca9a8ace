"""Parquet columns as numpy arrays, and their statistics. The one file that imports pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError, refetch
from .metadata import Statistics


class Table:
    """The rows of one episode; columns become numpy arrays when asked for.

    Args:
        path: A parquet file.
    Raises: DatasetError when it is missing or corrupt.
    """

    def __init__(self, path: Path):
        import pyarrow
        import pyarrow.parquet

        self.path = path
        if not path.is_file():  # pyarrow would take a folder for a table in many files
            raise DatasetError(
                f"{path}: no such file",
                known="meta/episodes.jsonl lists this episode",
                fix="download the episode, or choose one that is present",
            )
        try:
            self._table = pyarrow.parquet.read_table(path)
        except (OSError, pyarrow.ArrowException) as error:
            reason = str(error).strip().splitlines()[0]  # further lines may hold the file's own bytes
            raise DatasetError(f"{path}: not a readable parquet file: {reason}", fix=refetch(path)) from error
        self._arrays: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @property
    def names(self) -> list[str]:
        return list(self._table.column_names)

    @property
    def numeric_names(self) -> list[str]:
        """Columns of numbers, booleans, or lists of them."""
        import pyarrow

        names = []
        for field in self._table.schema:
            kind = field.type
            while pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind):
                kind = kind.value_type
            if pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind):
                names.append(field.name)
        return names

    def column(self, name: str) -> np.ndarray:
        """One column, [N] for scalars and [N, D] for lists, in the file's dtype.

        Raises: DatasetError for a missing column, rows of unequal width, or null values.
        """
        if name not in self._arrays:
            if name not in self._table.column_names:
                raise DatasetError(
                    f"{self.path}: column {name!r} is missing",
                    known=sorted(self._table.column_names),
                    fix="correct original_key in meta/modality.json, or add the column",
                )
            self._arrays[name] = self._to_numpy(name)
        return self._arrays[name]

    def _to_numpy(self, name: str) -> np.ndarray:
        import pyarrow
        import pyarrow.compute

        column = self._table.column(name)
        width, rows = None, len(column)
        while pyarrow.types.is_list(column.type) or pyarrow.types.is_fixed_size_list(column.type):
            if column.null_count:
                raise DatasetError(f"{self.path}: column {name!r} holds null rows", fix="every frame needs a value")
            values = pyarrow.chunked_array([chunk.flatten() for chunk in column.chunks], type=column.type.value_type)
            widths = set(pyarrow.compute.list_value_length(column).to_pylist())
            if len(widths) > 1:
                raise DatasetError(f"{self.path}: rows of column {name!r} differ in width: {sorted(widths)}")
            width, column = (width or 1) * next(iter(widths), 0), values
        if column.null_count:
            raise DatasetError(f"{self.path}: column {name!r} holds null values", fix="every frame needs a value")
        array = np.asarray(column.to_numpy())
        return array if width is None else array.reshape(rows, width)


def column_statistics(paths: Iterable[Path]) -> dict[str, Statistics]:
    """Statistics of every numeric column over all given parquet files.

    Values are stacked and cast to float32; standard deviation is that of the population; quantiles interpolate
    linearly. Columns of strings are skipped.

    Raises: DatasetError when a file is corrupt or a column's width differs between files.
    """
    stacked: dict[str, list[np.ndarray]] = {}
    for path in paths:
        table = Table(path)
        for name in table.numeric_names if len(table) else ():
            rows = table.column(name).reshape(len(table), -1)
            stacked.setdefault(name, []).append(rows.astype(np.float32))
    out = {}
    for name, arrays in stacked.items():
        widths = {a.shape[1] for a in arrays}
        if len(widths) > 1:
            raise DatasetError(f"column {name!r} is {sorted(widths)} wide in different episodes of one dataset")
        out[name] = _statistics(np.concatenate(arrays))
    return out


def _statistics(rows: np.ndarray) -> Statistics:
    q01, q99 = np.quantile(rows, [0.01, 0.99], axis=0)
    values: dict[str, Any] = {"max": rows.max(0), "min": rows.min(0), "mean": rows.mean(0), "std": rows.std(0)}
    return Statistics(**{k: v.astype(np.float64) for k, v in {**values, "q01": q01, "q99": q99}.items()})


def write_table(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write columns of equal length, [N] or [N, D], as one parquet file."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({k: v if v.ndim == 1 else list(v) for k, v in columns.items()}), path)
