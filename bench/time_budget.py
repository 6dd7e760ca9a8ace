"""Where the milliseconds of one action chunk go, what the hardware needs for each part, and what is planned for it.

One view, 294 tokens, 4 denoising steps, batch 1, bf16. `BEFORE` and `AFTER` are derived and estimated, and stay as they
are; the measured column is filled from the newest record of a GPU that has its stages as graphs of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gr00t_trt.record.numbers import digits
from gr00t_trt.record.result import Result
from gr00t_trt.report.markdown import grid
from gr00t_trt.report.views import Loaded

FORM_SO_FAR, KERNELS = "+ one CUDA graph", "the DiT on its own Triton kernels"
ALL_KERNELS = "DiT and all attention kernels"
"""Rows of a measuring run that the budget is about; those in 8 bits are called after them."""
HOST, GAPS, REST = "host, before the first kernel", "gaps between kernels", "connector, state, assembly"


@dataclass(frozen=True)
class Group:
    """One part of a call, in ms.

    Attributes:
        launches: Kernels; None for what has none.
        before: As derived from the first record of an H200: its kernel table, and the differences between its steps.
        h200, h100: What bandwidth and arithmetic of the card allow in bf16.
        bf16, fp8: What is expected after the plan, on an H200.
        stages: Which graphs of their own measure it.
    """

    name: str
    launches: int | None
    before: float
    h200: float | None
    h100: float | None
    bf16: float
    fp8: float
    stages: tuple[str, ...] = ()


GROUPS = (
    Group(HOST, None, 1.35, 0.0, 0.0, 0.15, 0.15),
    Group(GAPS, None, 0.37, 0.0, 0.0, 0.15, 0.15),
    Group("vision tower, 27 layers", 192, 1.25, 0.284, 0.380, 0.95, 0.75, ("vision_model",)),
    Group("language model, 12 layers", 132, 0.91, 0.463, 0.499, 0.76, 0.50, ("language_model",)),
    Group("self-attention over both, 4 layers; all keys and values", 31, 0.40, 0.192, 0.205, 0.34, 0.22,
          ("vl_components",)),
    Group("diffusion transformer, 16 blocks, 4 steps", 504, 2.81, 0.835, 1.197, 1.75, 1.25, ("denoise_step",)),
    Group(REST, 10, 0.06, None, None, 0.05, 0.05, ("state_encoder",)),
)  # fmt: skip


def section(records: Iterable[Loaded]) -> str:
    """The table, with the column of the newest record that can fill it."""
    split = [one for one in records if one.record.on_gpu and measured(one)]
    newest = max(split, key=lambda one: one.record.created_utc, default=None)
    filled = measured(newest) if newest else {}
    card = newest.record.environment.gpu if newest else None
    heads = ("of one call, ms", "launches", "so far", f"measured{f', {card}' if card else ''}", "floor H200",
             "floor H100", "bf16, planned", "FP8, planned")  # fmt: skip
    rows = [_row(group, filled) for group in GROUPS]
    return "\n".join(
        [
            "**The time budget of one action chunk**, bf16, 1 view, 294 tokens, 4 steps, batch 1",
            "",
            "So far: derived from the record of an H200 below, whose baseline drifted. Planned: estimated.",
            _source(newest),
            "",
            *grid(heads, [*rows, _sum(filled)]),
            "",
            *_forms(newest),
        ]
    )


def _forms(newest: Loaded | None) -> list[str]:
    """Whole calls of every form with a budget, as planned and as measured."""
    backbone = {"vision_model", "language_model", "vl_components"}  # of which the DiT's kernels change nothing
    planned = {
        FORM_SO_FAR: (sum(group.before for group in GROUPS), "so far"),
        KERNELS: (sum(group.before if {*group.stages} & backbone else group.bf16 for group in GROUPS), "planned"),
        ALL_KERNELS: (sum(group.bf16 for group in GROUPS), "planned"),
        f"FP8, {ALL_KERNELS}": (sum(group.fp8 for group in GROUPS), "planned"),
    }
    found = {row.name: row for row in newest.record.measured if row.subject == "model"} if newest else {}
    rows = []
    for name, (ms, what) in planned.items():
        row = found.get(name)
        cosine = f"{row.accuracy.cosine:.6f}" if row and row.accuracy else "–"
        own = row.latency_ms.p50 if row and row.latency_ms else None
        rows.append((name.removeprefix("+ "), f"{digits(ms)} {what}", _ms(own), cosine))
    return grid(("whole calls, ms", "budget", "measured", "cosine to eager fp32"), rows)


def measured(one: Loaded) -> dict[str, float]:
    """Group -> ms, by a record's stages as graphs of their own; empty for a record without."""
    results = one.record.measured
    split = next((row for row in results if row.split and row.latency_ms), None)
    if split is None or split.latency_ms is None:
        return {}
    parts = {part.stage: part.latency_ms.p50 for part in split.split or ()}
    out = {group.name: sum(parts[name] for name in group.stages) for group in GROUPS if {*group.stages} & {*parts}}
    out[REST] = out.get(REST, 0.0) + split.latency_ms.p50 - sum(parts.values())
    return out | _of_whole_calls(results, split, split.latency_ms.p50)


def _of_whole_calls(results: Iterable[Result], split: Result, graph_ms: float) -> dict[str, float]:
    """What a call of the same form takes beside its graph, and the gaps within it."""
    for row in results:
        same = (row.candidate, row.workload, row.subject) == (split.candidate, split.workload, "model")
        if same and row.latency_ms is not None:
            gaps = row.work.gaps_ms if row.work else None
            return {HOST: row.latency_ms.p50 - graph_ms, **({} if gaps is None else {GAPS: gaps})}
    return {}


def _source(newest: Loaded | None) -> str:
    if newest is None:
        return "No record has measured the parts yet."
    return (
        f"Measured: [record](records/{newest.name}.json); every stage is a graph of its own, whose gaps are in it and "
        "shown in brackets besides; the host's part is what a call takes beyond the graph."
    )


def _row(group: Group, filled: Mapping[str, float]) -> tuple[str, ...]:
    own = filled.get(group.name)
    told = _ms(own) if group.name != GAPS or own is None else f"({_ms(own)})"
    planned = (group.h200, group.h100, group.bf16, group.fp8)
    launches = "–" if group.launches is None else str(group.launches)
    return (group.name, launches, _ms(group.before), told, *(_ms(value) for value in planned))


def _sum(filled: Mapping[str, float]) -> tuple[str, ...]:
    def total(key: str) -> str:
        return _ms(sum(getattr(group, key) or 0.0 for group in GROUPS))

    whole = sum(ms for name, ms in filled.items() if name != GAPS)
    columns = (total(key) for key in ("h200", "h100", "bf16", "fp8"))
    launches = sum(group.launches or 0 for group in GROUPS)
    return ("**sum**", str(launches), total("before"), _ms(whole or None), *columns)


def _ms(value: float | None) -> str:
    return "–" if value is None else digits(value)
