"""The table of `serve_load.py`'s records: what the service costs a request, and what it withstands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import cells

MEGABYTE = 1e6


def section(name: str, record: Mapping[str, Any], links: str) -> str:
    """Title and table of one record."""
    environment = record["environment"]
    return "\n".join(
        [
            f"**The service under load and fire**, {environment['cpu_cores']} CPU cores shared with its clients "
            f"([record]({links}{name}.json))",
            "",
            cells("what", "measured"),
            "|---|---|",
            *(cells(what, text) for what, text in rows(record).items()),
        ]
    )


def rows(record: Mapping[str, Any]) -> dict[str, str]:
    """What was tried -> what was seen, in words."""
    cost, load, fire, again = (record[key] for key in ("overhead", "load", "hostile", "restart"))
    trip = load["round_trip_ms"] or {}
    good = fire["good_client"]
    return {
        "start-up": f"{record['startup']['first_s']:.1f} s to ready, {record['startup']['again_s']:.1f} s again",
        "overhead of a request": f"p50 {cost['overhead_ms']['p50']:.2f} ms, p99 {cost['overhead_ms']['p99']:.2f} ms, "
        f"beside {cost['policy_ms']['p50']:.1f} ms of the policy",
        "load": f"{load['clients']} clients, {load['answered']} answers in {load['seconds']:.0f} s, "
        f"{load['lost']} lost, {load['mixed_up']} mixed up, p50 {trip.get('p50', 0):.0f} ms; memory "
        f"{load['rss_bytes']['quarter'] / MEGABYTE:.0f} to {load['rss_bytes']['end'] / MEGABYTE:.0f} MB",
        "hostile messages": f"{fire['messages']}, of which {sum(fire['unanswered_or_wrong'].values())} unanswered or "
        f"answered wrongly; a good client beside them: {good['answered']} answers, {good['lost']} lost, "
        f"{good['mixed_up']} mixed up; memory {fire['before']['rss_bytes'] / MEGABYTE:.0f} to "
        f"{fire['after']['rss_bytes'] / MEGABYTE:.0f} MB",
        "kill -9 and restart": f"{again['recovered']} of {again['clients']} clients recovered by themselves, "
        f"{again['lost']} requests lost",
    }
