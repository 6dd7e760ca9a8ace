"""A record as a reader sees it: header, one table, the split of a request, footnotes, one verdict. Never imports torch.

Everything shown comes from the record; null is shown as `-`. Pass a console that writes to stderr to keep stdout for
the record's path.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ..record.numbers import cosine, digits, gate, megabytes, p50, percent, small
from ..record.records import dumps
from . import compare as compare_report

ONE_LINE_WIDTH = 112
"""Columns from which each submodule fits on one line; below, related cells are stacked in two."""

NAMES = ("submodule", "backend", "type")
NUMBERS = ("in engine", "MB", "build s", "eager ms", "compiled ms", "speed-up", "cosine", "max abs", "gate")
STACKED = ("in engine\nMB", "build\ns", "eager\nms", "compiled\nms", "speed-up", "cosine\nmax abs", "gate")
BAR_WIDTH = 20


def render(record: Mapping[str, Any], console: Console) -> None:
    """Print a record, finished or not, in the console's width; needs no colour to be understood.

    Raises: RecordError for a record with values that its file could not hold either.
    """
    # What is shown is what the file says: samples and agreements become plain, NaN becomes null.
    plain = json.loads(dumps(record))
    notes = _Footnotes()
    parts: list[Any] = [_header(plain, console.width)]
    if plain["comparison"]:
        parts += compare_report.tables(plain["comparison"], notes.mark)
    if not _compares_only(plain):
        parts.append(_main_table(plain, notes, console.width))
    stages = _stage_table(plain, "#" if console.options.ascii_only else "█")
    if stages is not None:
        parts.append(stages)
    parts += [Text(line) for line in _action_lines(plain)]
    parts += [Text(line) for line in notes.lines()]
    parts += [Text(line) for line in (*_open_points(plain), *_cost(plain))]
    good, line = summary(plain)
    parts.append(Text("\n" + line, style="bold green" if good else "bold red" if good is False else "bold"))
    console.print(Group(*parts))


def _compares_only(record: Mapping[str, Any]) -> bool:
    return bool(record["comparison"]) and not record["submodules"]


class _Footnotes:
    """Numbers sentences as they come up; the same sentence keeps its number."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def mark(self, *texts: str) -> str:
        self._texts += [text for text in dict.fromkeys(texts) if text not in self._texts]
        return f"({','.join(str(self._texts.index(text) + 1) for text in texts)})" if texts else ""

    def lines(self) -> list[str]:
        return [f"({i}) {text}" for i, text in enumerate(self._texts, 1)]


def _header(record: Mapping[str, Any], width: int) -> Panel:
    rows = [
        ("model", record["model"].get("path") or "-"),
        ("device", _device(record)),
        ("plan", _plan(record)),
        ("inputs", _inputs(record["workload"])),
    ]
    grid = Table.grid(padding=(0, 2))
    for key, value in rows:
        grid.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    return Panel(grid, title="GR00T N1.5", title_align="left", width=min(width, 120))


def _device(record: Mapping[str, Any]) -> str:
    env = record["environment"]
    distributions = env.get("distributions") or {}
    parts = []
    if env.get("gpu") and not str(record.get("device") or "").startswith("cpu"):
        parts.append(f"{env['gpu']}, driver {env.get('driver') or '-'}")
    else:
        parts.append(f"CPU: {env.get('cpu') or '-'}, {env.get('cpu_cores') or '-'} cores, no GPU used")
    for name in ("torch", "torch-tensorrt", "torch-tensorrt-rtx"):
        if distributions.get(name):
            parts.append(f"{name} {distributions[name]}")
    return "; ".join(parts)


def _plan(record: Mapping[str, Any]) -> str:
    plan = record.get("plan") or {}
    parts = [record.get("plan_path") or "defaults and flags"]
    chosen = record["comparison"] and record["submodules"]
    parts += ["backends chosen by measuring"] if chosen else [str(plan["backend"])] if plan.get("backend") else []
    parts += [str(plan["precision"])] if plan.get("precision") else []
    if (plan.get("build") or {}).get("use_fp32_acc"):
        parts.append("fp32 accumulation")
    if plan.get("optimisations"):
        parts.append(f"restructured by {len(plan['optimisations'])} optimisations, loop as {plan.get('loop')}")
    if (record.get("end_to_end") or {}).get("cuda_graph"):
        parts.append("requests replayed as one CUDA graph")
    return ", ".join(parts)


