"""What others have published of the same model, beside what was measured here, and never mixed with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plans.schema import SUBMODULES
from .charts import Bar, bars, latency_bar
from .figures import DASH, exact, short
from .intake import Loaded
from .markup import Child, Html, element, join
from .readings import WHOLE, Reading, in_short, is_gpu, machine
from .tables import Cell, exact_short, table

PUBLISHED: Mapping[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
"""`rows`: publisher, device, path, precision, end_to_end_ms, transforms_ms, submodules_ms, detail, source."""


def chart(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    """Whole requests: this page's own from a GPU, then the published ones, hatched."""
    own = [
        row
        for row in (*rows, *in_short(measured))
        if row.subject in (WHOLE, "waterfall", "request") and row.timing and is_gpu(loaded[row.place])
    ]
    drawn = [latency_bar(row, f"here: {_labelled(row, loaded, tag)}") for row in own]
    for row in PUBLISHED["rows"]:
        if row["end_to_end_ms"] is not None:
            ms, publisher = row["end_to_end_ms"], row["publisher"]
            title = f"Published by {publisher}: {exact(ms)} ms. {row['detail']}. Source: {row['source']}"
            drawn.append(Bar(_named(row), ms, short(ms, "ms"), title, "c-published"))
    notes = [] if own else ["Nothing of this page is drawn here: no whole request was timed on a GPU."]
    other = [one.name for one in loaded if is_gpu(one) and _other_work(one)]
    if other:
        notes.append(f"Other work than published (views, batch or steps): {', '.join(other)}.")
    return join(bars(drawn, "ms"), [element("p", note, class_="more") for note in notes])


def side_by_side(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    """Per submodule, in ms for one call of it; measured rows first, then the published ones with their sources."""
    # Of a measuring run: the whole model in the forms that sum it up, and each submodule of one of them alone.
    whole = [(WHOLE, row.label, row) for row in in_short(measured) if row.subject != "percentiles"]
    single = [(row.of, row.form or row.label, row) for row in measured if row.subject == "submodules"]
    own: dict[tuple[int, str, str], dict[str, float]] = {}
    for subject, label, row in (*((row.subject, row.label, row) for row in rows), *whole, *single):
        if row.timing and subject:
            own.setdefault((row.place, row.backend, label), {})[subject] = row.timing.p50
    lines = []
    for (place, _, label), values in own.items():
        one = loaded[place]
        lines.append(_line("measured", machine(one), label, values, values.get(WHOLE), tag[one.name]))
    for row in PUBLISHED["rows"]:
        how = f"{row['path']} {row['precision'] or ''}".strip()
        source = element("span", f"{row['publisher']}, {row['source']}: {row['detail']}", class_="notes")
        lines.append(_line("published", row["device"], how, row["submodules_ms"], row["end_to_end_ms"], source))
    head = ("whose", "device", "how", "whole request", *SUBMODULES, "record or source")
    return table("Milliseconds per call, measured here and published by others", head, lines, numbers=3)


def _line(
    whose: str, device: str, how: str, values: Mapping[str, float | None], whole: float | None, source: Child
) -> list[Cell]:
    cells = [(exact_short(value), value) for value in (whole, *(values.get(name) for name in SUBMODULES))]
    return [element("span", whose, class_=f"whose {whose}"), device, how, *cells, source or DASH]


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['device']}: {row['path']}" + (f" ({row['precision']})" if row["precision"] else "")


def _labelled(row: Reading, loaded: Sequence[Loaded], tag: Mapping[str, str]) -> str:
    return f"{machine(loaded[row.place])}, {row.label}" + (f" {tag[row.record]}" if len(tag) > 1 else "")


def _other_work(one: Loaded) -> bool:
    return any(one.record["workload"][key] != PUBLISHED[key] for key in ("views", "batch_size", "denoising_steps"))
