"""The log of the service, through Python's logging, so that a process that hosts it can route it. No torch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping

LOGGER = logging.getLogger("gr00t_trt.serve")

REQUESTS = "requests"
"""What `--log` takes: one line per request."""

_SLOW_EVERY_S = 10.0
"""Slow requests are warned of no more often; a warning says how many there were since the last one."""


class RequestLog:
    """Writes one line per request where that is asked for, and warns of slow ones in any case.

    Args:
        every: One line per request, of level INFO.
        slow_ms: From which time a request is slow, arrival to answer.
    """

    def __init__(self, *, every: bool = False, slow_ms: float = math.inf):
        self._every, self._slow_ms = every, slow_ms
        self._slow, self._said = 0, -math.inf

    def __call__(
        self,
        endpoint: str,
        error: Exception | None = None,
        *,
        client: str = "-",
        samples: int = 0,
        took_ms: float = 0.0,
        timings_ms: Mapping[str, float] | None = None,
    ) -> None:
        """One request was answered.

        Args:
            endpoint: A name that exists; `client`: who asked; both end up in the log.
            timings_ms: Stage -> milliseconds, for a slow one.
        """
        if self._every:
            what = "ok" if error is None else f"{type(error).__name__}: {one_line(str(error))}"
            LOGGER.info("%s from %s: %d samples, %.1f ms: %s", endpoint, client, samples, took_ms, what)
        if took_ms < self._slow_ms:
            return
        self._slow += 1
        if time.monotonic() - self._said < _SLOW_EVERY_S:
            return
        parts = ", ".join(f"{stage} {ms:.0f}" for stage, ms in (timings_ms or {}).items() if ms >= 1)
        text = "slow: %s from %s took %.0f ms with %d samples (%s); %d slow since the last warning, --slow_ms %g"
        LOGGER.warning(text, endpoint, client, took_ms, samples, parts or "no answer", self._slow, self._slow_ms)
        self._slow, self._said = 0, time.monotonic()


def one_line(text: str, most: int = 200) -> str:
    """The first line of a text that others may have made up, without what a terminal would obey."""
    first = text.splitlines()[0] if text else ""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in first[:most])
