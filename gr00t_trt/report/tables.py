"""Records as tables: every figure is one column, every table a list of columns; `terminal`, `markdown` and `page` write
them. Never imports torch.

A new figure is a field of `record.schema`, a row of `COLUMNS`, and its key in the tables that should show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..plans.backends import BACKENDS
from ..record.numbers import cosine, digits, gate, p50, percent, small
from ..record.schema import REQUEST, Build, Record, Result, StageTime, Status
from .views import GROUPS, Loaded, View, counted

DASH = "-"
NO_WINNER = "no winner: too few samples, or the spreads (p10 to p90) overlap"
IDLE = "built, and cannot run on this machine: it has no latency"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: As a terminal shows it; a dash for what is not known.
        value: The number behind it, which is sorted by.
        mark: ``pass``, ``FAIL``, ``best``, ``doubtful``, ``max`` (a p99 of fewer than 100 samples), ``built`` (an
            engine that cannot run), ``strong``, or nothing.
        notes: Sentences about it.
    """

    text: str = DASH
    value: float | None = None
    mark: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table before it is written.

    Attributes:
        heads: One per column. texts: How many of the first are text, aligned at the left.
        stacked: Column -> the column under whose cells its own stand where the table would be too wide.
        section: Rows before which a line is drawn.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int = 1
    stacked: Mapping[int, int] | None = None
    sections: tuple[int, ...] = ()

    def filled(self) -> Table:
        """Without the columns that say nothing in any row."""
        kept = [
            i
            for i in range(len(self.heads))
            if i < self.texts or any(row[i].text not in (DASH, "") and row[i].mark != "built" for row in self.rows)
        ]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, heads=tuple(self.heads[i] for i in kept), rows=rows, stacked=None)

    def absent(self) -> list[str]:
        """The heads of the columns that `filled` leaves out."""
        return [head for head in self.heads if head not in self.filled().heads]


@dataclass(frozen=True)
class Column:
    """One figure of a result.

    Attributes:
        head: With its unit.
        get: The cell of a result.
        under: The key under whose cells it stands in a narrow terminal.
    """

    head: str
    get: Callable[[View], Cell]
    under: str | None = None


def number(value: float | None, scale: float = 1.0, **more: Any) -> Cell:
    shown = None if value is None else value * scale
    return Cell(digits(shown), shown, **more)


def _latency(view: View, percentile: str) -> Cell:
    latency = view.result.latency_ms
    if latency is None:
        return Cell(mark="built" if view.result.status is Status.BUILT_NOT_RUN else "")
    if percentile == "p90" and len(latency.samples) < 2:
        return Cell()  # one sample has no spread
    value = getattr(latency, percentile)
    few = percentile == "p99" and latency.p99_is_max
    return number(value, mark="max" if few else "best" if percentile == "p50" and view.result.best else "")


def _tail(view: View) -> Cell:
    latency = view.result.latency_ms
    if latency is None or latency.p99_is_max or not latency.p50:
        return Cell()
    return Cell(f"{latency.p99 / latency.p50:.2f}", latency.p99 / latency.p50)


def _speed_up(view: View) -> Cell:
    if view.result.status is Status.BUILT_NOT_RUN:
        why = "built, not run: what was built cannot run on this machine, so it has no latency"
        return Cell(mark="built", notes=(why,))
    ratio = view.ratio
    if ratio is None:
        return Cell()
    doubt = view.doubtful
    return Cell(f"{ratio:.2f}x", ratio, "doubtful" if doubt else "", (NO_WINNER,) if doubt else ())


def _built(get: Callable[[Build], Cell]) -> Callable[[View], Cell]:
    return lambda view: Cell() if view.result.build is None else get(view.result.build)


def _seconds(build: Build) -> Cell:
    return Cell("cached", None if build.seconds is None else 0.0) if build.from_cache else number(build.seconds)


def _layers(build: Build) -> Cell:
    before, after = build.layers_before, build.layers_after
    if before is None and after is None:
        return Cell()
    return Cell(f"{digits(before)} > {digits(after)}", after if before is None else before)


def _operators(build: Build) -> Cell:
    if build.operators is None:
        return Cell()
    return Cell(f"{build.converted} of {build.operators}", float(build.converted or 0))


