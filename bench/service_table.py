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
    start = record["startup"]
    return {
        "start-up": f"{start['first_s']:.1f} s to ready{_engines(start.get('first_engines'))}, "
        f"{start['again_s']:.1f} s again{_engines(start.get('again_engines'))}",
        "overhead of a request": f"p50 {cost['overhead_ms']['p50']:.2f} ms, p99 {cost['overhead_ms']['p99']:.2f} ms, "
        f"beside {cost['policy_ms']['p50']:.1f} ms of the policy",
        **_split(cost),
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


def _engines(counts: Mapping[str, int] | None) -> str:
    """Where a start had its engines from; nothing where it had none, or the record does not tell."""
    words = {"built": "built", "from_cache": "from the cache"}
    found = [f"{counts[key]} {text}" for key, text in words.items() if counts[key]] if counts else []
    return f" (engines: {', '.join(found)})" if found else ""


def _split(cost: Mapping[str, Any]) -> dict[str, str]:
    """The row of where the overhead goes; none for a record that does not tell."""
    if "split_ms" not in cost:
        return {}
    words = {
        "client_encoding": "the client's encoding",
        "server_queue": "the server's queue",
        "client_decoding": "the client's decoding",
        "rest": "the rest (transport, waking threads, the server's reading and writing)",
    }
    parts = ", ".join(f"{text} {cost['split_ms'][key]:.2f} ms" for key, text in words.items())
    return {"where it goes": f"{parts}; a bare `ping` after the same pauses {cost['ping_ms']['p50']:.2f} ms"}
