"""The safetensors files of a checkpoint: which tensor lies in which of them, known from their headers.

An index names the file of each tensor. What contradicts it is refused: a file left over from an earlier save must never
change a model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError, refetch
from .config_section import read_object
from .folders import INDEX, SINGLE

_PIECE_BYTES = 1 << 26
_ONE_SAVE = "copy the whole checkpoint again, into an empty folder"


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, known from its file's header, or of another model's state."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file. Raises: CheckpointError, also for what goes wrong while it is read."""
    try:
        with safe_open(str(file), framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as e:
        raise CheckpointError(f"{file}: cannot be read: {e}", fix=refetch(file)) from e


def headers(folder: Path) -> dict[str, Stored]:
    """Key -> tensor, of all weights of a folder.

    Raises: CheckpointError for files that are missing, damaged, or that contradict the index.
    """
    if not (folder / INDEX).is_file():
        return header(folder / SINGLE)
    weight_map = _weight_map(folder)
    stored: dict[str, Stored] = {}
    for name in sorted(set(weight_map.values())):
        for key, found in header(folder / name).items():
            if key in stored:
                raise CheckpointError(
                    f"{folder}: tensor {key} is in both {stored[key].file.name} and {name}", fix=_ONE_SAVE
                )
            stored[key] = found
    _check_places(folder / INDEX, weight_map, stored)
    return stored


def header(file: Path) -> dict[str, Stored]:
    """Key -> tensor, of one file. Raises: CheckpointError."""
    with opened(file) as handle:
        views = {key: handle.get_slice(key) for key in handle.keys()}  # noqa: SIM118  a file handle, not a dict
        return {key: Stored(file, key, tuple(view.get_shape()), view.get_dtype()) for key, view in views.items()}


def stored_size(stored: Stored) -> int:
    """How many bytes a tensor takes in its file. Raises: CheckpointError for a file that cannot be read."""
    return _place(stored)[1]


def stored_bytes(stored: Stored) -> Iterator[memoryview]:
    """The bytes of a tensor as they are in its file, in pieces.

    Raises: CheckpointError for a file that cannot be read, or ends too soon.
    """
    start, size = _place(stored)
    try:
        with stored.file.open("rb") as file:
            file.seek(start)
            while size:
                part = file.read(min(size, _PIECE_BYTES))
                if not part:
                    raise OSError("it ends too soon")
                size -= len(part)
                yield memoryview(part)
    except OSError as e:
        raise CheckpointError(f"{stored.file}: cannot be read: {e}", fix=refetch(stored.file)) from e


def content_hash(stored: Mapping[str, Stored]) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor, however they are spread over files.

    Raises: CheckpointError for a file that cannot be read.
    """
    digest = hashlib.sha256()
    for name in sorted(stored):
        found = stored[name]
        digest.update(f"{name} {found.dtype} {found.shape}\n".encode())
        for part in stored_bytes(found):
            digest.update(part)
    return digest.hexdigest()


def _place(stored: Stored) -> tuple[int, int]:
    """Where a tensor begins in its file, and how many bytes it has."""
    try:
        about = stored.file.stat()
        start, end = _places(stored.file, about.st_size, about.st_mtime_ns)[stored.key]
    except (OSError, ValueError, KeyError) as e:
        raise CheckpointError(f"{stored.file}: cannot be read: {e}", fix=refetch(stored.file)) from e
    return start, end - start


@lru_cache(maxsize=64)
def _places(file: Path, size: int, changed: int) -> Mapping[str, tuple[int, int]]:
    """Key -> first byte and the one behind the last, of a file of that size, changed at that time."""
    with file.open("rb") as opened_file:
        length = int.from_bytes(opened_file.read(8), "little")
        if length > size:
            raise ValueError("the header is longer than the file")
        entries = json.loads(opened_file.read(length))
    data = {key: entry["data_offsets"] for key, entry in entries.items() if key != "__metadata__"}
    return {key: (8 + length + start, 8 + length + end) for key, (start, end) in data.items()}


def _weight_map(folder: Path) -> Mapping[str, str]:
    index = folder / INDEX
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        known = '{"weight_map": {"<tensor>": "<file>"}}'
        raise CheckpointError(f"{index}: no weight map", known=known, fix="download it again")
    named = list(weight_map.values())
    strange = [name for name in named if not isinstance(name, str)]
    for name in strange[:1] or sorted(set(named)):
        if strange or Path(name).name != name or not os.path.isfile(folder / name):
            raise CheckpointError(
                f"{index}: names {name!r}, which is not in {folder}", fix="download the missing file into the folder"
            )
    if (folder / SINGLE).is_file() and SINGLE not in named:
        raise CheckpointError(
            f"{folder}: holds two sets of weights: {SINGLE}, and the files of {INDEX}",
            known="one of them",
            fix=f"move the older one away: {SINGLE}, or {INDEX} with its files",
        )
    return weight_map


def _check_places(index: Path, weight_map: Mapping[str, str], stored: Mapping[str, Stored]) -> None:
    for key, name in weight_map.items():
        found = stored[key].file.name if key in stored else None
        if found != name:
            where = f"not in {name}" if found is None else f"in {found}, not in {name}"
            raise CheckpointError(f"{index}: tensor {key} is {where}, as the index says", fix=_ONE_SAVE)
    extra = next((key for key in stored if key not in weight_map), None)
    if extra is not None:
        raise CheckpointError(f"{stored[extra].file}: tensor {extra} is not in {INDEX}", fix=_ONE_SAVE)
