"""The figures behind the charts, to be sorted and read to the last digit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .figures import DASH, cosine, distance, exact, gate, megabytes, percent, share, short, speedup
from .intake import Loaded
from .markup import Child, Html, element
from .readings import Reading, is_measuring_run, rivals

Cell = tuple[Child, float | None] | Child
"""What a cell shows, and the number behind it, which is sorted by and shown on hover; or text alone."""


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Cell]], *, numbers: int, kind: str = "") -> Html:
    """A table that scrolls sideways on its own and whose columns sort; columns of dashes are left out, and named.

    Args:
        numbers: The column from which on cells are numbers, aligned at the right.
        kind: A class of style.css.
    """
    filled = [i for i in range(len(head)) if i < numbers or any(_says_something(row[i]) for row in rows)]
    absent = [text for i, text in enumerate(head) if i not in filled]
    if absent:
        caption = f"{caption}. In no record: {', '.join(absent)}."
    sortable = [
        element("th", element("button", head[i], type="button"), scope="col", class_="num" if i >= numbers else None)
        for i in filled
    ]
    lines = [element("tr", [_cell(row[i], i, i >= numbers) for i in filled]) for row in rows]
    inside = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", sortable)),
        element("tbody", lines),
    )
    return element("div", inside, class_=f"scroll {kind}".strip(), role="region", tabindex=0, aria_label=caption)


def _says_something(cell: Cell) -> bool:
    shown = cell[0] if isinstance(cell, tuple) else cell
    return shown not in (DASH, "", None)


def results(rows: Sequence[Reading], tag: Mapping[str, str]) -> Html | None:
    """Every submodule and the whole request on every backend; `tag`: record -> what to call it."""
    if not rows:
        return None
    several = len(tag) > 1
    head = (
        *("what", "on"),
        *(("record",) if several else ()),
        *("p50 ms", "p90 ms", "p99 ms", "vs eager", "build s", "engine MB", "layers"),
        *("coverage", "peak MB", "cosine", "max abs", "gate", "notes"),
    )
    lines = []
    for row in rows:
        taken = row.timing
        tail = None if taken is None or taken.p99 is None else slowest(exact_short(taken.p99), taken.p99_is_max)
        notes = "; ".join(text for text in (row.why_not, row.verdict, *row.notes) if text)
        lines.append(
            [
                row.subject,
                row.label,
                *((tag[row.record],) if several else ()),
                (exact_short(taken.p50 if taken else None), taken.p50 if taken else None),
                (exact_short(taken.p90 if taken else None), taken.p90 if taken else None),
                (tail or DASH, taken.p99 if taken else None),
                (_against(row), row.ratio),
                (short(row.build_s), row.build_s),
                (megabytes(row.engine_bytes), row.engine_bytes),
                (_layers(row), row.layers_after if row.layers_before is None else row.layers_before),
                (percent(row.coverage_percent), row.coverage_percent),
                (megabytes(row.peak_bytes), row.peak_bytes),
                (cosine(row.cosine, row.exact), row.cosine),
                (distance(row.max_abs), row.max_abs),
                DASH if row.passed is None else element("span", gate(row.passed), class_=f"gate-{gate(row.passed)}"),
                element("span", notes, class_="notes") if notes else "",
            ]
        )
    return table("Every submodule and the whole request, on every backend", head, lines, numbers=3 if several else 2)


def measured(rows: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    """The rows of measuring runs."""
    several = len(tag) > 1
    head = (
        *("group", "configuration"),
        *(("record",) if several else ()),
        *(
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "eager p50 ms",
            "vs eager",
            "cosine",
            "max abs",
            "% of roofline",
            "roofline ms",
            "GFLOP",
        ),
        *("operators a step", "kernels", "ms in kernels", "notes"),
    )
    lines = []
    for row in rows:
        taken = row.timing
        p50, p90, p99 = (taken.p50, taken.p90, taken.p99) if taken else (None, None, None)
        eager = row.eager.p50 if row.eager else None
        notes = "; ".join(text for text in (row.why_not, row.verdict, *row.notes) if text)
        lines.append(
            [
                row.subject,
                row.step,
                *((tag[row.record],) if several else ()),
                (exact_short(p50), p50),
                (exact_short(p90), p90),
                (slowest(exact_short(p99), taken.p99_is_max) if taken and p99 is not None else DASH, p99),
                (exact_short(eager), eager),
                (_against(row), row.ratio),
                (cosine(row.cosine, row.exact), row.cosine),
                (distance(row.max_abs), row.max_abs),
                (share(row.roofline_percent), row.roofline_percent),
                (short(row.roofline_ms), row.roofline_ms),
                (short(row.gflop), row.gflop),
                (short(row.operators_per_step), row.operators_per_step),
                (short(row.kernels), row.kernels),
                (short(row.kernel_ms), row.kernel_ms),
                element("span", notes, class_="notes") if notes else "",
            ]
        )
    return table("Every configuration of the measuring runs", head, lines, numbers=3 if several else 2)


def busiest(measured: Sequence[Reading], tag: Mapping[str, str]) -> list[Html]:
    """Of each measuring run the kernels of its fastest form; none where no record names them."""
    tables = []
    for record in dict.fromkeys(row.record for row in measured):
        known = [row for row in rivals((), (r for r in measured if r.record == record)) if row.busiest and row.timing]
        if not known:
            continue
        row = min(known, key=lambda row: row.timing.p50 if row.timing else 0.0)
        caption = f"The kernels that take the most of one call: {row.label}{f' {tag[record]}' if len(tag) > 1 else ''}"
        lines: list[list[Cell]] = [
            [
                element("span", kernel["name"], class_="notes"),
                (short(kernel["launches"]), kernel["launches"]),
                (short(kernel["ms"]), kernel["ms"]),
                (share(100 * kernel["ms"] / row.kernel_ms), kernel["ms"]) if row.kernel_ms and kernel["ms"] else DASH,
            ]
            for kernel in row.busiest
        ]
        tables.append(table(caption, ("kernel", "launches", "ms", "of all kernels"), lines, numbers=1))
    return tables


def actions(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html | None:
    """How far each part of the actions strays from eager fp32, in the robot's own units."""
    lines: list[list[Cell]] = [
        [key, tag[one.name], (cosine(given["cosine"], given["exact"]), given["cosine"]),
         (distance(given["max_abs"]), given["max_abs"])]
        for one in loaded
        for key, given in (one.record["accuracy"]["per_key"] or {}).items()
    ]  # fmt: skip
    head = ("action", "record", "cosine", "max abs")
    caption = "Actions against eager fp32, in the robot's own units"
    return table(caption, head, lines, numbers=2) if lines else None


