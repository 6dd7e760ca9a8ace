"""Waiting requests, served in turn by client and counted in samples: a batch of eight has to wait for eight turns.

This is deficit round robin with a quantum of one sample, and the next turn is that of the client whose last one is the
longest ago. One that comes again after its answer is not behind a flood for that; one that has never been seen is as
if it had just had a turn, so that new names gain nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Generic, TypeVar

T = TypeVar("T")

_REMEMBERED = 4096
"""Clients whose last turn is known while they have nothing waiting."""


@dataclass
class _Line(Generic[T]):
    """What one client has waiting.

    Attributes:
        entries: (samples, entry), the oldest first. `samples`: of all of them.
        credit: Samples that its turns so far allow for and that it has not been served.
    """

    entries: deque[tuple[int, T]] = field(default_factory=deque)
    samples: int = 0
    credit: int = 0


class FairQueue(Generic[T]):
    """A queue of at most `limit` samples, taken from its clients in turn; in the order of arrival for each of them.

    A single entry of more samples than the limit fits into an empty queue.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, _Line[T]] = {}
        self._turns: OrderedDict[Hashable, int] = OrderedDict()
        self._turn = 0
        self._samples = self._count = 0
        self._closed = False

    def __len__(self) -> int:
        """How many samples wait."""
        return self._samples

    def put(self, client: Hashable, entry: T, samples: int = 1) -> list[T]:
        """Add an entry; from any thread.

        Returns: The entries there is no room for: the latest of the client that has the most samples waiting, so that
            a flood pushes out itself. After `close`, `entry`.
        """
        with self._changed:
            if self._closed:
                return [entry]
            line = self._waiting.setdefault(client, _Line())
            if client not in self._turns:
                self._had_turn(client)
            line.entries.append((samples, entry))
            self._add(line, samples)
            self._changed.notify_all()
            rejected = []
            while self._samples > self.limit and self._count > 1:
                # On a tie the client that came last has lost, which is this one if it is among them.
                longest = max(reversed(self._waiting), key=lambda name: (self._waiting[name].samples, name == client))
                rejected.append(self._remove(longest, last=True))
            return rejected

    def take(self, timeout_s: float) -> T | None:
        """The oldest entry of the client whose turn it is; None when there is none within `timeout_s`."""
        with self._changed:
            self._changed.wait_for(lambda: self._count or self._closed, timeout_s)
            while self._count:
                client = min(self._waiting, key=self._turns.__getitem__)
                line = self._waiting[client]
                line.credit += 1
                if line.credit >= line.entries[0][0]:
                    return self._remove(client)
                self._had_turn(client)
            return None

    def take_like(self, fits: Callable[[T], bool], counts: Sequence[int], timeout_s: float = 0.0) -> list[T]:
        """Further entries that `fits`: the largest of `counts` that there are, of clients in turn; empty for fewer.

        An entry stands behind its client's older ones: none is taken before those. What is taken here counts as a turn.

        Args:
            timeout_s: How long the largest of `counts` is waited for.
        """
        most = max(counts)
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fitting(fits, most) == most, timeout_s)
            found = self._fitting(fits, most)
            return [self._next(fits) for _ in range(max((each for each in counts if each <= found), default=0))]

    def _fitting(self, fits: Callable[[T], bool], most: int) -> int:
        """How many entries can be taken one after the other; no more than `most` are looked at that fit."""
        heads = (takewhile(lambda pair: fits(pair[1]), line.entries) for line in self._waiting.values())
        return sum(1 for _ in islice(chain.from_iterable(heads), most))

    def _next(self, fits: Callable[[T], bool]) -> T:
        turns = sorted(self._waiting, key=self._turns.__getitem__)
        return self._remove(next(name for name in turns if fits(self._waiting[name].entries[0][1])))

    def sweep(self, useless: Callable[[T], bool]) -> list[T]:
        """Take out every entry that is `useless`, wherever it stands."""
        with self._changed:
            found = [
                (client, pair) for client, line in self._waiting.items() for pair in line.entries if useless(pair[1])
            ]
            for client, pair in found:
                line = self._waiting[client]
                line.entries.remove(pair)
                self._add(line, -pair[0])
                if not line.entries:
                    del self._waiting[client]
            return [entry for _, (_, entry) in found]

    def close(self) -> list[T]:
        """Accept nothing more; returns what was waiting."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            return [self._remove(next(iter(self._waiting))) for _ in range(self._count)]

    def _had_turn(self, client: Hashable) -> None:
        self._turn += 1
        self._turns[client] = self._turn
        self._turns.move_to_end(client)
        while len(self._turns) > _REMEMBERED + len(self._waiting):
            oldest = next(name for name in self._turns if name not in self._waiting)
            del self._turns[oldest]

    def _add(self, line: _Line[T], samples: int) -> None:
        line.samples += samples
        self._samples += samples
        self._count += 1 if samples > 0 else -1

    def _remove(self, client: Hashable, *, last: bool = False) -> T:
        line = self._waiting[client]
        samples, entry = line.entries.pop() if last else line.entries.popleft()
        self._add(line, -samples)
        if not last:
            line.credit -= samples
            self._had_turn(client)
        if not line.entries:
            del self._waiting[client]
        return entry
