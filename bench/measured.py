"""The tables of measuring runs, and the log of what did not help."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import pairwise
from typing import Any

from cells import cells, cosine, cost, number, quantile, title

from gr00t_trt.report.names import GROUPS, in_its_group, is_between

LONGEST_NAME = 60

HELPED = 1.02
"""A step that makes a call less than this factor faster did not help: two runs of the same thing differ as much."""

Row = Mapping[str, Any]


def section(name: str, record: Row, links: str) -> str:
    """Title, a table per group, and what was not measured."""
    lines = [title(name, record, links, ", measured in many forms"), "", _what_a_call_is(record)]
    for group, heading in GROUPS.items():
        rows = _taken(record, group)
        if rows:
            lines += ["", *_table(heading, rows, work=WORK if group == "waterfall" else ())]
    if kernels := list(_kernels(record)):
        lines += ["", *kernels]
    left_out = [row for row in record["measurements"] if row["why_not"] is not None]
    lines += ["", cost(record)]
    if left_out:
        lines.append("Not measured: " + "; ".join(f"{row['name']} ({row['why_not']})" for row in left_out) + ".")
    lines += [f"Note: {entry['what']}: {entry['why']}." for entry in record["skipped"]]
    return "\n".join(lines)


def _kernels(record: Row) -> Iterator[str]:
    """The kernels of the last row of the waterfall that names them."""
    named = [row for row in _taken(record, "waterfall") if (row["work"] or {}).get("busiest_kernels")]
    if not named:
        return
    work = named[-1]["work"]
    yield cells(f"the kernels of a call that take the most: {named[-1]['name']}", "launches", "ms", "of all kernels")
    yield "|---|--:|--:|--:|"
    for kernel in work["busiest_kernels"]:
        share = f"{100 * kernel['ms'] / work['kernel_ms']:.0f} %"
        yield cells(f"`{_short(kernel['name'])}`", kernel["launches"], f"{kernel['ms']:.3f}", share)


def _short(name: str) -> str:
    """A kernel's name without its template's arguments, which fill lines."""
    bare = re.sub(r"^void ", "", name).split("<")[0].split("(")[0] or name
    return bare if len(bare) <= LONGEST_NAME else f"{bare[:LONGEST_NAME]}…"


def summary(name: str, record: Row, links: str) -> str:
    """Title and one table: the ends of the waterfall, and the rows of the small groups that sum a run up."""
    steps = _taken(record, "waterfall")
    ends = [row for row in steps if not is_between(row)]
    rows = [*ends, *_taken(record, "loop"), *_taken(record, "request"), *_taken(record, "percentiles")]
    lines = [
        title(name, record, links, ", measured in many forms"),
        "",
        *_table("", rows, work=("kernels", "ms in them")),
        "",
        cost(record),
    ]
    return "\n".join(lines)


def _what_a_call_is(record: Row) -> str:
    whole = any(row["settings"]["of"] == "request" for row in _taken(record, "waterfall"))
    what = "from numpy to numpy" if whole else "with inputs resident on the device"
    return (
        f"A call of the waterfall is one action chunk {what}; eager PyTorch and each row were timed in turn, A B A B."
    )


def _taken(record: Row, group: str) -> list[Row]:
    return [row for row in record["measurements"] if row["group"] == group and row["why_not"] is None]


WORK: Mapping[str, Callable[[Row], object]] = {
    "GFLOP": lambda work: number(work.get("gflop"), 1, 0),
    "MB moved": lambda work: number(work.get("bytes"), 1e-6, 0),
    "operators": lambda work: work.get("operators"),
    "in a step": lambda work: work.get("operators_per_step"),
    "kernels": lambda work: work.get("kernels"),
    "ms in them": lambda work: number(work.get("kernel_ms"), 1, 2),
}
"""Column -> what it says of a row's `work`."""


