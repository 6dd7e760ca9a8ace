"""The connections of a transport on asyncio: which may stay where there are too many, or one holds too much.

One without a complete request in hand makes room, the idlest first; so the newcomer is always served, and whoever holds
connections to block others only loses them. Never imports torch.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from .pace import AT_ONCE, Pace, rests_until

_SWEEP_S = 0.5
_CHANCE_S = 0.02
"""How long a new connection may take to send its request before it is counted: they come in bursts."""
_CONNECTIONS = 256
_OF_AN_ADDRESS = 128
"""Connections at once, and from one address."""
_UNFINISHED = 4
"""Bytes that all connections hold together, in largest requests."""
_TURN_BYTES = 2**16
"""What it costs a connection that has to wait to be read again: so they take turns."""

Address = tuple[str, int]


class Guarded(ABC):
    """A connection that can be made to go; beside asyncio's or a library's protocol among the bases of a class.

    Attributes:
        client: Address and port at its other end; None once it has gone.
        transport: asyncio's.
        since: When it was made, or had its last request's beginning or its last answer.
        held: Bytes of a request that has begun and is not being answered.
        expected: Bytes of all of that request, by its own word and so far.
        answering: A request is complete and waits for its answer.
        refused: Whether its last request came to nothing; it is not read before `rests_until` then.
    """

    client: Address | None
    transport: Any
    since: float
    held = 0
    expected = 0
    answering = False
    refused = False
    rests_until = 0.0

    @property
    @abstractmethod
    def settled(self) -> bool:
        """Whether it has had an answer, and no request has begun since."""

    @abstractmethod
    def overdue(self, now: float) -> bool:
        """Whether it has taken too long; `now` on the clock of `time.monotonic`."""

    @abstractmethod
    def drop(self) -> None:
        """Have it go, which it does at the next turn of the loop."""


C = TypeVar("C", bound=Guarded)


class Connections(Generic[C]):
    """The connections of one server; used on its event loop alone.

    Args:
        max_request_bytes: The largest request.
    """

    def __init__(self, max_request_bytes: int):
        self._most_held = _UNFINISHED * max_request_bytes
        self._pace = Pace(max_request_bytes)
        self._connections: dict[Address, C] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None
        self._resting: deque[tuple[float, Callable[[], None]]] = deque()
        self._waking: asyncio.TimerHandle | None = None

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._connections.values()))

    def add(self, connection: C) -> None:
        if self._sweeping is None:
            self._sweep()
        if connection.client is not None:
            self._connections[connection.client] = connection
            if self._counting is None and len(self._connections) > min(_CONNECTIONS, _OF_AN_ADDRESS):
                self._counting = asyncio.get_running_loop().call_later(_CHANCE_S, self._make_room)

    def remove(self, connection: C) -> None:
        if connection.client is not None and self._connections.get(connection.client) is connection:
            del self._connections[connection.client]

    def _of(self, client: Address | None) -> C | None:
        return self._connections.get(client) if client else None

    def gone(self, client: Address | None) -> bool:
        """Whether the connection from this address and port is closed."""
        found = self._of(client)
        return found is None or found.transport.is_closing()

    def hold(self, client: Address | None, size: int, expected: int = 0) -> None:
        """So many bytes are held for a connection; the one with the most goes where all hold too many.

        Args:
            expected: Bytes that its request says it has.
        """
        found = self._of(client)
        if found is not None and not found.transport.is_closing():
            self._pace.spend(max(0, size - found.held))
            found.held, found.expected = size, max(size, expected)
            if sum(each.held for each in self._connections.values()) > self._most_held:
                max(self._connections.values(), key=lambda each: each.held).drop()

    def rests(self, client: Address | None, turn: Callable[[], None]) -> bool:
        """Whether reading from a connection is to pause: too many bytes come that lead to no accepted request.

        Args:
            turn: Called when it may be read again.
        """
        found = self._of(client)
        if found is None or not (found.refused or found.expected > AT_ONCE):
            return False
        until = found.rests_until if found.refused else 0.0
        if not self._pace.wait_s() and until <= time.monotonic():
            return False
        self._resting.append((until, turn))
        if self._waking is not None:  # the newcomer may be due before them
            self._waking.cancel()
        self._wake_later()
        return True

    def _wake_later(self) -> None:
        self._waking = None
        if self._resting:
            first = min(until for until, _ in self._resting) - time.monotonic()
            wait_s = max(self._pace.wait_s(), first, 0.0)
            self._waking = asyncio.get_running_loop().call_later(wait_s, self._wake)

    def _wake(self) -> None:
        now = time.monotonic()
        due = next((one for one in self._resting if one[0] <= now), None)
        if due is not None and not self._pace.wait_s():
            self._resting.remove(due)
            self._pace.spend(_TURN_BYTES)
            due[1]()
        self._wake_later()

    @contextmanager
    def answering(self, client: Address | None) -> Iterator[Callable[[], None]]:
        """Meanwhile the connection has a complete request in hand, and stays whatever comes.

        Yields: To be called where the request is refused; an exception tells it as well.
        """
        found = self._of(client)
        if found is None:
            yield lambda: None
            return
        size = found.held
        self._pace.spend(-size)
        found.held = found.expected = 0
        found.answering, found.refused = True, False

        def refuse() -> None:
            found.refused, found.rests_until = True, rests_until(size)
            self._pace.spend(size)

        try:
            yield refuse
        except Exception:
            refuse()
            raise
        finally:
            found.answering, found.since = False, time.monotonic()

    def _make_room(self) -> None:
        """Have the idlest connections go where there are too many, all in all or from one address."""
        self._counting = None
        idle = [each for each in self._connections.values() if not (each.answering or each.transport.is_closing())]
        idle.sort(key=lambda each: (each.settled, each.since))
        left = Counter(host for host, _ in self._connections)
        for each in idle:
            host = each.client[0] if each.client else ""
            if left[host] > _OF_AN_ADDRESS or left.total() > _CONNECTIONS:
                left[host] -= 1
                each.drop()

    def _sweep(self) -> None:
        now = time.monotonic()
        for each in self:
            if not each.answering and each.overdue(now):
                each.transport.abort()
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)