def _accuracy(view: View, what: str) -> Cell:
    found = view.result.accuracy
    if found is None:
        return Cell()
    value = getattr(found, what)
    return Cell(cosine(found) if what == "cosine" else small(value), value)


def _gate(view: View) -> Cell:
    word = gate(view.result.passed)
    return Cell(word, mark="" if word == DASH else word)


def _roofline(view: View) -> Cell:
    share = view.result.roofline.percent if view.result.roofline else None
    return Cell() if share is None else Cell(f"{share:.1f} %", share)


def _work(what: str, scale: float = 1.0) -> Callable[[View], Cell]:
    def get(view: View) -> Cell:
        value = getattr(view.result.work, what) if view.result.work else None
        return number(value, scale) if value is not None else Cell()

    return get


def remarks(result: Result) -> tuple[str, ...]:
    """What a table says of a result in sentences."""
    build = result.build
    out = list(result.notes)
    if build and build.unsupported:
        out.append(f"left to PyTorch: {', '.join(f'{op} ({count})' for op, count in build.unsupported.items())}")
    if build and (build.engines or 0) > 1 and result.subject != REQUEST:
        out.append(f"{build.engines} engines instead of one")
    return tuple(out)


def _notes(view: View) -> Cell:
    against = view.result.against
    texts = (view.why, against.text if against else None, *remarks(view.result))
    return Cell("; ".join(text for text in texts if text))


COLUMNS: Mapping[str, Column] = {
    "what": Column("what", lambda v: Cell(v.what)),
    "on": Column("on", lambda v: Cell(v.label)),
    "record": Column("record", lambda v: Cell(v.one.tag)),
    "group": Column("group", lambda v: Cell(v.result.group)),
    "step": Column("configuration", lambda v: Cell(v.step)),
    "submodule": Column("submodule", lambda v: Cell(v.what, notes=remarks(v.result))),
    "backend": Column("backend", lambda v: Cell(v.result.candidate.backend), "submodule"),
    "precision": Column("type", lambda v: Cell(v.result.candidate.precision or DASH), "submodule"),
    "calls": Column("calls", lambda v: number(len(v.result.latency_ms.samples) if v.result.latency_ms else None)),
    "p50": Column("p50 ms", lambda v: _latency(v, "p50")),
    "p90": Column("p90 ms", lambda v: _latency(v, "p90")),
    "p99": Column("p99 ms", lambda v: _latency(v, "p99")),
    "tail": Column("p99 ÷ p50", _tail),
    "baseline": Column("baseline ms", lambda v: number(v.baseline.p50 if v.baseline else None)),
    "speed_up": Column("speed-up", _speed_up),
    "coverage": Column("in engine", _built(lambda b: Cell(percent(b.coverage_percent), b.coverage_percent))),
    "operators_in": Column("operators in engine", _built(_operators)),
    "engines": Column("engines", _built(lambda b: number(b.engines))),
    "mb": Column("MB", _built(lambda b: number(b.engine_bytes, 1e-6)), "coverage"),
    "build": Column("build s", _built(_seconds)),
    "layers": Column("layers", _built(_layers)),
    "peak": Column("peak MB", lambda v: number(v.result.peak_bytes and round(v.result.peak_bytes / 1e6))),
    "cosine": Column("cosine", lambda v: _accuracy(v, "cosine")),
    "max_abs": Column("max abs", lambda v: _accuracy(v, "max_abs"), "cosine"),
    "gate": Column("gate", _gate),
    "roofline": Column("of roofline", _roofline),
    "roofline_ms": Column("roofline ms", lambda v: number(v.result.roofline.ms if v.result.roofline else None)),
    "gflop": Column("GFLOP", _work("gflop")),
    "moved": Column("MB moved", _work("bytes", 1e-6)),
    "operators": Column("operators", _work("operators")),
    "per_step": Column("in a step", _work("operators_per_step")),
    "kernels": Column("kernels", _work("kernels")),
    "kernel_ms": Column("ms in them", _work("kernel_ms")),
    "notes": Column("notes", _notes),
}
"""Key -> figure."""

WORK = ("gflop", "moved", "operators", "per_step", "kernels", "kernel_ms")


