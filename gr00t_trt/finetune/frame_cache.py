"""Episodes decoded once: a file of raw frames and rows for each, read by any number of workers and runs.

A file appears under its name only when it is whole, and the name is a digest of everything that its content depends
on. Whatever is missing, cut short or removed by another run is made again; where it cannot be written, nothing is kept
and frames are decoded each time they are needed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, TypedDict

import numpy as np
from filelock import FileLock

from ..common.notice import warn_once
from ..common.paths import user_cache
from ..common.private_folder import distrust, make_private
from ..errors import RecordError, UsageError

VARIABLE = "GR00T_TRT_FRAME_CACHE"
OFF = "off"
MOST_BYTES = 200 * 10**9
"""Size limit where none is given; never more than half of what is free on the disk."""
SPARE_BYTES = 10**9
"""What is left free on the disk."""
_MAGIC = b"GR00T frames 1\n\0"
_ALIGNMENT = 4096
_LOCKS = 64
_MOST_OPEN = 4096
"""Headers that a process remembers."""
_ABANDONED_S = 3600.0
_LONGEST_HEADER = 64 * 2**20


@dataclass(frozen=True)
class Column:
    """One key of an episode.

    Attributes:
        shape: Of all rows, the number of rows first.
        blocks: Makes the rows from first to last, some at a time.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[np.ndarray]]

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Episode:
    """What is kept of an episode: columns, and for columns that number texts, the texts."""

    columns: Mapping[str, Column]
    texts: Mapping[str, list[str]]


class _Unusable(Exception):
    """A file that is not there, or not as it was written."""


