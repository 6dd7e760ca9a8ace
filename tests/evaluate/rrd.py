"""What stands in a file for the Rerun viewer, read with the SDK's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

DATA = ("Scalars:scalars", "Tensor:data", "EncodedImage:blob")


def read(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Entity -> its entries in the order of the file: column -> value, `time` in seconds."""
    reader = pytest.importorskip("rerun.chunk").RrdReader(path)
    out: dict[str, list[dict[str, Any]]] = {}
    for chunk in reader.stream():
        batch = chunk.to_record_batch()
        columns = {name: batch.column(name).to_pylist() for name in batch.schema.names if name in ("step", *DATA)}
        if "time" in batch.schema.names:
            columns["time"] = (batch.column("time").cast("int64").to_numpy() / 1e9).tolist()
        entries = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        out.setdefault(str(chunk.entity_path).replace("\\", ""), []).extend(entries)
    return {name: sorted(own, key=lambda entry: entry.get("time", 0.0)) for name, own in out.items()}


def curve(entries: list[dict[str, Any]]) -> np.ndarray:
    """The values of a curve, [entries, D]."""
    return np.array([entry["Scalars:scalars"] for entry in entries])
