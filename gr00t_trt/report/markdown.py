"""Records as Markdown, for README files: tables, and the remarks that go with them. Never imports torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ..plans.backends import BACKENDS
from ..record.result import Baseline, Result, Status
from ..record.schema import Record
from .columns import COLUMNS, LAUNCH, WORK, Cell, Table, table
from .facts import versions_of
from .tables import BASELINES, idle_backends, kernel_table, measured_tables, pivot, request_of, split_table
from .terminal import drift_text
from .views import SAME_WORK, Loaded, View, rows_of

LONGEST_NAME = 60

HELPED = 1.02
"""A step that makes a call less than this factor faster did not help: two runs of the same thing differ as much."""

ROWS = ("step", "calls", "baseline", "p50", "p99", "tail", "speed_up", *LAUNCH, "cosine", "max_abs")
BASELINE_HEADS = {BASELINES["submodules"]: "eager p50 ms", BASELINES["settings"]: "without it p50 ms"}
RUN = ("what", "backend", "operators_in", "engines", "mb", "build", "baseline", "p50", "p99", "cosine")
COMPARED = {"build": "build s", "mb": "MB", "layers": "layers", "p50": "p50 ms", "cosine": "cosine to fp32"}


def written(made: Table) -> str:
    """A table; columns that say nothing are left out."""
    shown = made.filled()
    return "\n".join(grid(shown.heads, (map(_text, row) for row in shown.rows)))


def grid(heads: Sequence[str], rows: Iterable[Iterable[str]], texts: int = 1) -> list[str]:
    """The lines of a table, its first `texts` columns aligned at the left and the others at the right."""
    aligned = "|---" * texts + "|--:" * (len(heads) - texts) + "|"
    return [_line(heads), aligned, *map(_line, rows)]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(cell: Cell) -> str:
    # Of few samples the last hundredth is not known, and the maximum is no percentile.
    if cell.mark in ("max", "built") or cell.text in ("-", "built"):
        return "–"
    text = cell.text.replace(" > ", " → ").replace("→ -", "→ –").replace("- →", "– →")
    text = re.sub(r"^([\d.]+)x$", r"\1×", text)
    return f"({text})" if cell.mark == "doubtful" else text


def title(one: Loaded, links: str, remark: str = "") -> str:
    """Bold: model, precision, device, and whether the baseline drifted. Then the record, the versions and the workload.

    Args:
        links: Where the records lie, seen from the file that this goes into.
    """
    record, given = one.record, one.record.inputs
    where = (record.environment.gpu if record.on_gpu else None) or f"no GPU, {record.environment.cpu_cores} CPU cores"
    used = versions_of(record, "torch", "torch-tensorrt", "torch-tensorrt-rtx")
    drifted = ", baseline drifted" if record.drift and record.drift.drifted else ""
    return (
        f"**{record.model.path}{remark}, {record.setting('precision')}, {where}{drifted}** "
        f"([record]({links}{one.name}.json): {used}; {given.views} view, {given.sequence_length} tokens, "
        f"{given.denoising_steps} steps, batch {given.batch_size})"
    )


def _cost(record: Record) -> list[str]:
    """How long the whole run took, its peak of memory, and whether the baseline drifted; as a paragraph of its own."""
    peak = record.peak_memory
    memory = f", peak {peak.peak_bytes / 1e9:.1f} GB ({peak.kind})" if peak and peak.peak_bytes else ""
    text = drift_text(record) if record.drift and record.drift.drifted else ""
    return ["", f"Whole run {record.wall_s or 0:.0f} s{memory}.", *([f"{text[0].upper()}{text[1:]}."] if text else [])]


def section(one: Loaded, links: str) -> str:
    """Title, tables and remarks of one record."""
    if one.record.of("comparison"):
        return _comparison(one, links)
    return _measured(one, links) if one.record.measured else _run(one, links)


def _run(one: Loaded, links: str) -> str:
    record = one.record
    names = record.setting("optimizations")
    parts = table("", [View(one, result) for result in record.submodules], RUN, what="submodule",
                  baseline="eager p50 ms", p50="compiled p50 ms", cosine="cosine to fp32")  # fmt: skip
    # The second column with backend and precision.
    by = [Cell(f"{r.candidate.backend} {r.candidate.precision or ''}".strip()) for r in record.submodules]
    rows = tuple((row[0], own, *row[2:]) for row, own in zip(parts.rows, by, strict=True))
    parts = replace(parts, texts=2, rows=rows)
    lines = [title(one, links, ", restructured model" if names else ""), "", written(parts)]
    whole = record.request
    if whole is not None:
        keys = ("what", "engines", "mb", "build", "baseline", "p50", "p99", "cosine")
        made = table("", [View(one, request_of(record))], keys, what="", baseline="original p50 ms",
                     p50="compiled p50 ms", cosine="cosine to fp32")  # fmt: skip
        lines += ["", written(made)]
    lines += _cost(record)
    if whole and whole.against and whole.against.text:
        lines.append(f"Whole request: {whole.against.text}.")
    executed = [str(BACKENDS[name].executed_by) for name in idle_backends(one) if BACKENDS[name].executed_by]
    if executed:
        of = " and ".join(executed)
        lines.append(f"Engines were built and not run, so they have no latency. Cosines are of {of}.")
    return "\n".join(lines)


def _comparison(one: Loaded, links: str) -> str:
    """One line per submodule, the same figures of every backend. Layers: of the network that TensorRT is given, then of
    the engine.
    """
    views = [view for view in one.views if view.result.group == "comparison"]
    made = pivot("", views, tuple(COMPARED), COMPARED)
    lines = [title(one, links, ", backends side by side"), "", written(made), *_cost(one.record)]
    if idle := idle_backends(one):
        lines.append(f"{' and '.join(idle)}: built and not run, so without a latency.")
    refused = dict.fromkeys(f"{v.result.name}, {v.what}: {v.result.why}" for v in views if v.result.why)
    return "\n".join([*lines, *(f"Not tried: {text}" for text in refused)])


def _measured(one: Loaded, links: str) -> str:
    """A table per group, and what was not measured."""
    whole = any(view.result.subject == "request" for view in rows_of([one], "waterfall"))
    what = "from numpy to numpy" if whole else "with inputs resident on the device"
    lines = [
        title(one, links, ", measured in many forms"),
        "",
        f"A call of the waterfall is one action chunk {what}. {_method(one)}",
    ]
    card = ("roofline", "clock", "watts")
    extra = {group: (*(WORK if group == "waterfall" else ()), *card) for group in SAME_WORK}
    for made in measured_tables(one, ROWS, extra):
        heading, _, against = made.title.partition("; against ")
        baseline = BASELINE_HEADS.get(against, "original p50 ms")
        heads = (baseline if head == COLUMNS["baseline"].head else head for head in made.heads[1:])
        lines += ["", written(replace(made, heads=(heading, *heads)))]
    if (split := split_table(one)) is not None:
        lines += ["", written(replace(split, heads=(split.title[0].lower() + split.title[1:], *split.heads[1:])))]
    for view in reversed(rows_of([one], "waterfall")):
        kernels = kernel_table(view, _short)
        if kernels is not None:
            first = f"the kernels of a call that take the most: {view.result.name}"
            lines += ["", written(replace(kernels, heads=(first, *kernels.heads[1:])))]
            break
    left_out = [r for r in one.record.measured if r.why is not None]
    lines += _cost(one.record)
    if left_out:
        lines.append("Not measured: " + "; ".join(f"{r.name} ({r.why})" for r in left_out) + ".")
    return "\n".join([*lines, *(f"Note: {note.what}: {note.why}." for note in one.record.skipped)])


def _method(one: Loaded) -> str:
    """How the rows of a measuring run were timed."""
    turns = [r for r in one.record.measured if r.against and r.against.baseline is Baseline.ORIGINAL]
    if len(turns) == 1:
        return (
            f"The original model in eager PyTorch was timed in turn with one row, {turns[0].name!r}; every other row "
            "is alone on an idle GPU, and held against that one baseline; bracketed where spreads overlap."
        )
    return (
        "The original model in eager PyTorch and each row were interleaved, A B A B; speed-ups of one table are "
        "against one baseline, and bracketed where the spreads of the two overlapped."
    )


def _short(name: str) -> str:
    """A kernel's name without its template's arguments, which fill lines."""
    bare = re.sub(r"^void ", "", name).split("<")[0].split("(")[0] or name
    return f"`{bare if len(bare) <= LONGEST_NAME else bare[:LONGEST_NAME] + '…'}`"


def log(loaded: Mapping[str, Loaded], links: str) -> str:
    """A line for every step of a waterfall, and every way to compile, that did not make a call faster."""
    lines = [line for one in loaded.values() for line in _unhelpful(one, links)]
    if not lines:
        return "Nothing: every step that was measured made a call faster." if loaded else "Nothing was measured yet."
    heads = _line(("what", "seen by", "before", "with it", "change", "record"))
    return "\n".join([heads, "|---|---|--:|--:|--:|---|", *lines])


def _unhelpful(one: Loaded, links: str) -> Iterator[str]:
    """Of an uncaptured call on a GPU the time in kernels counts: between them the GPU waits for the host, for longer
    in one call than in the next, and a graph does away with it. Else it is the speed-up against the original as it was
    interleaved with each row, so that a clock that drifts between runs cancels out.
    """
    link = f"[{one.name}]({links}{one.name}.json)"

    def slower(what: str, old: float, new: float) -> str:
        return _line((what, "speed-up", f"{old:.2f}×", f"{new:.2f}×", f"{new / old:.2f}×", link))

    steps = [view for view in rows_of([one], SAME_WORK[0]) if view.result.status is Status.MEASURED]
    best = max((_ratio(view) for view in steps), default=1.0)
    for before, view in pairwise(steps):
        what = view.result.name.removeprefix("+ ")
        old, new = _kernel_ms(before.result), _kernel_ms(view.result)
        if old and new:
            if old < HELPED * new:
                yield _line((what, "ms in kernels", f"{old:.2f}", f"{new:.2f}", f"{old / new:.2f}×", link))
        elif _ratio(view) < HELPED * _ratio(before):
            yield slower(what, _ratio(before), _ratio(view))
    for view in rows_of([one], *SAME_WORK[1:]):
        if view.ratio is not None and _ratio(view) < best:
            yield slower(f"{view.result.name}, against the best of the waterfall", best, _ratio(view))
    for view in rows_of([one], "settings"):
        if view.ratio is not None and not _kept(view.result):
            times = (f"{latency.p50:.2f}" for latency in (view.baseline, view.latency) if latency)
            yield _line((view.result.name, "ms of a replay", *times, f"{view.ratio:.2f}×", link))


def _kept(row: Result) -> bool:
    """Whether a setting was faster than the same form without it, beyond doubt."""
    return row.against is not None and row.against.winner == row.name


def _ratio(view: View) -> float:
    """The speed-up against the original that was interleaved with the row, where one was."""
    ratio = view.result.ratio if view.result.against else view.ratio
    return 1.0 if ratio is None else ratio


def _kernel_ms(row: Result) -> float | None:
    return None if row.candidate.graph or row.work is None else row.work.kernel_ms