def _table(heading: str, rows: list[Row], *, work: Collection[str]) -> Iterator[str]:
    """A row per line; of the columns in `work`, those that some row has something in."""
    extra = [head for head in work if any(WORK[head](row["work"] or {}) is not None for row in rows)]
    roofline = any((row["roofline"] or {}).get("percent") is not None for row in rows)
    heads = ("calls", "eager p50 ms", "p50 ms", "p99 ms", "p99 ÷ p50", "speed-up", "cosine", "max abs", *extra)
    heads = (*heads, "of roofline") if roofline else heads
    yield cells(heading, *heads)
    yield "|---|" + "--:|" * len(heads)
    for row in rows:
        latency, agreement = row["latency_ms"] or {}, row["accuracy"] or {}
        p50, p99 = latency.get("p50"), latency.get("p99")
        share = (row["roofline"] or {}).get("percent")
        values: list[object] = [
            latency.get("iterations"),
            quantile(row["eager_latency_ms"], "p50"),
            quantile(row["latency_ms"], "p50"),
            # Of few samples the last hundredth is not known, and the maximum is no percentile.
            None if latency.get("p99_is_max") else quantile(row["latency_ms"], "p99"),
            None if latency.get("p99_is_max") or not p50 else f"{p99 / p50:.2f}",
            speed_up(row),
            cosine(agreement),
            None if agreement.get("max_abs") is None else f"{agreement['max_abs']:.1e}",
            *(WORK[head](row["work"] or {}) for head in extra),
        ]
        if roofline:
            values.append(None if share is None else f"{share:.0f} %")
        yield cells(in_its_group(row), *values)


def speed_up(row: Row) -> str | None:
    """Against eager PyTorch in the same run; bracketed where the spreads overlap, so that no winner can be named."""
    ratio = (row["verdict"] or {}).get("ratio")
    if ratio is None:
        return None
    return f"{ratio:.2f}×" if row["verdict"]["winner"] else f"({ratio:.2f}×)"


def log(records: Mapping[str, Row], links: str) -> str:
    """A line for every step of a waterfall, and every way to compile, that did not make a call faster."""
    lines = [line for name, record in records.items() for line in _unhelpful(name, record, links)]
    if not lines:
        return "Nothing: every step that was measured made a call faster." if records else "Nothing was measured yet."
    heads = cells("what", "seen by", "before", "with it", "change", "record")
    return "\n".join([heads, "|---|---|--:|--:|--:|---|", *lines])


def _unhelpful(name: str, record: Row, links: str) -> Iterator[str]:
    """Of an uncaptured call on a GPU the time in kernels counts: between them the GPU waits for the host, for longer
    in one call than in the next, and a graph does away with it. Else it is the speed-up against eager PyTorch in the
    same run, so that a clock that drifts between runs cancels out.
    """
    link = f"[{name}]({links}{name}.json)"
    steps = _taken(record, "waterfall")
    best = max((_ratio(row) for row in steps), default=1.0)
    for before, row in pairwise(steps):
        what = row["name"].removeprefix("+ ")
        old, new = _kernel_ms(before), _kernel_ms(row)
        if old and new:
            if old < HELPED * new:
                yield cells(what, "ms in kernels", f"{old:.2f}", f"{new:.2f}", f"{old / new:.2f}×", link)
        elif _ratio(row) < HELPED * _ratio(before):
            yield _slower(what, _ratio(before), _ratio(row), link)
    for row in _taken(record, "compile"):
        if row["verdict"] is not None and _ratio(row) < best:
            yield _slower(f"{row['name']}, against the best of the waterfall", best, _ratio(row), link)


def _ratio(row: Row) -> float:
    ratio = (row["verdict"] or {}).get("ratio")
    return 1.0 if ratio is None else ratio


def _slower(what: str, old: float, new: float, link: str) -> str:
    return cells(what, "speed-up", f"{old:.2f}×", f"{new:.2f}×", f"{new / old:.2f}×", link)


def _kernel_ms(row: Row) -> float | None:
    return None if row["settings"].get("graph") else (row["work"] or {}).get("kernel_ms")
