"""Many robots at one server: latency and throughput for each number of them, one by one and sharing passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from loadtest import Subject, driving, running, summed_up, tally

from gr00t_trt.serve.client import RobotInferenceClient

MAX_BATCH = 8
"""The shared passes that single requests are held against; the plan's ranges allow as many."""


def many(flags: Sequence[str], counts: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """A row for every number of robots and each of `--max_batch` 1 and `MAX_BATCH`.

    Args:
        flags: Of the servers, one after the other.
        counts: Robots, each asking again as soon as it is answered.
        seconds: Of load for each row, after a tenth of that to warm up.
    """
    rows = []
    for most in (1, MAX_BATCH):
        with running([*flags, "--max_batch", str(most)], 0, 0) as server:
            with RobotInferenceClient("127.0.0.1", server.port) as client:
                subject = Subject(server.port, client.status()["observation"])
            rows += [{"max_batch": most, **_loaded(subject, count, seconds)} for count in counts]
    return rows


def _loaded(subject: Subject, count: int, seconds: float) -> dict[str, Any]:
    with driving(subject, count) as drivers:
        time.sleep(seconds / 10)
        began = time.monotonic()
        time.sleep(seconds)
        ended = time.monotonic()
    took = [ms for driver in drivers for when, ms in driver.right if began <= when <= ended]
    return {
        **tally(drivers),
        "seconds": ended - began,
        "per_second": len(took) / (ended - began),
        "round_trip_ms": summed_up(took),
    }