def table(title: str, views: Iterable[View], keys: Sequence[str], *, texts: int = 1, **heads: str) -> Table:
    """One row per view.

    Args:
        heads: Other heads than the columns' own, by key.
    """
    place = {key: i for i, key in enumerate(keys)}
    stacked = {i: place[under] for key, i in place.items() if (under := COLUMNS[key].under) in place}
    rows = tuple(tuple(COLUMNS[key].get(view) for key in keys) for view in views)
    return Table(title, tuple(heads.get(key, COLUMNS[key].head) for key in keys), rows, texts, stacked)


SUBMODULE = ("submodule", "backend", "precision", "coverage", "mb", "build", "baseline", "p50", "speed_up", "cosine",
             "max_abs", "gate")  # fmt: skip
WHOLE_REQUEST = ("submodule", "mb", "build", "baseline", "p50", "speed_up", "cosine", "max_abs", "gate")


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
    eager, own = SUBMODULE.index("baseline"), SUBMODULE.index("p50")
    rows = []
    for result, row in zip(record.submodules, parts.rows, strict=True):
        if result.candidate.backend == "eager":  # what was not compiled is its own baseline
            row = (*row[:eager], row[own], Cell(), *row[own + 1 :])
        rows.append(row)
    return [
        replace(parts, rows=tuple(rows)),
        table(
            "The whole request, observation to actions, against the original model in eager PyTorch",
            [View(one, request_of(record))],
            WHOLE_REQUEST,
            submodule="",
            baseline="original ms",
            p50="compiled ms",
        ),
    ]