def exact_short(value: float | None) -> str:
    """Five significant digits at most, which is what a table has room for; the cell's title has the rest."""
    if value is None or value == 0:
        return DASH if value is None else "0"
    return f"{value:,.5g}".replace(",", "\u00a0") if abs(value) >= 1e-3 else f"{value:.2e}"


def slowest(text: str, largest: bool) -> Child:
    """A p99 of fewer than 100 samples is the largest one, and is marked."""
    return [text, element("abbr", "max", title="fewer than 100 samples: the largest one")] if largest else text


def facts(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html:
    """The machine, the versions and the work of each record, one column a record."""
    lines = []
    for name, value_of in FACTS:
        values = [value_of(one.record) for one in loaded]
        if any(values):
            lines.append([element("b", name), *(value or DASH for value in values)])
    head = ("", *(tag[one.name] for one in loaded))
    return table("What the figures were taken with", head, lines, numbers=len(head), kind="facts")


def _dirty(record: Mapping[str, Any]) -> Child:
    commit, dirty = record["git"]["commit"], record["git"]["dirty"]
    if commit is None:
        return None
    flag = element("strong", "with uncommitted changes", class_="dirty") if dirty else "clean"
    return [element("code", commit[:12], title=commit), " ", flag]


def _work(record: Mapping[str, Any]) -> str:
    work = record["workload"]
    named = (
        ("views", "{} view", "{} views"),
        ("batch_size", "batch {}", "batch {}"),
        ("sequence_length", "{} token", "{} tokens"),
        ("denoising_steps", "{} step", "{} steps"),
        ("seed", "seed {}", "seed {}"),
    )
    return ", ".join(
        (one if work[key] == 1 else many).format(work[key]) for key, one, many in named if work[key] is not None
    )


def _versions(record: Mapping[str, Any]) -> str:
    known = record["environment"]["distributions"] or {}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _unit(value: float | None, unit: str, scale: float = 1.0) -> str | None:
    return None if value is None else short(value * scale, unit)


FACTS = (
    ("model", lambda r: r["model"]["path"]),
    ("form", lambda r: "many: each row of the measuring run says its own" if is_measuring_run(r)
     else f"restructured: {', '.join(o)}; loop as {r['plan']['loop'] or DASH}"
     if (o := r["plan"]["optimisations"]) else "plain"),
    ("work", _work),
    ("data", lambda r: r["workload"]["dataset"]),
    ("instruction", lambda r: r["workload"]["instruction"]),
    ("plan", lambda r: r["plan"]["precision"] if is_measuring_run(r) else
     " ".join(p for p in (r["plan_path"], r["plan"]["backend"], r["plan"]["precision"]) if p)),
    ("ran on", lambda r: r["device"]),
    ("GPU", lambda r: r["environment"]["gpu"]),
    ("compute capability", lambda r: None if r["environment"]["sm"] is None else f"{r['environment']['sm'] / 10:g}"),
    ("driver", lambda r: r["environment"]["driver"]),
    ("SM clock, highest", lambda r: _unit(r["environment"]["max_sm_clock_mhz"], "MHz")),
    ("SM clock at start", lambda r: _unit(r["environment"]["sm_clock_mhz"], "MHz")),
    ("memory clock", lambda r: _unit(r["environment"]["memory_clock_mhz"], "MHz")),
    ("power limit", lambda r: _unit(r["environment"]["power_limit_w"], "W")),
    ("GPU memory", lambda r: _unit(r["environment"]["gpu_memory_bytes"], "GB", 1e-9)),
    ("board", lambda r: r["environment"]["board"]),
    ("CPU", lambda r: r["environment"]["cpu"]),
    ("CPU cores used", lambda r: _unit(r["environment"]["cpu_cores"], "")),
    ("memory", lambda r: _unit(r["environment"]["memory_bytes"], "GB", 1e-9)),
    ("system", lambda r: r["environment"]["platform"]),
    ("Python", lambda r: r["environment"]["python"]),
    ("versions", _versions),
    ("commit", _dirty),
    ("taken", lambda r: r["created_utc"]),
    ("took", lambda r: _unit(r["wall_s"], "s")),
    ("peak memory", lambda r: None if r["peak_memory"]["peak_bytes"] is None
     else f"{short(r['peak_memory']['peak_bytes'] / 1e9, 'GB')} ({r['peak_memory']['kind'] or DASH})"),
    ("ended", lambda r: r["exit_reason"]),
)  # fmt: skip
"""What `facts` shows: name -> the value in a record, None where it is unknown."""


def _layers(row: Reading) -> str:
    if row.layers_before is None and row.layers_after is None:
        return DASH
    return f"{short(row.layers_before)} → {short(row.layers_after)}"


def _against(row: Reading) -> Child:
    if row.ratio is None:
        return DASH
    doubt = element("abbr", "?", title=row.verdict or "no winner") if row.winner is None else None
    return [speedup(row.ratio), doubt]


def _cell(cell: Cell, place: int, number: bool) -> Html:
    shown, value = cell if isinstance(cell, tuple) else (cell, None)
    known = {"title": exact_title(value), "data_value": repr(float(value))} if value is not None else {}
    if place == 0:
        return element("th", shown, scope="row", **known)
    return element("td", shown, class_="num" if number and isinstance(cell, tuple) else None, **known)


def exact_title(value: float) -> str:
    """The number behind a cell: to the nanosecond for milliseconds, all digits for what is smaller."""
    return exact(value) if abs(value) >= 0.1 else f"{value:.9g}"
