"""Records as one HTML page: everything in the order in which a team would ask for it, in one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..record.schema import Record
from . import charts, findings, published
from .charts import Bars
from .columns import Cell, Table, table
from .facts import facts_table
from .markup import Child, Html, contents, element, join, section, sorted_table
from .simulations import simulations
from .svg import MOST_ROWS, draw, legend, more, palette
from .tables import BASELINES, action_table, kernel_table, quantized_tables, split_table
from .views import GROUPS, SAME_WORK, Loaded, View, color, fastest, grouped, in_short, listed, rivals, rows_of, several

SCRIPT = Path(__file__).with_name("script.js").read_text(encoding="utf-8")
_STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")

METHOD = (
    "Latencies are medians (p50) of timed calls after untimed ones. Candidates of one run are interleaved on the same "
    "recorded inputs, so that clocks and heat treat them alike. cuda_event reads the GPU's clock around each call; "
    "python_timer reads the host's, with the GPU drained before and after. In a measuring run on a GPU the original "
    "is timed in turn with one row, every other row is alone on an idle GPU, and two settings are compared A B A. "
    "Whiskers span p10 to p90, by linear interpolation. A winner is named only where those spreads do not touch. "
    "Accuracy compares with eager fp32 of the plain model on the same observation and the same noise; cosines are cut "
    "off, not rounded. The share of the roofline is the time that bandwidth and arithmetic allow, over the measured "
    "p50. A dash is a figure that was not measured; nothing is filled in."
)

RESULTS = ("what", "on", "record", "p50", "p90", "p99", "speed_up", "build", "mb", "layers", "coverage", "peak",
           "cosine", "max_abs", "gate", "notes")  # fmt: skip
MEASURED = ("group", "step", "record", "p50", "p90", "p99", "baseline", "speed_up", "cosine", "max_abs", "roofline",
            "roofline_ms", "gflop", "per_step", "kernels", "kernel_ms", "first_kernel", "last_kernel", "gaps", "host",
            "event", "replay", "card", "clock", "watts", "notes")  # fmt: skip


def style() -> str:
    """All of the page's style, with a class for every colour of its charts."""
    return f"{_STYLE}\n{palette()}\n"


def page(loaded: Sequence[Loaded], title: str) -> str:
    """The whole document. Pointing at a mark or a cell, or moving the focus to it, shows the exact figures."""
    own = style()
    shown = (
        simulations(loaded, written),
        _latency(loaded),
        _submodules(loaded),
        _speed_accuracy(loaded),
        _waterfall(loaded),
        _variations(loaded),
        _stages(loaded),
        _roofline(loaded),
        _tables(loaded),
        _published(loaded),
        _open(loaded),
        section("Machine, versions and work", "Latencies hold for these only.", written(facts_table(loaded), "facts")),
        _method(loaded),
    )
    policy = (
        f"default-src 'none'; style-src {_hash(own)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(own)),
    )
    hatch = Html(
        '<svg class="defs" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6"/>'
        '<line x1="0" y1="0" x2="0" y2="6"/></pattern></defs></svg>'
    )
    skip = element("a", "to the tables", href="#tables", class_="skip")
    body = element(
        "body",
        skip,
        hatch,
        element("main", _head(loaded, title), contents(shown), _figures(loaded), shown),
        element("script", Html(SCRIPT)),
    )
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _hash(text: str) -> str:  # only this style and script may run, whatever a record's text tries to add
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _named(one: Loaded, loaded: Sequence[Loaded]) -> Html | None:
    """The heading of a record's part of a section; none for a record alone."""
    return element("h3", one.tag, " ", one.name) if len(loaded) > 1 else None


def _head(loaded: Sequence[Loaded], title: str) -> Html:
    tags = {one.name: one.tag for one in loaded}
    shown = [element("li", element("b", tags.get(what, what)), " ", text) for what, text in findings.warnings(loaded)]
    listing = element("ul", shown, class_="warnings", aria_label="warnings") if shown else None
    return element("header", element("h1", title), listing)


