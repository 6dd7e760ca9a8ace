"""What others have published of the same model, beside what was measured here, and never mixed with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..plans.schema import SUBMODULES
from ..record.numbers import digits
from .charts import Bar, Bars, exact, latency_bar
from .markup import Child, Html, element, sorted_table
from .svg import draw
from .views import WHOLE, Loaded, View, in_short, listed, rows_of

PUBLISHED: Mapping[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))
"""`rows`: publisher, device, path, precision, end_to_end_ms, transforms_ms, submodules_ms, detail, source."""


def shown(loaded: Sequence[Loaded]) -> list[Html]:
    """Whole requests as bars, this page's own from a GPU and then the published ones; and a table by submodule."""
    own = [
        view
        for view in (*listed(loaded), *in_short(loaded))
        if (view.whole or view.result.group in ("waterfall", "request")) and view.latency and view.one.record.on_gpu
    ]
    drawn = [latency_bar(view, f"here: {view.one.machine}, {view.tagged}") for view in own]
    for row in PUBLISHED["rows"]:
        if row["end_to_end_ms"] is not None:
            ms, publisher = row["end_to_end_ms"], row["publisher"]
            title = f"Published by {publisher}: {exact(ms)} ms. {row['detail']}. Source: {row['source']}"
            name = f"{row['device']}: {row['path']}" + (f" ({row['precision']})" if row["precision"] else "")
            drawn.append(Bar(name, ms, f"{digits(ms)} ms", title, "published"))
    notes = [] if own else ["Nothing of this page is drawn here: no whole request was timed on a GPU."]
    work = ("views", "batch_size", "denoising_steps")
    on_gpu = [one for one in loaded if one.record.on_gpu]
    other = [one.name for one in on_gpu if any(getattr(one.record.inputs, key) != PUBLISHED[key] for key in work)]
    if other:
        notes.append(f"Other work than published (views, batch or steps): {', '.join(other)}.")
    words = (element("p", note, class_="more") for note in notes)
    return [draw(Bars("", "ms", tuple(drawn))), *words, _side_by_side(loaded)]


def _side_by_side(loaded: Sequence[Loaded]) -> Html:
    """Per submodule, in ms for one call of it; measured rows first, then the published ones with their sources."""
    # Of a measuring run: the whole model in the forms that sum it up, and each submodule of one of them alone.
    entries: list[tuple[str, str, View]] = [(view.what, view.label, view) for view in listed(loaded)]
    entries += [(WHOLE, view.label, view) for view in in_short(loaded) if view.result.group != "percentiles"]
    entries += [(view.result.subject, view.form or view.label, view) for view in rows_of(loaded, "submodules")]
    own: dict[tuple[int, str], tuple[Loaded, dict[str, float]]] = {}
    for subject, label, view in entries:
        if view.p50 is not None:
            _, values = own.setdefault((view.one.place, label), (view.one, {}))
            values[subject] = view.p50
    for view in rows_of(loaded, "split"):
        _, values = own.setdefault((view.one.place, view.form or view.label), (view.one, {}))
        values |= {part.stage: part.latency_ms.p50 / part.calls for part in view.result.split or ()}
    lines = [
        _line("measured", one.machine, label, values, values.get(WHOLE), one.tag)
        for (_, label), (one, values) in own.items()
    ]
    for row in PUBLISHED["rows"]:
        how = f"{row['path']} {row['precision'] or ''}".strip()
        source = element("span", f"{row['publisher']}, {row['source']}: {row['detail']}", class_="notes")
        lines.append(_line("published", row["device"], how, row["submodules_ms"], row["end_to_end_ms"], source))
    heads = ("whose", "device", "how", "whole request", *SUBMODULES, "record or source")
    caption = "Milliseconds per call, measured here and published by others"
    return sorted_table(caption, heads, lines)


def _line(
    whose: str, device: str, how: str, values: Mapping[str, float | None], whole: float | None, source: Child
) -> Html:
    cells = [_number(value) for value in (whole, *(values.get(name) for name in SUBMODULES))]
    first = element("th", element("span", whose, class_=f"whose {whose}"), scope="row")
    return element("tr", first, element("td", device), element("td", how), cells, element("td", source or "–"))


def _number(value: float | None) -> Html:
    """Five significant digits at most, which is what a table has room for; the title has the rest."""
    if value is None:
        return element("td", "–")
    text = "0" if value == 0 else f"{value:,.5g}".replace(",", "\u00a0") if abs(value) >= 1e-3 else f"{value:.2e}"
    return element("td", text, class_="num", title=exact(value), data_value=repr(float(value)))
