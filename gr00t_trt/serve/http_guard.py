"""Which HTTP connections may stay: uvicorn's protocol on h11 with deadlines, and room for whoever comes next.

uvicorn's own limits do not do: `limit_concurrency` refuses everybody once there are many connections, idle ones and
``/health`` included, and `timeout_keep_alive` counts from an answer on: neither headers nor bodies have a deadline.
"""

from __future__ import annotations

import time
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .connections import Connections, Guarded

IDLE_S = 5.0
"""A connection may say nothing, or send the head of a request, for this long."""


class Guard(Connections["GuardedProtocol"]):
    """The connections of one server; used on its event loop alone.

    Args:
        max_request_bytes: The largest body.
        request_timeout_s: How long a body may take to arrive, and an answer to leave.
    """

    def __init__(self, *, max_request_bytes: int, request_timeout_s: float):
        super().__init__(max_request_bytes)
        self.max_request_bytes, self.request_timeout_s = max_request_bytes, request_timeout_s
        self.active_s = request_timeout_s + IDLE_S


class GuardedProtocol(H11Protocol, Guarded):
    """A connection as `connections.Guarded`; `since`: when it was made, had its last request's head or answer."""

    def __init__(self, guard: Guard, **settings: Any):
        super().__init__(**settings)
        self._guard, self._served = guard, False
        self.since = time.monotonic()

    @property
    def active(self) -> bool:
        """Whether a request has begun and has no answer yet."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def settled(self) -> bool:
        return self._served and not self.active

    def overdue(self, now: float) -> bool:
        return now - self.since > (self._guard.active_s if self.active else IDLE_S)

    def drop(self) -> None:
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
        self._served, self.held, self.since = True, 0, time.monotonic()
        super().on_response_complete()