def _figures(loaded: Sequence[Loaded]) -> Html:
    cards = []
    for one in loaded:
        name = [element("b", one.tag), " ", one.name] if len(loaded) > 1 else [one.name]
        figures = [
            element("div", element("dt", what), element("dd", value), element("dd", of, class_="of"))
            for what, value, of in findings.key_figures(one)
        ]
        texts = (("subtitle", findings.subtitle(one)), ("answer", findings.answer(one)))
        words = [element("p", text, class_=kind) for kind, text in texts]
        cards.append(element("article", element("h2", name), words, element("dl", figures, class_="figures")))
    return join(cards)


def _bars(loaded: Sequence[Loaded], views: Sequence[View]) -> Html:
    """Latencies on one axis for each machine: beside a CPU's, a GPU's bars could not be seen."""
    many = len({one.machine for one in loaded}) > 1
    drawn: list[Child] = []
    for name, own in grouped((view.one.machine, view) for view in views if view.latency).items():
        drawn.append(element("p", name, class_="machine") if many else None)
        drawn.append(draw(Bars("", "ms", tuple(charts.latency_bar(view, view.tagged) for view in own))))
    return join(drawn)


def _untimed(views: Iterable[View]) -> list[Html]:
    """A sentence for each reason for which something has no latency."""
    reasons = grouped((view.reason, view) for view in views if view.reason is not None)
    return [element("p", f"{_named_once(own)}: {why}.", class_="more absent") for why, own in reasons.items()]


def _named_once(views: Sequence[View]) -> str:
    """What these are, each name once: "vision_model and dit_model on torch_tensorrt fp16, tensorrt fp16"."""
    subjects = grouped(
        (view.step if view.what == "waterfall" else view.tagged, "" if view.whole or view.measured else view.what)
        for view in views
    )
    labels = grouped((several(own), label) for label, own in subjects.items())
    return "; ".join(f"{what} on {several(own, 12)}" if what else several(own, 12) for what, own in labels.items())


def _latency(loaded: Sequence[Loaded]) -> Html:
    whole = [view for view in listed(loaded) if view.whole]
    run = in_short(loaded)
    title = "How long one request takes"
    if not whole and not run:
        return section(title, "No request was timed.")
    resident = "Inputs lie on the device already, but for the row from numpy to numpy. "
    on_device = any(view.result.subject == "model" for view in run)
    about = (
        "Measuring runs, with how many times as fast as the original model in eager PyTorch. "
        f"{resident if on_device else ''}All steps and forms are below."
    )
    used = dict.fromkeys(view.result.name for view in whole if view.latency)
    return section(
        title,
        "From observation to action chunk. Bar and thick mark: p50. Whisker: p10 to p90. Thin mark: p99, or the "
        "slowest call below 100 samples. Shorter is better.",
        join([legend([(color(name), name or "unnamed") for name in used]), _bars(loaded, whole), _untimed(whole)])
        if whole
        else None,
        element("p", about, class_="more") if run else None,
        _bars(loaded, run) if run else None,
    )


def _panels(loaded: Sequence[Loaded], views: Sequence[View], heads: Mapping[str, str]) -> Html:
    """Bars for each subject or group, under its heading."""
    shown = list(heads.items())[:MOST_ROWS]
    drawn = [(head, [view for view in views if view.what == name]) for name, head in shown]
    panels = [element("div", element("h3", head), _bars(loaded, own), class_="panel") for head, own in drawn]
    return element("div", panels, class_="panels")


def _submodules(loaded: Sequence[Loaded]) -> Html | None:
    parts = [view for view in listed(loaded) if not view.whole]
    if not parts:
        return None
    title = "How long each submodule takes"
    if not any(view.latency for view in parts):
        return section(title, "None was timed; why stands under what was not measured.")
    lead = "One call on the inputs of a real request. Every panel has its own axis, which begins at zero."
    timed = {view.what: view.what for view in parts if view.latency}
    beyond = more(len(timed), "in the table below")
    return section(title, lead, _panels(loaded, parts, timed), beyond, _untimed(parts))


