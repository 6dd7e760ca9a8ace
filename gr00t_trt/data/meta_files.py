"""Text and JSON files of a dataset's meta folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..common.files import parse_json
from ..errors import DatasetError, refetch

LONGEST_SHOWN = 200


def shown(value: Any) -> str:
    """A value of a file as errors show it: its beginning."""
    text = repr(value) if isinstance(value, (str, int, float, bool, type(None))) else str(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def whole_number(value: Any) -> int:
    """An integer, or a float that is one. Raises: ValueError, TypeError or OverflowError for anything else."""
    number = int(value)
    if isinstance(value, bool) or number != value:
        raise ValueError(f"{shown(value)} is not a whole number")
    return number


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises: DatasetError."""
    try:
        content = parse_json(_read_text(path))
    except ValueError as error:
        raise DatasetError(f"{path}: invalid JSON: {error}", fix=refetch(path)) from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: holds {type(content).__name__}", known="a JSON object")
    return content


def read_lines(path: Path) -> list[tuple[int, Any]]:
    """The JSON values of a file that has one a line, each with its line number from 1. Raises: DatasetError."""
    lines = []
    # Only \n ends a line: an instruction may hold the other characters that Unicode counts as line ends.
    for number, text in enumerate(_read_text(path).split("\n"), start=1):
        try:
            if text.strip():
                lines.append((number, parse_json(text)))
        except ValueError as error:
            what = f"{path}, line {number}: invalid JSON: {error}"
            raise DatasetError(what, known="one JSON object per line", fix=refetch(path)) from error
    return lines


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(
            f"{path}: no such file",
            known="LeRobot v2: meta/info.json, episodes.jsonl, tasks.jsonl; v3: meta/info.json, meta/episodes, "
            "tasks.parquet",
            fix="check --dataset_path, or fetch the dataset again",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read: {error}", fix="fetch the file again") from error
