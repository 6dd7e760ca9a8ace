"""A lock between processes that nobody has to clean up: the system takes it back when its holder ends, however."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_POLL_S = 0.1


@contextmanager
def file_lock(path: Path, *, timeout_s: float, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock on `path`, an empty file that is made where needed, for the length of the block.

    Args:
        timeout_s: How long to wait for another holder; 0 tries once.
        waiting: Called once, before waiting.
    Yields: False where nothing is locked, because file or system allow no lock (a read-only folder, Windows, some
        network disks); whoever goes on then must write what it writes as a whole.
    Raises: TimeoutError when another process holds it for longer.
    """
    descriptor = _acquire(path, timeout_s, waiting)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _acquire(path: Path, timeout_s: float, waiting: Callable[[], None]) -> int | None:
    deadline = time.monotonic() + timeout_s
    told = False
    while fcntl is not None:
        descriptor = None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _still_there(path, descriptor):
                taken, descriptor = descriptor, None
                return taken
            continue  # its last holder removed the file: what we hold is a lock on nothing
        except BlockingIOError:
            pass
        except OSError:
            return None
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{path}: held by another process for {timeout_s:.0f} s")
        if not told:
            waiting()
            told = True
        time.sleep(_POLL_S)
    return None


def _still_there(path: Path, descriptor: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False