def _speed_accuracy(loaded: Sequence[Loaded]) -> Html:
    chart, title = charts.accuracy_chart(loaded), "Speed against accuracy"
    if not chart.points:
        return section(title, "Not drawn: no request has both a latency and a cosine.")
    return section(
        title,
        "Whole requests, both axes logarithmic: the lower left corner is fast and exact. Above a dashed line, the "
        "actions are further from eager fp32 than the gate allows.",
        draw(chart),
    )


def _waterfall(loaded: Sequence[Loaded]) -> Html | None:
    drawn: list[Child] = []
    for one in loaded:
        chart = charts.waterfall_chart(one)
        timed = tuple(bar for bar in chart.bars if bar.value is not None)
        if timed:
            drawn += [_named(one, loaded), draw(replace(chart, bars=timed)), _untimed(rows_of([one], "waterfall"))]
    return section(
        "What each step brings",
        "One step added after another: p50 of one request, of that of the original model in eager PyTorch, which is "
        "the one that was timed in turn with that very step, where one was. Light: what all steps so far save. Red: "
        "what they cost. Grey: less than the spreads of both.",
        drawn,
    ) if drawn else None  # fmt: skip


def _variations(loaded: Sequence[Loaded]) -> Html | None:
    measured = rows_of(loaded)
    shown = ("waterfall", "split", "request", "percentiles")  # further up, or a table of its own
    timed = dict.fromkeys(view.what for view in measured if view.latency)
    groups = {group: GROUPS.get(group, group) for group in timed if group not in shown}
    lead = "Each with how many times as fast as its baseline it is. Every panel has its own axis, from zero."
    varied = [view for view in measured if view.what in GROUPS and view.what not in shown]
    return (
        section("What else was varied", lead, _panels(loaded, measured, groups), _untimed(varied)) if groups else None
    )


def _stages(loaded: Sequence[Loaded]) -> Html:
    drawn = [
        (_named(one, loaded), draw(chart))
        for one in loaded
        if (chart := charts.stage_chart(one, *SAME_WORK, "split")).rows
    ]
    return section(
        "Where a request spends its time",
        "Medians of each stage, all its calls in one request added up. Timed in requests of their own, so that a sum "
        "may differ a little from the latency above." if drawn else "No stage was timed.",
        drawn,
    )  # fmt: skip


def _roofline(loaded: Sequence[Loaded]) -> Html:
    # What lies between eager and all optimizations, and the thousand calls, would say the same over and over.
    known = [view for view in rows_of(loaded) if not view.between and view.result.group != "percentiles"]
    chart = charts.roofline_chart(known, tagged=True)
    title = "How close to the hardware's limit"
    if not chart.bars:
        why = "Not computed: no record has a roofline, which needs a measuring run on a GPU whose ceilings are known."
        return section(title, why)
    return section(
        title,
        "The time that memory bandwidth and arithmetic allow, as a share of the measured p50. 100 % cannot be beaten; "
        "what the fastest form lacks of it is the most that could still be won.",
        draw(chart),
    )


def _tables(loaded: Sequence[Loaded]) -> Html:
    run, measured, actions = listed(loaded), rows_of(loaded), action_table(loaded)
    many = len(loaded) > 1
    original, same = "against the original model in eager PyTorch", "against the same in eager PyTorch"
    whole = [view for view in measured if view.result.group not in BASELINES]
    # Each has one baseline.
    shown = (
        (f"The whole request on every backend, {original}", [view for view in run if view.whole], RESULTS),
        (f"Every submodule on every backend, {same}", [view for view in run if not view.whole], RESULTS),
        (f"Every configuration of the measuring runs, {original}", whole, MEASURED),
        *(
            (f"Of the measuring runs: {GROUPS[group]}, against {base}", rows_of(loaded, group), MEASURED)
            for group, base in BASELINES.items()
        ),
    )
    return section(
        "All figures",
        "A heading sorts its column. Pointing at a cell shows all digits.",
        *(
            written(table(title, own, [key for key in keys if many or key != "record"], texts=2 + many))
            for title, own, keys in shown
            if own
        ),
        *(written(made) for made in quantized_tables(view for view in run if not view.whole)),
        *(written(made) for one in loaded if (made := split_table(one))),
        *_busiest(loaded),
        written(actions) if actions else None,
        name="tables",
    )