def _inputs(workload: Mapping[str, Any]) -> str:
    named = (
        ("views", "{} view" if workload.get("views") == 1 else "{} views"),
        ("batch_size", "batch {}"),
        ("sequence_length", "{} tokens"),
        ("denoising_steps", "{} denoising steps"),
        ("seed", "seed {}"),
        ("dataset", "from {}"),
    )
    parts = [form.format(workload[key]) for key, form in named if workload.get(key) is not None]
    if workload.get("instruction"):
        # A dataset's text may hold escape sequences, and a terminal would obey them.
        parts.append('"' + "".join(c if c.isprintable() else "?" for c in workload["instruction"]) + '"')
    return ", ".join(parts) or "-"


def _main_table(record: Mapping[str, Any], notes: _Footnotes, width: int) -> Table:
    wide = width >= ONE_LINE_WIDTH
    names, numbers = (NAMES, NUMBERS) if wide else (NAMES[:1], STACKED)
    padding = (0, 0, 0, 1) if width >= 130 else (0, 0)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=padding,
        header_style="bold",
        title="\nEach submodule against eager fp32; latencies are medians (p50)",
        title_justify="left",
        title_style="",
    )
    for head in names:
        table.add_column(head, no_wrap=True)
    for head in numbers:
        table.add_column(head, justify="right", no_wrap=True)
    for entry in record["submodules"]:
        table.add_row(*_arranged(_cells(entry, notes), wide))
    table.add_section()
    table.add_row(*_arranged(_request_cells(record, notes), wide))
    return table


def _arranged(cells: Mapping[str, str], wide: bool) -> list[Text]:
    style = {"pass": "green", "FAIL": "bold red"}.get(cells["gate"], "")
    if wide:
        order = list(cells.values())
    else:
        under = " ".join(part for part in (cells["backend"], cells["precision"]) if part)
        order = [
            "\n".join(part for part in (cells["name"], under) if part),
            f"{cells['covered']}\n{cells['mb']}",
            cells["build"],
            cells["eager"],
            cells["compiled"],
            cells["speedup"],
            f"{cells['cosine']}\n{cells['max_abs']}",
            cells["gate"],
        ]
    return [Text(cell, style=style if cell == cells["gate"] else "") for cell in order]


def _cells(entry: Mapping[str, Any], notes: _Footnotes) -> dict[str, str]:
    name = entry["name"]
    accuracy = entry.get("accuracy") or {}
    remarks = list(entry.get("notes") or ())
    if entry.get("unsupported"):
        listed = ", ".join(f"{op} ({count})" for op, count in entry["unsupported"].items())
        remarks.append(f"left to PyTorch: {listed}")
    if (entry.get("engines") or 0) > 1:
        remarks.append(f"{entry['engines']} engines instead of one")
    return {
        "name": f"{name} {notes.mark(*remarks)}".rstrip(),
        "backend": entry.get("backend") or "-",
        "precision": entry.get("precision") or "-",
        "covered": percent(entry.get("coverage_percent")),
        "mb": megabytes(entry.get("engine_bytes")),
        "build": "cached" if entry.get("from_cache") else digits(entry.get("build_s")),
        "eager": p50(entry.get("eager_latency_ms")),
        "compiled": p50(entry.get("latency_ms")),
        "speedup": _speedup(entry, notes),
        "cosine": cosine(accuracy),
        "max_abs": small(accuracy.get("max_abs")),
        "gate": gate(entry.get("passed")),
    }


def _request_cells(record: Mapping[str, Any], notes: _Footnotes) -> dict[str, str]:
    submodules = record["submodules"]
    built = [entry for entry in submodules if not entry.get("from_cache")]
    whole = record["end_to_end"]
    accuracy = record["accuracy"].get("normalised") or {}
    return {
        "name": "whole request",
        "backend": "",
        "precision": "",
        "covered": "",
        "mb": megabytes(_total(submodules, "engine_bytes")),
        "build": "cached" if submodules and not built else digits(_total(built, "build_s")),
        "eager": p50(whole.get("eager_latency_ms")),
        "compiled": p50(whole.get("latency_ms")),
        "speedup": _speedup(whole, notes),
        "cosine": cosine(accuracy),
        "max_abs": small(accuracy.get("max_abs")),
        "gate": gate(record["accuracy"].get("passed")),
    }


def _speedup(entry: Mapping[str, Any], notes: _Footnotes) -> str:
    if entry.get("runs") is False:
        return "- " + notes.mark("built, not run: what was built cannot run on this machine, so it has no latency")
    judged = entry.get("verdict") or {}
    ratio = judged.get("ratio")
    if ratio is None:
        return "-"
    if judged.get("winner") is None:
        return f"{ratio:.2f}x " + notes.mark("no winner: too few samples, or the spreads (p10 to p90) overlap")
    return f"{ratio:.2f}x"