def open_frame_cache(setting: str | Path | None = None, limit_gb: float | None = None) -> FrameCache | None:
    """The cache that a setting stands for: a folder, or ``off`` for none.

    Args:
        setting: None takes the environment variable GR00T_TRT_FRAME_CACHE, and without it
            ``$XDG_CACHE_HOME/gr00t_trt/frames`` or ``~/.cache/gr00t_trt/frames``.
        limit_gb: Its size limit in 10^9 bytes; None: half of what is free on its disk, at most 200.
    Raises: RecordError for a folder that cannot be made, or that others can write to; UsageError for a limit below 0.
    """
    setting = setting or os.environ.get(VARIABLE)
    if limit_gb is not None and not 0 <= limit_gb < float("inf"):
        raise UsageError(f"--frame_cache_gb {limit_gb}", known="a number of gigabytes, 0 or more")
    if setting and str(setting).lower() == OFF:
        return None
    folder = Path(setting).expanduser() if setting else user_cache() / "frames"
    fix = f"name another folder with --frame_cache, or --frame_cache {OFF}"
    try:
        make_private(folder)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RecordError(f"--frame_cache {folder}: {error.strerror or error}", fix=fix) from error
    if (why := distrust(folder)) is not None:
        raise RecordError(f"--frame_cache {folder}: {why}", known="a folder of this user alone", fix=fix)
    return FrameCache(folder, int(limit_gb * 1e9) if limit_gb is not None else min(MOST_BYTES, free // 2))


class FrameCache:
    """A folder of episodes.

    Args:
        folder: Made already.
        limit: Most bytes that `make_room` lets its files have.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self._open: dict[str, _File] = {}
        self._full = False

    def make_room(self, wanted: Iterable[tuple[str, int]]) -> set[str]:
        """Choose which episodes are kept, in the order given, and remove what was used longest ago for them.

        Args:
            wanted: Name, as `name_of` gives it, and size in bytes.
        Returns: Names of those that fit below the limit.
        """
        kept: dict[str, int] = {}
        total = 0
        for name, size in wanted:
            if name not in kept and total + size <= self.limit:
                kept[name] = size
                total += size
        self._sweep()
        for name in kept:
            with suppress(OSError):  # the time says when it was last wanted
                os.utime(self._path(name))
        self._remove_oldest(set(kept), self.limit - total)
        return set(kept)

    def read(
        self, name: str, wanted: Mapping[str, np.ndarray], episode: Callable[[], Episode]
    ) -> tuple[dict[str, np.ndarray], Mapping[str, list[str]]] | None:
        """Rows of some columns, and the texts; the file is made where it is missing.

        Args:
            wanted: Column -> int64 [T], rows in the episode.
            episode: What to make it of.
        Returns: Column -> [T, ...], arrays that belong to the caller; None where the file cannot be written.
        Raises: What making it raises.
        """
        for _ in range(3):
            try:
                file = self._file(name)
                return file.rows(wanted), file.texts
            except _Unusable:
                self._open.pop(name, None)
                if not self._make(name, episode):
                    return None
        return None

    def _file(self, name: str) -> _File:
        if name not in self._open:
            if len(self._open) >= _MOST_OPEN:
                self._open.clear()
            self._open[name] = _File(self._path(name))
        return self._open[name]

    def _make(self, name: str, episode: Callable[[], Episode]) -> bool:
        """Write an episode's file unless another process has by now; whether it is there."""
        if self._full:
            return False
        with self._lock(name):
            with suppress(_Unusable):
                _File(self._path(name))
                return True
            try:
                self._write(name, episode())
            except OSError as error:
                self._full = True
                why = error.strerror or str(error)
                warn_once(
                    f"The frame cache {self.folder} takes no more episodes ({why}): others are decoded each time."
                )
                return False
        return True

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One process at a time makes an episode; the system frees what a killed one held."""
        # Some wait for one that makes another episode; a lock for each would leave a file for each.
        lock = FileLock(self.folder / f".lock-{int(name[:8], 16) % _LOCKS:02d}")
        # Some network disks have no locks: two processes then make the same file, and each writes a whole one.
        with suppress(OSError, NotImplementedError):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _write(self, name: str, episode: Episode) -> None:
        header = _header(episode)
        size = header["bytes"]
        if shutil.disk_usage(self.folder).free < size + SPARE_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        partial = self.folder / f".{name}.{secrets.token_hex(4)}.partial"
        try:
            with open(partial, "xb") as file:
                _write_episode(file, header, episode)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self._path(name))
        finally:
            partial.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.frames"

    def _sweep(self) -> None:
        """Remove what killed processes left half-written, once it is over an hour old."""
        for path in self.folder.glob(".*.partial"):
            with suppress(OSError):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()

    def _remove_oldest(self, kept: set[str], room: int) -> None:
        """Remove files until those that are not `kept` have at most `room` bytes."""
        others = []
        for path in self.folder.glob("*.frames"):
            with suppress(OSError):
                if path.stem not in kept:
                    others.append((path.stat().st_mtime, path.stat().st_size, path))
        excess = sum(size for _, size, _ in others) - room
        for _, size, path in sorted(others):
            if excess <= 0:
                return
            with suppress(OSError):
                path.unlink()
                excess -= size


def name_of(key: Mapping[str, object]) -> str:
    """The name of an episode, from everything that its content depends on."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:40]


class _Place(TypedDict):
    """Where a column lies, counted in bytes from the end of the header."""

    dtype: str
    shape: list[int]
    offset: int


class _Header(TypedDict):
    """What a file begins with. `bytes`: how many follow it."""

    columns: dict[str, _Place]
    texts: Mapping[str, list[str]]
    bytes: int


def _header(episode: Episode) -> _Header:
    columns, end = dict[str, _Place](), 0
    for name, column in episode.columns.items():
        columns[name] = {"dtype": column.dtype, "shape": list(column.shape), "offset": end}
        end += -(-column.bytes // _ALIGNMENT) * _ALIGNMENT
    return {"columns": columns, "texts": dict(episode.texts), "bytes": end}


def _write_episode(file: BinaryIO, header: _Header, episode: Episode) -> None:
    text = json.dumps(header).encode()
    file.write(_MAGIC + len(text).to_bytes(8, "little") + text)
    start = _start(len(text))
    for name, column in episode.columns.items():
        file.seek(start + header["columns"][name]["offset"])
        written = 0
        for block in column.blocks():
            written += file.write(np.ascontiguousarray(block, dtype=column.dtype).data)
        if written != column.bytes:
            raise ValueError(f"{name}: {written} bytes where {column.bytes} were announced")
    file.truncate(start + header["bytes"])


def _start(header: int) -> int:
    """Where data begin after a header of so many bytes."""
    return -(-(len(_MAGIC) + 8 + header) // _ALIGNMENT) * _ALIGNMENT


class _File:
    """A file of the cache, its header read. Raises: _Unusable."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with open(path, "rb") as file:
                opening = file.read(len(_MAGIC) + 8)
                length = int.from_bytes(opening[len(_MAGIC) :], "little")
                if opening[: len(_MAGIC)] != _MAGIC or length > _LONGEST_HEADER:
                    raise _Unusable
                header: _Header = json.loads(file.read(length))
                size = os.fstat(file.fileno()).st_size
        except (OSError, ValueError) as error:
            raise _Unusable from error
        self._start = _start(length)
        if size != self._start + header["bytes"]:
            raise _Unusable
        self.texts, self._columns = header["texts"], header["columns"]

    def rows(self, wanted: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises: _Unusable where the file is gone, or shorter than it was."""
        try:
            # Read, not mapped: a file that somebody cuts short would end the process instead of giving an error.
            with open(self._path, "rb", buffering=0) as file:
                return {name: self._column(file, name, rows) for name, rows in wanted.items()}
        except OSError as error:
            raise _Unusable from error

    def _column(self, file: FileIO, name: str, rows: np.ndarray) -> np.ndarray:
        column = self._columns[name]
        dtype, shape = np.dtype(column["dtype"]), column["shape"]
        size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
        out = np.empty((len(rows), *shape[1:]), dtype=dtype)
        for target, first, count in _runs(rows):
            file.seek(self._start + column["offset"] + first * size)
            view = out[target : target + count].data.cast("B")
            if file.readinto(view) != len(view):
                raise _Unusable
        return out


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Rows as stretches that follow one another: place in `rows`, first row and length."""
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    for begin, end in pairwise(edges):
        yield begin, int(rows[begin]), end - begin
