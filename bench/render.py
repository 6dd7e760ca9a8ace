#!/usr/bin/env python3
"""Write the tables of README.md, bench/README.md and bench/LOG.md, and the plots, from the records in bench/records.

    python bench/render.py            rewrite what stands between the markers, and the plots (needs matplotlib)
    python bench/render.py --check    exit 1 if a table or a plot does not say what the records say

No figure in these files is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import service_table
import time_budget

from gr00t_trt.record.schema import Record
from gr00t_trt.report import markdown, png
from gr00t_trt.report.views import Loaded, load

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
BEGIN, END = "<!-- from bench/records, by bench/render.py -->", "<!-- end -->"
PICTURES = ("waterfall", "stages", "roofline")

Records = Mapping[str, Loaded]


def main(argv: list[str]) -> int:
    check = "--check" in argv
    paths = sorted((BENCH / "records").glob("*.json"))
    records = {one.name: one for one in load([str(path) for path in paths])}
    services = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((BENCH / "service").glob("*.json"))}
    measured = {name: one for name, one in records.items() if one.record.measured}
    # Of the service, the longest load comes first.
    longest = sorted(services, key=lambda name: -services[name]["load"]["seconds"])[:1]
    written = {
        ROOT / "README.md": tables(front(records), {name: services[name] for name in longest}, "bench/", plots=False),
        BENCH / "README.md": f"{time_budget.section(records.values())}\n\n{tables(records, services, '', plots=True)}",
        BENCH / "LOG.md": markdown.log(measured, "records/"),
    }
    stale = [file for file, text in written.items() if put(file, text, check)]
    stale += draw(records, check)
    for file in stale:
        print(f"{file.relative_to(ROOT)}: {'stale' if check else 'written'}")
    return 1 if stale and check else 0


def front(records: Records) -> Records:
    """What somebody who has never seen the project should see first; bench/README.md has all.

    Measuring runs of GPUs, or of CPUs where there are none; comparisons; single runs that have a latency to tell.
    """
    of_gpus = any(one.record.on_gpu for one in records.values() if one.record.measured)

    def shown(record: Record) -> bool:
        if record.measured:
            return record.on_gpu or not of_gpus
        return bool(record.of("comparison")) or bool(record.request and record.request.latency_ms)

    return {name: one for name, one in records.items() if shown(one.record)}


def tables(records: Records, services: Mapping[str, Any], bench: str, *, plots: bool) -> str:
    """One section per record and per service.

    Args:
        bench: Where this folder lies, seen from the file.
        plots: Whether to show the pictures; else the outcome alone.
    """
    out = []
    for name, one in records.items():
        out.append(markdown.section(one, f"{bench}records/", short=not plots))
        out += [f"![{kind} of {name}]({bench}plots/{name}-{kind}.png)" for kind in drawable(one) if plots]
    out += [service_table.section(name, record, f"{bench}service/") for name, record in services.items()]
    return "\n\n".join(out)


def put(file: Path, new: str, check: bool) -> bool:
    """Whether `file` said something else between its markers; without `check` it says `new` now."""
    text = file.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{file}: no place for the tables: {BEGIN} ... {END}")
    whole = f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"
    if whole != text and not check:
        file.write_text(whole, encoding="utf-8")
    return whole != text


def drawable(one: Loaded) -> list[str]:
    """The plots that a measuring run has something to show in."""
    return [kind for kind in png.charts_of(one) if kind in PICTURES] if one.record.measured else []


def draw(records: Records, check: bool) -> list[Path]:
    """The plots that were not drawn from today's records; without `check` they are, and plots of no record go."""
    wanted = {
        BENCH / "plots" / f"{name}-{kind}.png": (one, kind) for name, one in records.items() for kind in drawable(one)
    }
    stale = [path for path, (one, _) in wanted.items() if png.drawn_from(path) != png.digest(one.record)]
    strangers = [path for path in sorted((BENCH / "plots").glob("*.png")) if path not in wanted]
    if not check:
        for path in stale:
            one, kind = wanted[path]
            png.draw(png.charts_of(one)[kind], one.record, path)
        for path in strangers:
            path.unlink()
    return stale + strangers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
