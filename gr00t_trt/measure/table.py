"""The rows of a measuring run on a terminal. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..report.names import OUTSIDE
from ..report.terminal import digits
from .rows import Row


def render(record: Mapping[str, Any], console: Console) -> None:
    """Print what was measured, one line per row, then what was not, and why."""
    console.print(_table(record))
    no_time = []
    for row in record["measurements"]:
        why = row["why_not"]
        if why is not None and why.startswith("no time"):
            no_time.append(row["name"])
        elif why is not None:
            console.print(f"{row['name']}: {why}", style="red", markup=False, highlight=False, soft_wrap=True)
        for note in row["notes"]:
            if note.startswith(OUTSIDE):
                console.print(f"{row['name']}: {note}", style="red", markup=False, highlight=False, soft_wrap=True)
    if no_time:
        console.print(f"No time was left for: {', '.join(no_time)}.", markup=False, highlight=False, soft_wrap=True)
    for entry in record["skipped"]:
        console.print(f"note: {entry['what']}: {entry['why']}", markup=False, highlight=False, soft_wrap=True)


def _table(record: Mapping[str, Any]) -> Table:
    """Latency, factor against eager PyTorch, accuracy, work and share of the roofline; groups are headed by name."""
    shown = [row for row in record["measurements"] if row["why_not"] is None]
    with_roofline = any((row["roofline"] or {}).get("percent") is not None for row in shown)
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    out.add_column("", overflow="fold")
    for head in ("p50 ms", "p99 ms", "speed-up", "cosine", "GFLOP", *(["roofline"] if with_roofline else [])):
        out.add_column(head, justify="right", no_wrap=True)
    last = None
    for row in shown:
        if row["group"] != last:
            if last is not None:
                out.add_section()
            out.add_row(Text(row["group"], style="bold"))
        last = row["group"]
        latency, ratio = row["latency_ms"] or {}, (row["verdict"] or {}).get("ratio")
        cosine, share = (row["accuracy"] or {}).get("cosine"), (row["roofline"] or {}).get("percent")
        cells = [
            "  " + row["name"],
            digits(latency.get("p50")),
            digits(latency.get("p99")),
            "-" if ratio is None else f"{ratio:.2f}x",
            "-" if cosine is None else f"{math.floor(cosine * 1e6) / 1e6:.6f}",
            digits((row["work"] or {}).get("gflop")),
        ]
        if with_roofline:
            cells.append("-" if share is None else f"{share:.1f} %")
        out.add_row(*(Text(cell) for cell in cells))
    return out


def plan_table(rows: Sequence[Row]) -> Table:
    """What would be measured: one line per row, in the order in which they are taken."""
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for head in ("taken", "group", "row", "calls", "what is called"):
        out.add_column(head, justify="right" if head in ("taken", "calls") else "left")
    for place, row in enumerate(sorted(rows, key=lambda row: row.importance), 1):
        out.add_row(str(place), row.group, row.name, str(row.calls), row.of)
    return out
