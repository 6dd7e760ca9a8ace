"""Waiting requests, served in turn by client: one that sends many delays the others by one request, not by all."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue of at most `limit` entries, taken from its clients in turn; in the order of arrival for each of them."""

    def __init__(self, limit: int):
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._size = 0
        self._closed = False

    def __len__(self) -> int:
        return self._size

    def put(self, client: Hashable, entry: T) -> T | None:
        """Add an entry; from any thread.

        Returns: The entry there is no room for, None when all fit: the latest of the client that has the most
            waiting, so that a flood pushes out itself. After `close`, `entry`.
        """
        with self._changed:
            if self._closed:
                return entry
            self._waiting.setdefault(client, deque()).append(entry)
            self._size += 1
            self._changed.notify_all()
            if self._size <= self._limit:
                return None
            # On a tie the client that came last has lost, which is this one if it is among them.
            longest = max(reversed(self._waiting), key=lambda name: (len(self._waiting[name]), name == client))
            return self._remove(longest, last=True)

    def take(self, timeout_s: float) -> T | None:
        """The next client's oldest entry; None when there is none within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._size or self._closed, timeout_s)
            return self._remove(next(iter(self._waiting))) if self._size else None

    def take_like(self, fits: Callable[[T], bool], most: int, timeout_s: float) -> list[T]:
        """Up to `most` further entries that `fits`, waiting for them no longer than `timeout_s`.

        Only the oldest entry of a client can be taken, so that no request overtakes another of its own.
        """
        taken: list[T] = []
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(taken) < most and not self._closed:
                client = next((name for name, own in self._waiting.items() if fits(own[0])), None)
                if client is not None:
                    taken.append(self._remove(client))
                elif not self._changed.wait(deadline - time.monotonic()) or time.monotonic() >= deadline:
                    break
        return taken

    def close(self) -> list[T]:
        """Accept nothing more; returns what was waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return [self._remove(next(iter(self._waiting))) for _ in range(self._size)]

    def _remove(self, client: Hashable, *, last: bool = False) -> T:
        own = self._waiting[client]
        entry = own.pop() if last else own.popleft()
        self._size -= 1
        if not own:
            del self._waiting[client]
        elif not last:
            self._waiting.move_to_end(client)
        return entry
