"""What a training has measured, a JSON object a line, and TensorBoard's files where that is installed. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import RecordError
from .watch import Taken

FILE, BOARD = "metrics.jsonl", "runs"


class Metrics:
    """Appends to a run's metrics.

    Args:
        folder: The run's.
        step: Steps done; what an interrupted run wrote of later ones is removed.
        board: TensorBoard's writer.
    Raises: RecordError for a file that cannot be written.
    """

    def __init__(self, folder: Path, step: int, board: Any = None):
        self.path, self._board = folder / FILE, board
        kept = [json.dumps(row) for row in read_metrics(folder) if row["step"] <= step]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(f"{row}\n" for row in kept), encoding="utf-8")
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, step: int, **values: float) -> None:
        """Numbers of a step, counted from 1. Raises: RecordError."""
        try:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise _unwritable(self.path, error) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def write_step(self, taken: Taken) -> None:
        """All that is known of an optimizer step. Raises: RecordError."""
        self.write(
            taken.number,
            loss=taken.loss,
            learning_rate=taken.rate,
            gradient_norm=taken.norm,
            samples_per_s=taken.samples / max(taken.seconds, 1e-9),
            wait_s=taken.wait_s,
        )

    def close(self) -> None:
        """Write out what is left."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows that a run has written; none without a file. A line that a killed process cut short is left out."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise RecordError(f"{folder / FILE}: cannot be read: {error}", fix="move it away") from error
    rows = (_row(line) for line in lines)
    return [row for row in rows if row is not None]


def _row(line: str) -> dict[str, float] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def series(rows: Sequence[dict[str, float]], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of one number."""
    found = [(row["step"], row[name]) for row in rows if name in row]
    return [int(step) for step, _ in found], [value for _, value in found]


def _unwritable(path: Path, error: OSError) -> RecordError:
    return RecordError(f"{path}: cannot be written: {error.strerror or error}", fix="name another --output_dir")
