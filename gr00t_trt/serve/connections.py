"""The connections of a transport on asyncio: which may stay where there are too many, or one holds too much.

One without a complete request in hand makes room, the idlest first; so the newcomer is always served, and whoever holds
connections to block others only loses them. Never imports torch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

_SWEEP_S = 0.5
_CHANCE_S = 0.02
"""How long a new connection may take to send its request before it is counted: they come in bursts."""
_CONNECTIONS = 256
_OF_AN_ADDRESS = 128
"""Connections at once, and from one address."""
_UNFINISHED = 4
"""Bytes that all connections hold together, in largest requests."""

Address = tuple[str, int]


class Guarded(Protocol):
    """A connection that can be made to go.

    Attributes:
        client: Address and port at its other end; None once it has gone.
        transport: asyncio's.
        since: When it was made, or had its last request's beginning or its last answer.
        held: Bytes of a request that has begun and is not being answered.
        answering: A request is complete and waits for its answer.
    """

    client: Address | None
    transport: Any
    since: float
    held: int
    answering: bool

    @property
    def settled(self) -> bool:
        """Whether it has had an answer, and no request has begun since."""

    def overdue(self, now: float) -> bool:
        """Whether it has taken too long; `now` on the clock of `time.monotonic`."""

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
        self._connections: dict[Address, C] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None

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

    def gone(self, client: Address | None) -> bool:
        """Whether the connection from this address and port is closed."""
        found = self._connections.get(client) if client else None
        return found is None or found.transport.is_closing()

    def hold(self, client: Address | None, size: int) -> None:
        """So many bytes are held for a connection; the one with the most goes where all hold too many."""
        found = self._connections.get(client) if client else None
        if found is not None and not found.transport.is_closing():
            found.held = size
            if sum(each.held for each in self._connections.values()) > self._most_held:
                max(self._connections.values(), key=lambda each: each.held).drop()

    @contextmanager
    def answering(self, client: Address | None) -> Iterator[None]:
        """Meanwhile the connection has a complete request in hand, and stays whatever comes."""
        found = self._connections.get(client) if client else None
        if found is not None:
            found.held, found.answering = 0, True
        try:
            yield
        finally:
            if found is not None:
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
