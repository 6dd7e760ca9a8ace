"""A record in a terminal: header, tables with their footnotes, one verdict. Never imports torch.

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
from rich.table import Table as RichTable
from rich.text import Text

from ..record.files import dumps, record_from
from ..record.numbers import digits, p50, small
from ..record.result import REQUEST, Status
from ..record.schema import Record
from .columns import Cell, Table
from .facts import versions_of
from .tables import comparison_tables, measured_tables, run_tables, split_table, stage_table
from .views import Loaded, counted, grouped, together, told

ONE_LINE_WIDTH = 112
"""Columns from which a table that can be stacked has one line a row."""

MEASURED = ("step", "p50", "p99", "speed_up", "host", "replay", "cosine", "roofline")
STYLES = {"pass": "green", "FAIL": "bold red", "best": "bold green", "strong": "bold"}


def render(record: Record, console: Console) -> None:
    """Print a record, finished or not, in the console's width; needs no colour to be understood.

    Raises: RecordError for a record with values that its file could not hold either.
    """
    # What is shown is what the file says: NaN becomes null.
    (one,) = together([("record.json", record_from(json.loads(dumps(record)), "the record"))])
    record = one.record
    tables = comparison_tables(one) if record.of("comparison") else []
    split = stage_table(record.stages, "#" if console.options.ascii_only else "█")
    measured = [made.filled() for made in measured_tables(one, MEASURED)]
    graphs = split_table(one)
    tables += [*run_tables(one), *measured, *(made for made in (graphs, split) if made)]
    parts: list[Any] = [] if record.measured else [_header(record, console.width)]
    parts += [shown(made, console.width) for made in tables]
    lines = open_points(one)
    if record.per_key:
        apart = ", ".join(f"{key} {small(found.max_abs)}" for key, found in record.per_key.items())
        lines = ["", f"Actions in the robot's own units, largest difference from {record.reference}: {apart}", *lines]
    peak = record.peak_memory
    if not record.measured and peak is not None and peak.peak_bytes is not None and record.wall_s is not None:
        took = f"{digits(record.wall_s)} s in all"
        lines.append(f"Peak memory {digits(peak.peak_bytes / 1e9)} GB ({peak.kind}); {took}.")
    parts += [Text(text) for text in lines]
    good, line = summary(one)
    if not record.measured:
        parts.append(Text("\n" + line, style="bold green" if good else "bold red" if good is False else "bold"))
    console.print(Group(*parts))


def shown(made: Table, width: int = 200) -> Group:
    """A table with its footnotes under it; cells in two lines where one is too wide and the table can be stacked."""
    notes: list[str] = []
    stacked = (made.stacked or {}) if width < ONE_LINE_WIDTH else {}
    heads = _arranged([_broken(head) if stacked else head for head in made.heads], stacked)
    padding = (0, 0, 0, 1) if width >= 130 else (0, 0)
    out = RichTable(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=padding, header_style="bold")
    texts = made.texts - sum(1 for own, under in stacked.items() if own < made.texts and under < made.texts)
    long = any(len(row[0].text) > 30 for row in made.rows)
    for place, head in enumerate(heads):
        fold: dict[str, Any] = {"overflow": "fold"} if place == 0 and long else {"no_wrap": True}
        out.add_column(head, justify="left" if place < texts else "right", **fold)
    for row in made.rows:
        cells = [_text(cell, notes) for cell in row]
        styles = [STYLES.get(cell.mark, "") for cell in row]
        kept = [i for i in range(len(cells)) if i not in stacked]
        lines = _arranged(cells, stacked)
        out.add_row(*(Text(line, style=styles[i]) for line, i in zip(lines, kept, strict=True)))
    title = [Text("\n" + made.title)] if made.title else []
    return Group(*title, out, *(Text(f"({i}) {note}") for i, note in enumerate(notes, 1)))


def _broken(head: str) -> str:
    return "\n".join(head.rsplit(" ", 1)) if len(head) > 6 else head


def _arranged(cells: Sequence[str], stacked: Mapping[int, int]) -> list[str]:
    """The cells that stand in a line, others under them; several under one share its second line."""
    under = grouped((above, cells[own]) for own, above in stacked.items() if cells[own])
    return [f"{text}\n{' '.join(under[i])}" if i in under else text for i, text in enumerate(cells) if i not in stacked]


def _text(cell: Cell, notes: list[str]) -> str:
    """A cell with its mark and the numbers of its footnotes; the same sentence keeps its number."""
    notes += [note for note in dict.fromkeys(cell.notes) if note not in notes]
    numbers = f"({','.join(str(notes.index(note) + 1) for note in cell.notes)})" if cell.notes else ""
    word = {"best": "*", "FAIL": "FAIL"}.get(cell.mark, "")
    return " ".join(part for part in (cell.text, word if word != cell.text else "", numbers) if part)


def _header(record: Record, width: int) -> Panel:
    values = (record.model.path or "-", _device(record), _plan(record), _inputs(record))
    grid = RichTable.grid(padding=(0, 2))
    for key, value in zip(("model", "device", "plan", "inputs"), values, strict=True):
        grid.add_row(Text(key, style="bold"), Text(value, overflow="fold"))
    return Panel(grid, title="GR00T N1.5", title_align="left", width=min(width, 120))


def _device(record: Record) -> str:
    env = record.environment
    if env.gpu and not str(record.device or "").startswith("cpu"):
        where = f"{env.gpu}, driver {env.driver or '-'}"
    else:
        where = f"CPU: {env.cpu or '-'}, {env.cpu_cores or '-'} cores, no GPU used"
    used = versions_of(record, "torch", "torch-tensorrt", "torch-tensorrt-rtx").split(", ")
    return "; ".join(part for part in (where, *used) if part)


def _plan(record: Record) -> str:
    chosen = record.of("comparison") and record.submodules
    names = record.setting("optimizations")
    parts = (
        record.plan_path or "defaults and flags",
        "backends chosen by measuring" if chosen else record.setting("backend"),
        record.setting("precision"),
        "fp32 accumulation" if (record.setting("build") or {}).get("use_fp32_acc") else None,
        f"restructured by {len(names)} optimizations, loop as {record.setting('loop')}" if names else None,
        "requests replayed as one CUDA graph" if record.cuda_graph else None,
    )
    return ", ".join(str(part) for part in parts if part)


def _inputs(record: Record) -> str:
    given = record.inputs
    # A dataset's text may hold escape sequences, and a terminal would obey them.
    text = "".join(c if c.isprintable() and c != "\ufffd" else "?" for c in given.instruction or "")
    parts = (
        counted(given.views, "view"),
        told("batch {}", given.batch_size),
        told("{} tokens", given.sequence_length),
        told("{} denoising steps", given.denoising_steps),
        told("seed {}", given.seed),
        told("from {}", given.dataset),
        f'"{text}"' if text else "",
    )
    return ", ".join(part for part in parts if part) or "-"


def open_points(one: Loaded) -> list[str]:
    """What missed a gate, what could not be run and why, what was left out, and what to know besides."""
    record = one.record
    lines = _comparison_lines(one) if record.of("comparison") else []
    for result in record.of("run"):
        name = "" if result.subject == REQUEST else f"{result.subject}: "
        lines += [f"FAIL {name}{text.removeprefix(name)}" for text in result.failures]
    measured = record.measured
    lines += [f"{r.name}: {r.why}" for r in measured if r.why and r.status is not Status.NO_TIME]
    lines += [f"{r.name}: outside the gate: {text}" for r in measured for text in r.failures]
    if left := [r.name for r in measured if r.status is Status.NO_TIME]:
        lines.append(f"No time was left for: {', '.join(left)}.")
    lines += [f"note: {note.what}: {note.why or '-'}" for note in record.skipped]
    if record.drift and record.drift.drifted:
        lines.append(f"note: {drift_text(record)}")
    notes = [r.latency_ms.note for r in record.results if r.latency_ms and r.latency_ms.note]
    return lines + [f"timer: {text}" for text in dict.fromkeys(notes)]


def drift_text(record: Record) -> str:
    """What a drifted baseline means."""
    drift = record.drift
    assert drift is not None
    return (
        f"the baseline drifted within the run: the {drift.baseline.value} model took {digits(drift.lowest_ms)} to "
        f"{digits(drift.highest_ms)} ms for the same work ({drift.percent:.0f} % apart), so that ratios are worth less "
        "than they look"
    )


def _comparison_lines(one: Loaded) -> list[str]:
    record = one.record
    entries = record.of("comparison")
    word = "ruled out:" if record.submodules else "FAIL"
    out = [f"{word} {r.name}: {failure}" for r in entries for failure in r.failures]
    # The whole request fails for what one of its submodules failed for, and that is said there.
    parts = [r for r in entries if r.subject != REQUEST]
    everything = {r.subject for r in parts}
    for (backend, why), subjects in grouped(((r.name, r.why), r.subject) for r in parts if r.why).items():
        where = "" if set(subjects) == everything else f" ({', '.join(subjects)})"
        out.append(f"not run: {backend}{where}: {why}")
    return out


def summary(one: Loaded) -> tuple[bool | None, str]:
    """Whether all that was judged passed (None: nothing was judged), and the last line of the report."""
    record = one.record
    own = record.of("run")
    compared = not own and bool(record.of("comparison"))
    judged = [view for view in one.views if view.result.passed is not None and (compared or view.result.group == "run")]
    failed = [
        f"{view.what} by {view.result.name}" if compared else "the actions" if view.whole else view.result.subject
        for view in judged
        if not view.result.passed
    ]
    if not judged:
        good, text = None, "Nothing was checked against eager fp32."
    elif failed:
        left = f"{len(judged) - len(failed)} of {len(judged)} pass"
        good, text = False, f"FAIL: outside the gate: {', '.join(failed)} ({left})."
    else:
        good, text = True, f"PASS: {len(judged)} of {len(judged)} checks are within their gates."
    whole = record.request
    speed = whole.against.text if whole and whole.against else None
    if compared:
        text += " " + _outcome(record)
    elif speed:
        text += f" Whole request: {speed}."
    elif any(result.status is Status.BUILT_NOT_RUN for result in own):
        text += " Engines were built, not run: no latency is claimed for them."
    else:
        text += " No speed-up was measured for the whole request."
    cached = sum(bool(r.build and r.build.from_cache) for r in record.submodules)
    if cached:
        text += f" {cached} of {len(record.submodules)} engines came from the cache."
    if record.exit_reason not in (None, "done", "gate failed"):
        good, text = None if good else good, f"Ended early ({record.exit_reason}). {text}"
    return good, text


def _outcome(record: Record) -> str:
    """Which backend makes the fastest request, in one sentence."""
    whole = [r for r in record.of("comparison") if r.subject == REQUEST and r.latency_ms]
    best = next((r for r in whole if r.best), None)
    if best is not None:
        return f"Fastest whole request: {best.name}, p50 {p50(best.latency_ms)} ms."
    if len(whole) > 1:
        return "No backend makes the fastest request beyond doubt: too few samples, or their spreads overlap."
    return "Only one backend could run the whole request here, so none is the fastest."
