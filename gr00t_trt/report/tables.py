"""Records as tables, each a list of `columns`; `terminal`, `markdown` and `page` write them. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from ..plans.backends import BACKENDS
from ..record.numbers import cosine, digits, p50, small
from ..record.result import REQUEST, Build, Result, Status
from ..record.schema import Record, StageTime
from .columns import COLUMNS, DASH, IDLE, Cell, Table, number, table
from .views import GROUPS, Loaded, View

SUBMODULE = ("submodule", "backend", "precision", "coverage", "mb", "build", "baseline", "p50", "speed_up", "cosine",
             "max_abs", "gate")  # fmt: skip
WHOLE_REQUEST = ("submodule", "mb", "build", "baseline", "p50", "speed_up", "cosine", "max_abs", "gate")
WHOLE_TITLE = "The whole request, observation to actions, against the original model in eager PyTorch"
EXPLAINED = {
    "original": ("original: the model as it was published, in eager PyTorch; eager: the model that is compiled here",),
    "auto": ("auto: for each submodule the backend that won there",),
}
"""Name of a whole request in a comparison -> its footnote."""

QUANTIZED = ("what", "precision", "in_format", "in_format_percent", "weights_mb", "weights_share", "engine_mb",
             "engine_share", "sqnr", "noisiest")  # fmt: skip

BASELINES = {"submodules": "the same in eager PyTorch", "settings": "the same without it"}
"""Group of a measuring run -> what its latencies are held against, where that is not the original."""


def run_tables(one: Loaded) -> list[Table]:
    """The submodules of a run against the same in eager PyTorch, and the whole request against the original model."""
    record = one.record
    if not record.submodules and record.request is None:
        return []
    parts = table(
        "Each submodule, against the same in eager PyTorch; latencies are medians (p50), accuracy is to eager fp32",
        [View(one, result) for result in record.submodules],
        SUBMODULE,
        texts=3,
        baseline="eager ms",
        p50="compiled ms",
    )
    at = SUBMODULE.index("baseline")  # and the compiled p50 stands behind it
    rows = [
        # What was not compiled is its own baseline.
        (*row[:at], row[at + 1], Cell(), *row[at + 2 :]) if result.candidate.backend == "eager" else row
        for result, row in zip(record.submodules, parts.rows, strict=True)
    ]
    request = View(one, request_of(record))
    whole = table(WHOLE_TITLE, [request], WHOLE_REQUEST, submodule="", baseline="original ms", p50="compiled ms")
    quantized = quantized_tables(View(one, result) for result in record.submodules)
    return [replace(parts, rows=tuple(rows)), whole, *quantized]


def quantized_tables(views: Iterable[View]) -> list[Table]:
    """What is quantised of each submodule that is, against the same weights in 16 bit; no table for none."""
    shown = [view for view in views if view.result.quantized is not None]
    title = "Linear layers in 8 and 4 bits; sizes against the submodule's weights in 16 bit, noise against fp32"
    return [table(title, shown, QUANTIZED, texts=2, what="submodule")] if shown else []


def request_of(record: Record) -> Result:
    """The whole request of a run, with what its submodules took together; an empty one where there is none."""
    whole = record.request or Result("run", "", REQUEST, status=Status.CHECKED)
    builds = [r.build for r in record.submodules if r.build is not None]
    return replace(whole, build=Build.total(builds)) if builds else whole


def comparison_tables(one: Loaded) -> list[Table]:
    """Latencies side by side, the whole request, and what each submodule cost by each backend."""
    every = [view for view in one.views if view.result.group == "comparison"]
    parts, whole = [view for view in every if not view.whole], [view for view in every if view.whole]
    side_by_side = "Each submodule by each backend, p50 in ms, interleaved on the same inputs (*: fastest beyond doubt)"
    keys = ("what", "p50", "p90", "p99", "speed_up", "build", "mb", "peak", "cosine", "gate")
    requests = table(WHOLE_TITLE, whole, keys, what="backend")
    named = [Cell(v.result.name, notes=EXPLAINED.get(v.result.name, ())) for v in whole]
    rows = tuple((name, *row[1:]) for name, row in zip(named, requests.rows, strict=True))
    return [pivot(side_by_side, parts, ("p50",)), replace(requests, rows=rows), _costs(parts)]


def pivot(title: str, views: Sequence[View], keys: Sequence[str], heads: Mapping[str, str] | None = None) -> Table:
    """One row a subject, and for each backend the same figures; where they are several, those that it has for any.

    Args:
        heads: Key -> what to call the figure behind the backend's name; None for one figure, which needs no name.
    """
    backends = list(dict.fromkeys(view.result.name for view in views))
    by_place = {(view.what, view.result.name): view for view in views}
    subjects = list(dict.fromkeys(view.what for view in views))

    def cell(subject: str, backend: str, key: str) -> Cell:
        view = by_place.get((subject, backend))
        if view is None:
            return Cell("")
        found = COLUMNS[key].get(view)
        if key == "build" and backend == "eager":
            return Cell()  # builds nothing
        if key == "p50" and found.mark == "built":
            return replace(found, text="built", notes=(IDLE,))
        return replace(found, mark="FAIL") if key == "p50" and view.result.passed is False else found

    columns = [
        (backend, key)
        for backend in backends
        for key in keys
        if len(keys) == 1 or any(cell(s, backend, key).text not in (DASH, "", "built") for s in subjects)
    ]
    named = tuple(f"{backend}: {heads[key]}" if heads else backend for backend, key in columns)
    rows = tuple((Cell(subject), *(cell(subject, b, k) for b, k in columns)) for subject in subjects)
    return Table(title, ("submodule", *named), rows)


def _costs(views: Sequence[View]) -> Table:
    keys = ("what", "p99", "build", "mb", "layers", "coverage", "peak", "cosine", "gate")
    title = "What each submodule took; memory is what came on top of what was in use, cosine is to eager fp32"
    shown = [view for view in views if view.result.why is None]
    made = table(title, shown, keys, what="submodule and backend")
    rows: list[tuple[Cell, ...]] = []
    for subject, own in groupby(zip(shown, made.rows, strict=True), lambda pair: pair[0].what):
        rows.append((Cell(subject, mark="strong"), *(Cell("") for _ in keys[1:])))
        rows += [(Cell(f"  {view.result.name}", notes=view.result.notes), *row[1:]) for view, row in own]
    return replace(made, rows=tuple(rows), stacked=None)


def measured_tables(one: Loaded, keys: Sequence[str], extra: Mapping[str, Sequence[str]] | None = None) -> list[Table]:
    """One table a group of a measuring run: each has one baseline.

    Args:
        extra: Group -> further columns.
    """
    out = []
    for group, heading in GROUPS.items():
        views = [v for v in one.views if v.result.group == group and v.result.status is Status.MEASURED]
        if views:
            against = BASELINES.get(group, "the original model in eager PyTorch")
            title = f"{heading}; against {against}" if any(view.ratio for view in views) else heading
            made = table(title, views, (*keys, *(extra or {}).get(group, ())), step=heading)
            out.append(replace(made, heads=(group, *made.heads[1:])))
    return out


def planned_table(
    rows: Sequence[tuple[str, str, int]], seconds: Sequence[tuple[float, float, float]] | None = None
) -> Table:
    """What a measuring run would measure, in the order in which it would.

    Args:
        rows: Group, name and calls.
        seconds: When each should begin, and what its build and the rest of it should take; None where nobody knows.
    """
    heads = ("group", "row", "calls")
    shown = [(Cell(group), Cell(name), number(calls)) for group, name, calls in rows]
    if seconds is None:
        return Table("", heads, tuple(shown), texts=2)
    times = [tuple(number(value) for value in own) for own in seconds]
    whole = tuple((*own, *taken) for own, taken in zip(shown, times, strict=True))
    return Table("", (*heads, "at s", "build s", "row s"), whole, texts=2)


def stage_table(stages: Sequence[StageTime], block: str, width: int = 20) -> Table | None:
    """Where a request spends its time, with bars that add up to it; None where no stage was timed."""
    if not stages:
        return None
    compiled = any(row.latency_ms for row in stages)
    both = compiled and any(row.baseline_ms for row in stages)
    parts = [row for row in stages if row.stage != "request" and not row.within]
    shown = [row for part in parts for row in (part, *(r for r in stages if r.within == part.stage))]

    def value(row: StageTime) -> float | None:
        latency = row.latency_ms if compiled else row.baseline_ms
        return None if latency is None else latency.p50

    total = sum(max(value(row) or 0.0, 0.0) for row in parts)
    lines = []
    for row in shown:
        own = value(row)
        share = max(own, 0.0) / total if total and own is not None else None
        inner = bool(row.within)
        original = (Cell(p50(row.baseline_ms)),) if both else ()
        part = Cell() if share is None else Cell(f"{100 * share:.0f} %", share)
        # Bars add up to the request, so a stage inside another has none.
        bar = Cell("" if share is None or inner else block * round(width * share))
        lines.append(
            (Cell("  " * inner + row.stage), Cell(digits(row.calls_per_request)), *original, number(own), part, bar)
        )
    heads = ("stage", "calls", *(("original ms", "compiled ms") if both else ("ms",)), "share", "")
    kind = "a compiled" if compiled else "an eager"
    title = f"Where {kind} request spends its time (p50, all calls of a stage added up)"
    return Table(title, heads, tuple(lines))


def split_table(one: Loaded) -> Table | None:
    """The stages of a request as graphs of their own, their sum, and the whole graph; None where none was split."""
    view = next((view for view in one.views if view.result.split), None)
    if view is None or not view.p50:
        return None
    whole, added = view.p50, view.result.split_ms or 0.0
    parts = [(part.stage, part.calls, part.latency_ms.p50) for part in view.result.split or ()]
    sums = (("all of them", added), ("between them", whole - added), ("the whole graph", whole))
    rows = [*parts, *((name, None, ms) for name, ms in sums)]
    shown = tuple((Cell(name), number(n), number(ms), Cell(f"{100 * ms / whole:.0f} %", ms)) for name, n, ms in rows)
    title = "Every stage as a graph of its own, replayed back to back"
    return Table(title, ("stage", "calls in it", "ms", "of the whole"), shown)


def kernel_table(view: View, shorten: Callable[[str], str] = str) -> Table | None:
    """The kernels that take the most of one call; None where the record names none."""
    work = view.result.work
    if work is None or not work.busiest_kernels:
        return None
    total = work.kernel_ms
    rows = []
    for kernel in work.busiest_kernels:
        share = Cell(f"{100 * kernel.ms / total:.0f} %", kernel.ms) if total and kernel.ms else Cell()
        time = Cell(f"{kernel.ms:.3f}", kernel.ms)
        rows.append((Cell(shorten(kernel.name)), number(kernel.launches), time, share))
    return Table("", ("kernel", "launches", "ms", "of all kernels"), tuple(rows))


def action_table(loaded: Iterable[Loaded]) -> Table | None:
    """How far each part of the actions is from eager fp32, in the robot's own units."""
    rows = tuple(
        (Cell(key), Cell(one.tag), Cell(cosine(found), found.cosine), Cell(small(found.max_abs), found.max_abs))
        for one in loaded
        for key, found in one.record.per_key.items()
    )
    title = "Actions against eager fp32, in the robot's own units"
    return Table(title, ("action", "record", "cosine", "max abs"), rows, texts=2) if rows else None


def idle_backends(one: Loaded) -> list[str]:
    """The backends of a record whose engines were built and cannot run there."""
    built = [r for r in one.record.results if r.status is Status.BUILT_NOT_RUN and r.subject != REQUEST]
    idle = {result.candidate.backend for result in built}
    return [name for name in BACKENDS if name in idle]