def request_of(record: Record) -> Result:
    """The whole request of a run, with what its submodules took together; an empty one where there is none."""
    whole = record.request or Result("run", "", REQUEST, status=Status.CHECKED)
    builds = [r.build for r in record.submodules if r.build is not None]
    fresh = [b for b in builds if not b.from_cache]
    if not builds:
        return whole

    def added(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    sizes, engines = (b.engine_bytes for b in builds), (b.engines for b in builds)
    build = Build(
        added(b.seconds for b in fresh),
        from_cache=not fresh,
        engine_bytes=added(sizes),  # type: ignore[arg-type]
        engines=added(engines),  # type: ignore[arg-type]
    )
    return replace(whole, build=build)


def comparison_tables(one: Loaded) -> list[Table]:
    """Latencies side by side, the whole request, and what each submodule cost by each backend."""
    parts = [view for view in one.views if view.result.group == "comparison" and not view.whole]
    whole = [view for view in one.views if view.result.group == "comparison" and view.whole]
    explained = {
        "original": "original: the model as it was published, in eager PyTorch; eager: the model that is compiled here",
        "auto": "auto: for each submodule the backend that won there",
    }
    return [
        pivot(
            "Each submodule by each backend, p50 in ms, interleaved on the same inputs (*: fastest beyond doubt)",
            parts,
            ("p50",),
        ),
        _named(
            table(
                "The whole request, observation to actions, against the original model in eager PyTorch",
                whole,
                ("what", "p50", "p90", "p99", "speed_up", "build", "mb", "peak", "cosine", "gate"),
                what="backend",
            ),
            [
                Cell(v.result.name, notes=(explained[v.result.name],) if v.result.name in explained else ())
                for v in whole
            ],
        ),
        _costs(parts),
    ]


def _named(made: Table, names: Sequence[Cell]) -> Table:
    """The table with other first cells."""
    return replace(made, rows=tuple((name, *row[1:]) for name, row in zip(names, made.rows, strict=True)))


def pivot(title: str, views: Sequence[View], keys: Sequence[str], heads: Mapping[str, str] | None = None) -> Table:
    """One row a subject, and for each backend the same figures; where they are several, those that it has for any.

    Args:
        heads: Key -> what to call the figure behind the backend's name.
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
    named = tuple(
        backend if len(keys) == 1 else f"{backend}: {(heads or {}).get(key, COLUMNS[key].head)}"
        for backend, key in columns
    )
    rows = tuple((Cell(subject), *(cell(subject, b, k) for b, k in columns)) for subject in subjects)
    return Table(title, ("submodule", *named), rows)


def _costs(views: Sequence[View]) -> Table:
    keys = ("what", "p99", "build", "mb", "layers", "coverage", "peak", "cosine", "gate")
    shown = [view for view in views if view.result.why is None]
    made = table(
        "What each submodule took; memory is what came on top of what was in use, cosine is to eager fp32",
        shown,
        keys,
        what="submodule and backend",
    )
    names = [Cell(f"  {view.result.name}", notes=view.result.notes) for view in shown]
    rows: list[tuple[Cell, ...]] = []
    before = None
    for view, row, name in zip(shown, made.rows, names, strict=True):
        if view.what != before:
            rows.append((Cell(view.what, mark="strong"), *(Cell("") for _ in keys[1:])))
        before = view.what
        rows.append((name, *row[1:]))
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
            against = "the same in eager PyTorch" if group == "submodules" else "the original model in eager PyTorch"
            made = table(f"{heading}; against {against}", views, (*keys, *(extra or {}).get(group, ())), step=heading)
            out.append(replace(made, heads=(group, *made.heads[1:])))
    return out


def planned_table(rows: Iterable[tuple[str, str, int, str]]) -> Table:
    """What a measuring run would measure: group, name, calls and what is called, in the order in which it would."""
    shown = tuple(
        (Cell(str(place)), Cell(group), Cell(name), Cell(str(calls)), Cell(of))
        for place, (group, name, calls, of) in enumerate(rows, 1)
    )
    return Table("", ("taken", "group", "row", "calls", "what is called"), shown, texts=5)


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
        cells = [
            Cell("  " * inner + row.stage),
            Cell(digits(row.calls_per_request)),
            *([Cell(p50(row.baseline_ms))] if both else []),
            number(own),
            Cell() if share is None else Cell(f"{100 * share:.0f} %", share),
            # Bars add up to the request, so a stage inside another has none.
            Cell("" if share is None or inner else block * round(width * share)),
        ]
        lines.append(tuple(cells))
    heads = ("stage", "calls", *(("original ms", "compiled ms") if both else ("ms",)), "share", "")
    kind = "a compiled" if compiled else "an eager"
    title = f"Where {kind} request spends its time (p50, all calls of a stage added up)"
    return Table(title, heads, tuple(lines))


def kernel_table(view: View, shorten: Callable[[str], str] = str) -> Table | None:
    """The kernels that take the most of one call; None where the record names none."""
    work = view.result.work
    if work is None or not work.busiest_kernels:
        return None
    rows = tuple(
        (
            Cell(shorten(kernel.name)),
            number(kernel.launches),
            Cell(f"{kernel.ms:.3f}", kernel.ms),
            Cell()
            if not work.kernel_ms or not kernel.ms
            else Cell(f"{100 * kernel.ms / work.kernel_ms:.0f} %", kernel.ms),
        )
        for kernel in work.busiest_kernels
    )
    return Table("", ("kernel", "launches", "ms", "of all kernels"), rows)


def action_table(loaded: Iterable[Loaded]) -> Table | None:
    """How far each part of the actions is from eager fp32, in the robot's own units."""
    rows = tuple(
        (Cell(key), Cell(one.tag), Cell(cosine(found), found.cosine), Cell(small(found.max_abs), found.max_abs))
        for one in loaded
        for key, found in one.record.per_key.items()
    )
    title = "Actions against eager fp32, in the robot's own units"
    return Table(title, ("action", "record", "cosine", "max abs"), rows, texts=2) if rows else None


def facts_table(loaded: Sequence[Loaded]) -> Table:
    """The machine, the versions and the work of each record, one column a record."""
    rows = []
    for name, value_of in FACTS.items():
        values = [value_of(one) for one in loaded]
        if any(values):
            cells = [value if isinstance(value, Cell) else Cell(str(value or DASH)) for value in values]
            rows.append((Cell(name, mark="strong"), *cells))
    heads = ("", *(one.tag for one in loaded))
    return Table("What the figures were taken with", heads, tuple(rows), texts=len(heads))


def work_of(record: Record) -> str:
    """The inputs of a run in words."""
    given = record.inputs
    parts = [
        counted(given.views, "view") if given.views is not None else "",
        f"batch {given.batch_size}" if given.batch_size is not None else "",
        counted(given.sequence_length, "token") if given.sequence_length is not None else "",
        counted(given.denoising_steps, "step") if given.denoising_steps is not None else "",
        f"seed {given.seed}" if given.seed is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def versions_of(record: Record, *names: str) -> str:
    """The packages that were used, with their versions; of these names alone where there are any."""
    known = record.environment.distributions
    return ", ".join(f"{n} {v}" for n, v in known.items() if v and (not names or n in names))


def _unit(value: float | None, unit: str, scale: float = 1.0) -> str | None:
    return None if value is None else f"{digits(value * scale)} {unit}".strip()


def _form(one: Loaded) -> str:
    record = one.record
    if record.measured:
        return "many: each row of the measuring run says its own"
    names = record.setting("optimizations")
    return f"restructured: {', '.join(names)}; loop as {record.setting('loop') or DASH}" if names else "plain"


def _plan(one: Loaded) -> str:
    record = one.record
    parts = (record.plan_path, record.setting("backend"), record.setting("precision"))
    return str(record.setting("precision")) if record.measured else " ".join(str(part) for part in parts if part)


def _commit(one: Loaded) -> Cell | None:
    git = one.record.git
    if git.commit is None:
        return None
    return Cell(
        f"{git.commit[:12]} {'with uncommitted changes' if git.dirty else 'clean'}", mark="dirty" * bool(git.dirty)
    )


def _peak(one: Loaded) -> str | None:
    peak = one.record.peak_memory
    return (
        None if peak is None or peak.peak_bytes is None else f"{digits(peak.peak_bytes / 1e9)} GB ({peak.kind or DASH})"
    )


def _during(one: Loaded) -> str | None:
    seen = one.record.telemetry
    if seen is None:
        return None
    held = ", ".join(seen.throttle_reasons) or "nothing"
    clock = f"{digits(seen.sm_clock_mhz_p50)} MHz (lowest {digits(seen.sm_clock_mhz_min)})"
    return f"{clock}, {digits(seen.power_w_p50)} W, {digits(seen.energy_j)} J in all; clocks held down by {held}"


FACTS: Mapping[str, Callable[[Loaded], Any]] = {
    "model": lambda one: one.record.model.path,
    "form": _form,
    "work": lambda one: work_of(one.record),
    "data": lambda one: one.record.inputs.dataset,
    "instruction": lambda one: one.record.inputs.instruction,
    "plan": _plan,
    "ran on": lambda one: one.record.device,
    "GPU": lambda one: one.record.environment.gpu,
    "compute capability": lambda one: _unit(one.record.environment.sm, "", 0.1),
    "driver": lambda one: one.record.environment.driver,
    "SM clock, highest": lambda one: _unit(one.record.environment.max_sm_clock_mhz, "MHz"),
    "SM clock at start": lambda one: _unit(one.record.environment.sm_clock_mhz, "MHz"),
    "GPU during the run": _during,
    "memory clock": lambda one: _unit(one.record.environment.memory_clock_mhz, "MHz"),
    "power limit": lambda one: _unit(one.record.environment.power_limit_w, "W"),
    "GPU memory": lambda one: _unit(one.record.environment.gpu_memory_bytes, "GB", 1e-9),
    "board": lambda one: one.record.environment.board,
    "CPU": lambda one: one.record.environment.cpu,
    "CPU cores used": lambda one: _unit(one.record.environment.cpu_cores, ""),
    "memory": lambda one: _unit(one.record.environment.memory_bytes, "GB", 1e-9),
    "system": lambda one: one.record.environment.platform,
    "Python": lambda one: one.record.environment.python,
    "versions": lambda one: versions_of(one.record),
    "commit": _commit,
    "taken": lambda one: one.record.created_utc,
    "took": lambda one: _unit(one.record.wall_s, "s"),
    "peak memory": _peak,
    "ended": lambda one: one.record.exit_reason,
}
"""What `facts_table` shows: name -> the value in a record, None where it is unknown."""


def idle_backends(one: Loaded) -> list[str]:
    """The backends of a record whose engines were built and cannot run there."""
    idle = {
        r.candidate.backend for r in one.record.results if r.status is Status.BUILT_NOT_RUN and r.subject != REQUEST
    }
    return [name for name in BACKENDS if name in idle]
