"""What the load test says of many robots."""

from __future__ import annotations

import service_table


def test_a_row_for_every_number_of_robots_each_way() -> None:
    trip = {"p50": 12.34, "p99": 20.0}
    found = {"clients": 2, "seconds": 5.0, "per_second": 80.0, "lost": 0, "mixed_up": 1, "round_trip_ms": trip}
    rows = [{**found, "max_batch": 8}, {**found, "max_batch": 1, "round_trip_ms": None}]
    *_, single, shared = service_table._robots(rows)
    assert single == "| 2 | 1 | nan | nan | 80.0 | 1 |"
    assert shared == "| 2 | 8 | 12.3 | 20.0 | 80.0 | 1 |"
    assert service_table._robots([]) == []
