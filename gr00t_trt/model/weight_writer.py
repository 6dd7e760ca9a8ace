"""Safetensors files written tensor by tensor: from memory, or byte for byte from another checkpoint's files.

Nothing is held whole in memory, and every file is on the disk before `write_weights` returns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .folders import INDEX, SINGLE
from .weight_files import Stored, stored_bytes, stored_size

SHARD_BYTES = 5_000_000_000
"""A file that would become larger is begun anew, as in the public checkpoint."""

_NAMES: Mapping[torch.dtype, str] = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """A tensor to be written.

    Attributes:
        dtype: In the format's words, ``F32``.
        bytes: How many.
        parts: Gives them, in order.
    """

    dtype: str
    shape: tuple[int, ...]
    bytes: int
    parts: Callable[[], Iterable[memoryview]]


def from_tensor(tensor: Tensor) -> Entry:
    """A tensor on any device, in its own dtype."""
    size = tensor.numel() * tensor.element_size()
    return Entry(_NAMES[tensor.dtype], tuple(tensor.shape), size, lambda: [tensor_bytes(tensor)])


def from_stored(stored: Stored) -> Entry:
    """A tensor of another file, byte for byte. Raises: CheckpointError, here or while it is written, for the file."""
    return Entry(stored.dtype, stored.shape, stored_size(stored), partial(stored_bytes, stored))


def computed(shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Tensor]) -> Entry:
    """A tensor that is made when its turn comes."""
    size = torch.Size(shape).numel() * torch.empty(0, dtype=dtype).element_size()
    return Entry(_NAMES[dtype], shape, size, lambda: [tensor_bytes(make().to(dtype))])


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's values; a view of it where it is contiguous and on the CPU, else of a copy."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def write_weights(
    folder: Path, *groups: Mapping[str, Entry], limit: int = SHARD_BYTES, twins: Mapping[str, Path] | None = None
) -> list[list[str]]:
    """Write a model's tensors: one file, or several with their index. Tensors of two groups never share a file.

    Args:
        folder: Exists, without weights.
        limit: Bytes in a file, unless one tensor has more.
        twins: Name -> a file that may be taken instead of writing one with the same tensors: what they hold is known
            to be the same. Both names then lead to one file where the disk allows it.
    Returns: By group, the names of its files.
    Raises: OSError, as for a full disk; CheckpointError where a tensor's own file cannot be read.
    """
    shards = [[*_shards(group, limit)] for group in groups]
    count, number = sum(map(len, shards)), 0
    places: dict[str, str] = {}
    names: list[list[str]] = []
    for group, own in zip(groups, shards, strict=True):
        names.append([])
        for keys in own:
            number += 1
            name = SINGLE if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"
            names[-1].append(name)
            places |= dict.fromkeys(keys, name)
            write_file(folder / name, {key: group[key] for key in keys}, (twins or {}).get(name))
    if count > 1:
        size = sum(entry.bytes for group in groups for entry in group.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        write_json(folder / INDEX, index)
    return names


def _shards(entries: Mapping[str, Entry], limit: int) -> Iterator[list[str]]:
    keys: list[str] = []
    size = 0
    for key in sorted(entries):
        if keys and size + entries[key].bytes > limit:
            yield keys
            keys, size = [], 0
        keys.append(key)
        size += entries[key].bytes
    if keys:
        yield keys


def write_file(path: Path, entries: Mapping[str, Entry], twin: Path | None = None) -> None:
    """Write one safetensors file, and wait until it is on the disk.

    Args:
        twin: See `write_weights`.
    Raises: as `write_weights`.
    """
    # Wider numbers first, so that every tensor begins at a multiple of its numbers' size.
    keys = sorted(entries, key=lambda key: (-_width(entries[key]), key))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key in keys:
        entry = entries[key]
        ends = [offset, offset + entry.bytes]
        header[key] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    if twin is None or not _linked(path, twin, head, offset):
        _write(path, head, [entries[key] for key in keys])


def _linked(path: Path, twin: Path, head: bytes, size: int) -> bool:
    """Whether `path` is now a second name of a file with the same header and as many bytes behind it."""
    try:
        with twin.open("rb") as file:
            alike = twin.stat().st_size == len(head) + size and file.read(len(head)) == head
        if alike:
            os.link(twin, path)
    except OSError:  # gone, on another disk, or one without links
        return False
    return alike


def _width(entry: Entry) -> int:
    numbers = torch.Size(entry.shape).numel()
    return entry.bytes // numbers if numbers else 0


def _write(path: Path, head: bytes, entries: Iterable[Entry]) -> None:
    with path.open("wb") as file:
        file.write(head)
        for entry in entries:
            for part in entry.parts():
                file.write(part)
        _to_disk(file)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file, and wait until it is on the disk. Raises: OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2, sort_keys=True) + "\n")
        _to_disk(file)


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