def _stage_table(record: Mapping[str, Any], block: str) -> Table | None:
    stages = record["stages"]
    if not stages:
        return None
    column = "latency_ms" if any(row.get("latency_ms") for row in stages) else "eager_latency_ms"
    both = column == "latency_ms" and any(row.get("eager_latency_ms") for row in stages)
    parts = [row for row in stages if row["stage"] != "request" and not row.get("within")]
    shown = [row for part in parts for row in (part, *(r for r in stages if r.get("within") == part["stage"]))]
    values = {id(row): (row.get(column) or {}).get("p50") for row in shown}
    total = sum(max(values[id(row)] or 0.0, 0.0) for row in parts)
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        header_style="bold",
        title=f"\nWhere {'a compiled' if column == 'latency_ms' else 'an eager'} request spends its time "
        "(p50, all calls of a stage added up)",
        title_justify="left",
        title_style="",
    )
    table.add_column("stage", no_wrap=True)
    for head in ("calls", *(("eager ms", "compiled ms") if both else ("ms",)), "share"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for row in shown:
        value = values[id(row)]
        share = max(value, 0.0) / total if total and value is not None else None
        indent = "  " if row.get("within") else ""
        cells = [indent + row["stage"], digits(row.get("calls_per_request"))]
        if both:
            cells.append(p50(row.get("eager_latency_ms")))
        cells.append(p50(row.get(column)))
        cells.append("-" if share is None else f"{100 * share:.0f} %")
        # Bars add up to the request, so a stage inside another has none.
        cells.append("" if share is None or indent else block * round(BAR_WIDTH * share))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _action_lines(record: Mapping[str, Any]) -> list[str]:
    per_key = record["accuracy"].get("per_key") or {}
    if not per_key:
        return []
    listed = ", ".join(f"{key} {small(value.get('max_abs'))}" for key, value in per_key.items())
    return [
        "",
        f"Actions in the robot's own units, largest difference from {record['accuracy']['reference']}: {listed}",
    ]


def _cost(record: Mapping[str, Any]) -> list[str]:
    peak = (record.get("peak_memory") or {}).get("peak_bytes")
    if peak is None or record.get("wall_s") is None:
        return []
    return [
        f"Peak memory {digits(peak / 1e9)} GB ({record['peak_memory']['kind']}); {digits(record['wall_s'])} s in all."
    ]


def _open_points(record: Mapping[str, Any]) -> list[str]:
    lines = compare_report.lines(record["comparison"], alone=_compares_only(record))
    for entry in record["submodules"]:
        name = f"{entry['name']}: "
        lines += [f"FAIL {name}{text.removeprefix(name)}" for text in entry.get("failures") or ()]
    lines += [f"FAIL {text}" for text in record["accuracy"].get("failures") or ()]
    lines += [f"note: {entry['what']}: {entry.get('why') or '-'}" for entry in record["skipped"]]
    timed = (*record["comparison"], *record["submodules"], record["end_to_end"])
    latencies = [entry.get("latency_ms") or {} for entry in timed]
    for text in dict.fromkeys(latency.get("note") for latency in latencies):
        if text:
            lines.append(f"timer: {text}")
    return lines


def summary(record: Mapping[str, Any]) -> tuple[bool | None, str]:
    """Whether all that was judged passed (None: nothing was judged), and the last line of the report."""
    judged = [(entry["name"], entry["passed"]) for entry in record["submodules"] if entry.get("passed") is not None]
    if record["accuracy"].get("passed") is not None:
        judged.append(("the actions", record["accuracy"]["passed"]))
    if _compares_only(record):
        judged = compare_report.judged(record["comparison"])
    failed = [name for name, passed in judged if not passed]
    if not judged:
        good, text = None, "Nothing was checked against eager fp32."
    elif failed:
        good, text = (
            False,
            f"FAIL: outside the gate: {', '.join(failed)} ({len(judged) - len(failed)} of {len(judged)} pass).",
        )
    else:
        good, text = True, f"PASS: {len(judged)} of {len(judged)} checks are within their gates."
    speed = (record["end_to_end"].get("verdict") or {}).get("text")
    if _compares_only(record):
        text += " " + compare_report.outcome(record["comparison"])
    elif speed:
        text += f" Whole request: {speed}."
    elif any(entry.get("runs") is False for entry in record["submodules"]):
        text += " Engines were built, not run: no latency is claimed for them."
    else:
        text += " No speed-up was measured for the whole request."
    cached = sum(bool(entry.get("from_cache")) for entry in record["submodules"])
    if cached:
        text += f" {cached} of {len(record['submodules'])} engines came from the cache."
    reason = record.get("exit_reason")
    if reason not in (None, "done", "gate failed"):
        good, text = None if good else good, f"Ended early ({reason}). {text}"
    return good, text


def _total(entries: Sequence[Mapping[str, Any]], field: str) -> float | None:
    known = [entry[field] for entry in entries if entry.get(field) is not None]
    return sum(known) if known else None
