"""The table of `serve_load.py`'s records: what the service costs a request, and what it withstands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gr00t_trt.report.markdown import grid

MEGABYTE, GIGABYTE = 1e6, 1e9


def section(name: str, record: Mapping[str, Any], links: str) -> str:
    """Title and table of one record."""
    environment = record["environment"]
    where = f"{environment['gpu']}, " if str(record.get("device") or "").startswith("cuda") else ""
    return "\n".join(
        [
            f"**The service under load and fire**, {_model(record)}, {_backend(record)}{where}"
            f"{environment['cpu_cores']} CPU cores shared with its clients ([record]({links}{name}.json))",
            "",
            *grid(("what", "measured"), rows(record).items(), texts=2),
            *_attacks(record.get("attacks", {})),
            *_soak(record.get("soak", ())),
            *_robots(record.get("robots", ())),
        ]
    )


def _attacks(attacks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    title = "A good client while one client that speaks the protocols well attacks:"
    cells = []
    for name, seen in attacks.items():
        times = (f"{seen['p99_ms']:.0f}", f"{seen['times_alone']:.1f}", f"{seen['slowest_health_ms']:.0f}")
        cells.append((name.replace("_", " "), *times, seen["lost"] + seen["mixed_up"]))
    return _table(title, ("attack", "p99 ms", "times its p99 before", "slowest `/health` ms", "lost"), cells)


def _table(title: str, heads: Sequence[str], cells: Sequence[Sequence[object]]) -> list[str]:
    """A table of its own under its title; nothing for what was not tried."""
    return ["", title, "", *grid(heads, (map(str, row) for row in cells), texts=len(heads))] if cells else []


def _soak(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    title = "Five good clients that check every answer, for a while, beside hostile messages, connections and clients:"
    heads = ("`--max_batch`", "minutes", "answers", "lost", "wrong", "p50 ms", "p99 ms", "hostile ones", "memory, MB")
    cells = []
    for row in rows:
        trip, memory = row["round_trip_ms"], [each / MEGABYTE for each in row["rss_bytes_by_minute"]]
        fifth = memory[min(5, len(memory) - 1)]
        told = f"{memory[0]:.0f}, after 5 minutes {fifth:.0f}, at the end {memory[-1]:.0f}"
        seen = (row["max_batch"], f"{row['seconds'] / 60:.0f}", row["answered"], row["lost"], row["mixed_up"])
        times = (f"{trip['p50']:.0f}", f"{trip['p99']:.0f}") if trip else ("-", "-")
        cells.append((*seen, *times, sum(row["hostile"].values()), told))
    return _table(title, heads, cells)


def _robots(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    title = "Robots that ask again as soon as they are answered, one by one and with what waits sharing a pass:"
    cells = []
    for row in sorted(rows, key=lambda row: (row["clients"], row["max_batch"])):
        trip = row["round_trip_ms"] or {"p50": float("nan"), "p99": float("nan")}
        times = (f"{trip['p50']:.1f}", f"{trip['p99']:.1f}", f"{row['per_second']:.1f}")
        cells.append((row["clients"], row["max_batch"], *times, row["lost"] + row["mixed_up"]))
    return _table(title, ("robots", "`--max_batch`", "p50 ms", "p99 ms", "answers a second", "lost"), cells)


def rows(record: Mapping[str, Any]) -> dict[str, str]:
    """What was tried -> what was seen, in words."""
    cost, load, fire = (record[key] for key in ("overhead", "load", "hostile"))
    trip = load["round_trip_ms"] or {}
    good = fire["good_client"]
    start = record["startup"]
    again = ""
    if start.get("again_s") is not None:
        again = f", {start['again_s']:.1f} s again{_engines(start.get('again_engines'))}"
    if start.get("peak_bytes") is not None:
        again += f"; at most {start['peak_bytes'] / GIGABYTE:.2f} GB of memory until it was ready"
    return {
        "start-up": f"{start['first_s']:.1f} s to ready{_engines(start.get('first_engines'))}{again}",
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
        "kill -9 and restart": _restart(record.get("restart")),
    }


def _model(record: Mapping[str, Any]) -> str:
    flags = record.get("server_flags", ())
    return Path(flags[flags.index("--model_path") + 1]).name if "--model_path" in flags else "the released model"


def _backend(record: Mapping[str, Any]) -> str:
    """What runs all submodules, with a comma; nothing where they differ."""
    used = {*record.get("backends", {}).values()}
    return f"{used.pop()}, " if len(used) == 1 else ""


def _restart(seen: Mapping[str, Any] | None) -> str:
    if seen is None:
        return "not measured: the run ended before"
    return f"{seen['recovered']} of {seen['clients']} clients recovered by themselves, {seen['lost']} requests lost"


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
    clients = cost["split_ms"]["client_encoding"] + cost["split_ms"]["client_decoding"]
    servers = f"{cost['overhead_ms']['p50'] - clients:.2f} ms without the client's own work"
    return {
        "the server's own": servers,
        "where it goes": f"{parts}; a bare `ping` after the same pauses {cost['ping_ms']['p50']:.2f} ms",
    }