def _busiest(loaded: Sequence[Loaded]) -> list[Html]:
    """Of each measuring run the kernels of its fastest form; none where no record names them."""
    out = []
    for one in loaded:
        known = ((view, kernel_table(view)) for view in fastest(rivals(one)))
        view, made = next((own for own in known if own[1]), (None, None))
        if view and made:
            title = f"The kernels that take the most of one call: {view.tagged}"
            out.append(written(replace(made, title=title)))
    return out


def _published(loaded: Sequence[Loaded]) -> Html:
    return section(
        "Beside the published figures",
        published.PUBLISHED["note"],
        element("p", "Hatched: published by others, not measured here.", class_="loud"),
        *published.shown(loaded),
    )


def _open(loaded: Sequence[Loaded]) -> Html:
    lists: list[Child] = []
    for one in loaded:
        notes = [element("li", element("b", what), ": ", why) for what, why in findings.not_measured(one)]
        lists += [_named(one, loaded), element("ul", notes, class_="open")]
    return section("What was not measured", "And why.", lists)


def _method(loaded: Sequence[Loaded]) -> Html:
    commands = [
        [
            element("h3", one.tag, " " if len(loaded) > 1 else None, one.name if len(loaded) > 1 else None),
            element("pre", element("code", one.record.command or "–"), tabindex=0),
            element("p", f"{one.path}: {_kept(one.record):,} raw samples".replace(",", "\u00a0"), class_="more"),
        ]
        for one in loaded
    ]
    return section("How it was measured, and how to repeat it", METHOD, commands)


def _kept(record: Record) -> int:
    latencies = [result.latency_ms for result in record.results]
    latencies += [result.against.latency_ms for result in record.results if result.against]
    latencies += [latency for row in record.stages for latency in (row.latency_ms, row.baseline_ms)]
    return sum(len(latency.samples) for latency in latencies if latency)


def written(made: Table, kind: str = "") -> Html:
    """A table that scrolls sideways on its own and whose columns sort; columns of dashes are left out, and named.

    Args:
        kind: A class of style.css.
    """
    absent, filled = made.absent(), made.filled()
    caption = f"{made.title}. In no record: {', '.join(absent)}." if absent else made.title
    lines = [element("tr", [_cell(cell, i, i >= made.texts) for i, cell in enumerate(row)]) for row in filled.rows]
    return sorted_table(caption, filled.heads, lines, texts=made.texts, kind=kind)


def _cell(cell: Cell, place: int, number: bool) -> Html:
    text = "–" if cell.text == "-" else cell.text.replace(" > ", " → ").replace(" - ", " – ")
    shown: Child = text.replace(" %", "\u00a0%") if number else text
    if cell.mark in ("pass", "FAIL"):
        shown = element("span", cell.text, class_=f"gate-{cell.mark}")
    elif cell.mark == "dirty":
        shown = element("strong", cell.text, class_="dirty")
    elif cell.mark == "max":
        shown = [text, element("abbr", "max", title="fewer than 100 samples: the largest one")]
    elif cell.mark == "doubtful":
        shown = [text, element("abbr", "?", title="; ".join(cell.notes) or "no winner")]
    elif number and cell.value is None and cell.text not in ("-", "cached"):
        shown = element("span", cell.text, class_="notes")
    known = {"title": exact_title(cell.value), "data_value": repr(float(cell.value))} if cell.value is not None else {}
    if place == 0:
        return element("th", element("b", shown) if cell.mark == "strong" else shown, scope="row", **known)
    return element("td", shown, class_="num" if number and cell.value is not None else None, **known)


def exact_title(value: float) -> str:
    """The number behind a cell: to the nanosecond for milliseconds, all digits for what is smaller."""
    return charts.exact(value) if abs(value) >= 0.1 else f"{value:.9g}"
