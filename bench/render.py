#!/usr/bin/env python3
"""Write the tables of README.md, bench/README.md and bench/LOG.md, and the plots, from the records in bench/records.

    python bench/render.py            rewrite what stands between the markers, and the plots (needs matplotlib)
    python bench/render.py --check    exit 1 if a table or a plot does not say what the records say

No figure in these files is typed by hand.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import compared
import measured
import runs
import service_table

from gr00t_trt.record.records import on_gpu, read_record
from gr00t_trt.report import plots

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
BEGIN, END = "<!-- from bench/records, by bench/render.py -->", "<!-- end -->"

Records = Mapping[str, dict[str, Any]]

PLOTS: Mapping[str, Callable[[Mapping[str, Any], Path], None]] = {
    "waterfall": plots.waterfall,
    "stages": plots.stage_split,
    "roofline": plots.roofline,
}


def main(argv: list[str]) -> int:
    check = "--check" in argv
    records = {path.stem: read_record(path) for path in sorted((BENCH / "records").glob("*.json"))}
    services = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((BENCH / "service").glob("*.json"))}
    written = {
        ROOT / "README.md": "\n\n".join(
            [sections(front(records), "bench/records/", None), *served_sections(longest(services), "bench/service/")]
        ),
        BENCH / "README.md": "\n\n".join(
            [sections(records, "records/", "plots/"), *served_sections(services, "service/")]
        ),
        BENCH / "LOG.md": measured.log(records, "records/"),
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
    of_gpus = any(on_gpu(record) for record in records.values() if record["measurements"])
    return {
        name: record
        for name, record in records.items()
        if record["comparison"]
        or (on_gpu(record) or not of_gpus if record["measurements"] else record["end_to_end"]["latency_ms"])
    }


def longest(services: Records) -> Records:
    """The service under the longest load."""
    order = sorted(services, key=lambda name: -services[name]["load"]["seconds"])
    return {name: services[name] for name in order[:1]}


def sections(records: Records, links: str, pictures: str | None) -> str:
    """One section per record.

    Args:
        links: Where the records lie, seen from the file.
        pictures: Where the plots lie; None for a file that shows the outcome alone.
    """
    out = []
    for name, record in records.items():
        if record["comparison"]:
            out.append(compared.section(name, record, links))
        elif not record["measurements"]:
            out.append(runs.section(name, record, links))
        elif pictures is None:
            out.append(measured.summary(name, record, links))
        else:
            shown = [f"![{kind} of {name}]({pictures}{name}-{kind}.png)" for kind in drawable(record)]
            out.append("\n\n".join([measured.section(name, record, links), *shown]))
    return "\n\n".join(out)


def served_sections(services: Records, links: str) -> list[str]:
    return [service_table.section(name, record, links) for name, record in services.items()]


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


def drawable(record: Mapping[str, Any]) -> list[str]:
    """The plots that a record has something to show in."""
    rows = [row for row in record["measurements"] if row["why_not"] is None]
    known = {
        "waterfall": any(row["group"] == "waterfall" for row in rows),
        "stages": any(row["group"] == "waterfall" and row["stages"] for row in rows),
        "roofline": any((row["roofline"] or {}).get("percent") is not None for row in rows),
    }
    return [kind for kind in PLOTS if known[kind]]


def draw(records: Records, check: bool) -> list[Path]:
    """The plots that were not drawn from today's records; without `check` they are, and plots of no record go."""
    wanted = {
        BENCH / "plots" / f"{name}-{kind}.png": (PLOTS[kind], record)
        for name, record in records.items()
        for kind in drawable(record)
    }
    stale = [path for path, (_, record) in wanted.items() if plots.drawn_from(path) != plots.digest(record)]
    strangers = [path for path in sorted((BENCH / "plots").glob("*.png")) if path not in wanted]
    if not check:
        for path in stale:
            paint, record = wanted[path]
            paint(record, path)
        for path in strangers:
            path.unlink()
    return stale + strangers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
