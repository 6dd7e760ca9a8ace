"""Which HTTP connections may stay: uvicorn's protocol on h11 with deadlines, and room for whoever comes next.

uvicorn's own limits do not do: `limit_concurrency` refuses everybody once there are many connections, idle ones and
``/health`` included, and `timeout_keep_alive` counts from an answer on: neither headers nor bodies have a deadline.
Here a connection without a complete request in hand makes room where there are too many, the oldest first; so the
newcomer is always served, and whoever holds connections to block others only loses them.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 5.0
"""A connection may say nothing, or send the head of a request, for this long."""
_SWEEP_S = 0.5
_CHANCE_S = 0.02
"""How long a new connection may take to send its request before it is counted: they come in bursts."""
_CONNECTIONS = 256
_OF_AN_ADDRESS = 128
"""Connections at once, and from one address."""
_UNFINISHED = 4
"""Bytes of all unfinished bodies together, in largest requests."""


class Guard:
    """The connections of one server; used on its event loop alone.

    Args:
        max_request_bytes: The largest body.
        request_timeout_s: How long a body may take to arrive, and an answer to leave.
    """

    def __init__(self, *, max_request_bytes: int, request_timeout_s: float):
        self._unfinished = _UNFINISHED * max_request_bytes
        self._active_s = request_timeout_s + IDLE_S
        self._connections: dict[tuple[str, int], GuardedProtocol] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self._counting: asyncio.TimerHandle | None = None

    def protocol(self, **settings: Any) -> GuardedProtocol:
        """A connection, as uvicorn makes one."""
        return GuardedProtocol(self, **settings)

    def add(self, connection: GuardedProtocol) -> None:
        if self._sweeping is None:
            self._sweep()
        if connection.client is not None:
            self._connections[connection.client] = connection
            if self._counting is None and len(self._connections) > min(_CONNECTIONS, _OF_AN_ADDRESS):
                self._counting = asyncio.get_running_loop().call_later(_CHANCE_S, self._make_room)

    def remove(self, connection: GuardedProtocol) -> None:
        if connection.client is not None and self._connections.get(connection.client) is connection:
            del self._connections[connection.client]

    def gone(self, client: tuple[str, int] | None) -> bool:
        """Whether the connection from this address and port is closed."""
        found = self._connections.get(client) if client else None
        return found is None or found.transport.is_closing()

    def hold(self, client: tuple[str, int] | None, size: int) -> None:
        """So many bytes of an unfinished body are held for a connection; the largest goes where they are too many."""
        found = self._connections.get(client) if client else None
        if found is not None and not found.transport.is_closing():
            found.held = size
            if sum(each.held for each in self._connections.values()) > self._unfinished:
                max(self._connections.values(), key=lambda each: each.held).close()

    @contextmanager
    def answering(self, client: tuple[str, int] | None) -> Iterator[None]:
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
        idle.sort(key=lambda each: (each.served and not each.active, each.since))
        left = Counter(host for host, _ in self._connections)
        for each in idle:
            host = each.client[0] if each.client else ""
            if left[host] > _OF_AN_ADDRESS or left.total() > _CONNECTIONS:
                left[host] -= 1
                each.close()

    def _sweep(self) -> None:
        now = time.monotonic()
        for each in list(self._connections.values()):
            allowed = self._active_s if each.active else IDLE_S
            if not each.answering and now - each.since > allowed:
                each.transport.abort()
        self._sweeping = asyncio.get_running_loop().call_later(_SWEEP_S, self._sweep)


class GuardedProtocol(H11Protocol):
    """A connection that its guard can close.

    Attributes:
        since: When it was made, had its last request's head, or its last answer.
        served: Whether it has ever had an answer.
        held: Bytes of its unfinished body.
        answering: A request is complete and waits for its answer.
    """

    def __init__(self, guard: Guard, **settings: Any):
        super().__init__(**settings)
        self._guard = guard
        self.since = time.monotonic()
        self.served = self.answering = False
        self.held = 0

    @property
    def active(self) -> bool:
        """Whether a request has begun and has no answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    def close(self) -> None:
        """Have it go, which it does at the next turn of the loop."""
        self.held = 0
        self.transport.close()

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._guard.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._guard.remove(self)

    def data_received(self, data: bytes) -> None:
        active = self.active
        super().data_received(data)
        if self.active and not active:
            self.since = time.monotonic()

    def on_response_complete(self) -> None:
        self.served, self.held, self.since = True, 0, time.monotonic()
        super().on_response_complete()
