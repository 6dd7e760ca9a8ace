"""The page: everything in the order in which a team would ask for it, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from . import charts, findings, published, tables
from .figures import exact, short
from .intake import Loaded
from .markup import Child, Html, element, join
from .readings import SAME_WORK, WHOLE, Reading, machine, measurements, parts, readings, rivals, split

STYLE = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
SCRIPT = Path(__file__).with_name("script.js").read_text(encoding="utf-8")

METHOD = (
    "Latencies are medians (p50) of timed calls after untimed ones. Rivals of one run are called in turn on the same "
    "recorded inputs, so that clocks and heat treat them alike. cuda_event reads the GPU's clock around each call; "
    "python_timer reads the host's, with the GPU drained before and after. Whiskers span p10 to p90, by linear "
    "interpolation. A winner is named only where those spreads do not touch. Accuracy compares with eager fp32 of the "
    "plain model on the same observation and the same noise; cosines are cut off, not rounded. The share of the "
    "roofline is the time that bandwidth and arithmetic allow, over the measured p50. A dash is a figure that was not "
    "measured; nothing is filled in."
)


def page(loaded: Sequence[Loaded], title: str) -> str:
    """The whole document. Pointing at a mark or a cell, or moving the focus to it, shows the exact figures."""
    tag = {one.name: one.name if len(loaded) == 1 else f"#{place}" for place, one in enumerate(loaded, 1)}
    rows, measured = readings(loaded), measurements(loaded)
    sections = (
        _head(loaded, title, tag),
        _figures(loaded, rows, measured, tag),
        _latency(loaded, rows, tag),
        _submodules(loaded, rows, tag),
        _speed_accuracy(loaded, rows, measured, tag),
        _waterfall(loaded, tag),
        _variations(loaded, measured, tag),
        _stages(loaded, measured, tag),
        _roofline(measured, tag),
        _tables(loaded, rows, measured, tag),
        _published(loaded, rows, tag),
        _open(loaded, rows, measured, tag),
        _facts(loaded, tag),
        _method(loaded, tag),
    )
    policy = (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    hatch = Html(
        '<svg class="defs" aria-hidden="true"><defs><pattern id="hatch" width="6" height="6" '
        'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="6" height="6"/>'
        '<line x1="0" y1="0" x2="0" y2="6"/></pattern></defs></svg>'
    )
    skip = element("a", "to the tables", href="#tables", class_="skip")
    body = element("body", skip, hatch, element("main", sections), element("script", Html(SCRIPT)))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"


def _hash(text: str) -> str:
    # Only this style and this script may run, whatever a record's text tries to add.
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _head(loaded: Sequence[Loaded], title: str, tag: Mapping[str, str]) -> Html:
    loud = findings.warnings(loaded)
    shown = [element("li", element("b", tag.get(what, what)), " ", text) for what, text in loud]
    return element(
        "header",
        element("h1", title),
        element("ul", shown, class_="warnings", aria_label="warnings") if shown else None,
    )


def _figures(loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]):
    cards = []
    for place, one in enumerate(loaded):
        own = [row for row in rows if row.place == place]
        runs = [row for row in measured if row.place == place]
        name = [element("b", tag[one.name]), " ", one.name] if len(loaded) > 1 else [one.name]
        figures = [
            element("div", element("dt", what), element("dd", value), element("dd", of, class_="of"))
            for what, value, of in findings.key_figures(one, own, runs)
        ]
        cards.append(
            element(
                "article",
                element("h2", name),
                element("p", findings.subtitle(one), class_="subtitle"),
                element("p", findings.answer(one, own, runs), class_="answer"),
                element("dl", figures, class_="figures"),
            )
        )
    return join(cards)


def _section(title: str, lead: str, *children: Child, name: str | None = None) -> Html:
    return element("section", element("h2", title), element("p", lead, class_="lead"), *children, id=name)


def _bars(loaded: Sequence[Loaded], rows: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    """Latencies on one axis for each machine: beside a CPU's, a GPU's bars could not be seen.

    Of a machine that timed none of them there is a sentence.
    """
    groups: dict[str, list[Reading]] = {}
    for row in rows:
        groups.setdefault(machine(loaded[row.place]), []).append(row)
    several = len({machine(one) for one in loaded}) > 1
    drawn: list[Child] = []
    reasons: dict[str, list[str]] = {}
    for name, own in groups.items():
        if any(row.timing for row in own):
            drawn.append(element("p", name, class_="machine") if several else None)
            drawn.append(charts.bars([charts.latency_bar(row, _label(row, tag)) for row in own], "ms"))
        else:
            for row in own:
                reasons.setdefault(row.why_not or "", []).append(_label(row, tag))
    absent = [
        element("p", f"{findings.several(labels)}: {why}.", class_="more absent") for why, labels in reasons.items()
    ]
    return join(drawn, absent)


def _latency(loaded: Sequence[Loaded], rows: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    whole = [row for row in rows if row.subject == WHOLE]
    if not whole:
        return _section("How long one request takes", "No request was timed.")
    return _section(
        "How long one request takes",
        "From observation to action chunk. Bar and thick mark: p50. Whisker: p10 to p90. Thin mark: p99, or the "
        "slowest call below 100 samples. Shorter is better.",
        _backends(rows),
        _bars(loaded, whole, tag),
    )


def _submodules(loaded: Sequence[Loaded], rows: Sequence[Reading], tag: Mapping[str, str]) -> Html | None:
    subjects = list(dict.fromkeys(row.subject for row in rows if row.subject != WHOLE))
    panels = []
    for subject in subjects[: charts.MOST_ROWS]:
        own = [row for row in rows if row.subject == subject]
        panels.append(element("div", element("h3", subject), _bars(loaded, own, tag), class_="panel"))
    if not panels:
        return None
    if not any(row.timing for row in rows if row.subject != WHOLE):
        return _section("How long each submodule takes", "None was timed; why stands under what was not measured.")
    more = len(subjects) - charts.MOST_ROWS
    return _section(
        "How long each submodule takes",
        "One call on the inputs of a real request. Every panel has its own axis, which begins at zero.",
        element("div", panels, class_="panels"),
        element("p", f"{more} more in the table below.", class_="more") if more > 0 else None,
    )


def _backends(rows: Sequence[Reading]) -> Html:
    used = dict.fromkeys(row.backend for row in rows if row.timing)
    named = [(charts.colour(backend), backend) for backend in used if backend in charts.COLOURED]
    other = [backend or "unnamed" for backend in used if backend not in charts.COLOURED]
    return charts.legend([*named, *([("c-other", ", ".join(other[:6]))] if other else [])])


def _speed_accuracy(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    tried = [
        row
        for place in range(len(loaded))
        for row in rivals([r for r in rows if r.place == place], [r for r in measured if r.place == place])
    ]
    known = [(_label(row, tag), row) for row in tried if row.distance is not None]
    gates: dict[float, str] = {}
    for one in loaded:
        cosine = (one.record["accuracy"]["gate"] or {}).get("cosine")
        if cosine is not None:
            name = f"gate {cosine:g}" if len(loaded) == 1 else f"gate {cosine:g} ({tag[one.name]})"
            gates.setdefault(1.0 - cosine, name)
    if not known:
        return _section("Speed against accuracy", "Not drawn: no request has both a latency and a cosine.")
    return _section(
        "Speed against accuracy",
        "Whole requests, both axes logarithmic: the lower left corner is fast and exact. Above a dashed line, the "
        "actions stray further from eager fp32 than the gate allows.",
        charts.points(known, [(name, value) for value, name in gates.items()]),
    )


def _waterfall(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html | None:
    panels: list[Child] = []
    for one in loaded:
        rows = measurements([one], "waterfall")
        if not rows:
            continue
        drawn, before = [], None
        for row in rows:
            bar = charts.latency_bar(row, row.label, "c-first" if before is None else "c-step")
            if row.timing:
                bar = _step(bar, row.timing.p50, before)
                before = row.timing.p50
            drawn.append(bar)
        panels += [element("h3", tag[one.name], " ", one.name) if len(loaded) > 1 else None, charts.bars(drawn, "ms")]
    if not panels:
        return None
    return _section(
        "What each step brings",
        "One step added after another, p50 of one request, and how many times as fast as eager PyTorch, timed in turn. "
        "Light: what the step saved. Red: what it cost.",
        panels,
    )


def _step(bar: charts.Bar, value: float, before: float | None) -> charts.Bar:
    if before is None:
        return bar
    change = f"{exact(value - before)} ms against the bar before"
    return replace(bar, before=before, title=f"{bar.title}. {change}")


def _variations(loaded: Sequence[Loaded], measured: Sequence[Reading], tag: Mapping[str, str]) -> Html | None:
    groups = list(dict.fromkeys(row.subject for row in measured if row.timing and row.subject != "waterfall"))
    panels = [
        element(
            "div",
            element("h3", group),
            _bars(loaded, [row for row in measured if row.subject == group], tag),
            class_="panel",
        )
        for group in groups[: charts.MOST_ROWS]
    ]
    if not panels:
        return None
    lead = "Each with how many times as fast as eager PyTorch it is. Every panel has its own axis, from zero."
    return _section("What else was varied", lead, element("div", panels, class_="panels"))


def _stages(loaded: Sequence[Loaded], measured: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    charted: list[Child] = []
    several = len(loaded) > 1
    for place, one in enumerate(loaded):
        rows = [("eager", split(one, "eager_latency_ms")), ("as planned", split(one, "latency_ms"))]
        for row in measured:
            if row.place == place and row.stages and row.subject in SAME_WORK:
                rows.append((f"{row.subject}: {row.label}", parts(row.stages, {})))
        drawn = [(label, own) for label, own in rows if sum(value for _, value in own) > 0]
        if drawn:
            charted += [element("h3", tag[one.name], " ", one.name) if several else None, charts.stacks(drawn)]
    if not charted:
        return _section("Where a request spends its time", "No stage was timed.")
    return _section(
        "Where a request spends its time",
        "Medians of each stage, all its calls in one request added up. Timed in requests of their own, so that a sum "
        "may differ a little from the latency above.",
        charted,
    )


def _roofline(measured: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    known = [row for row in measured if row.roofline_percent is not None]
    drawn = [
        charts.Bar(
            _label(row, tag), row.roofline_percent, f"{row.roofline_percent:.1f}\u00a0%",
            f"{row.label}: {exact(row.roofline_percent)} %, {exact(row.roofline_ms)} ms of "
            f"{exact(row.timing.p50 if row.timing else None)} ms",
            "c-step",
        )
        for row in known
    ]  # fmt: skip
    if not drawn:
        why = "Not computed: no record has a roofline, which needs a measuring run on a GPU whose ceilings are known."
        return _section("How close to the hardware's limit", why)
    return _section(
        "How close to the hardware's limit",
        "The time that memory bandwidth and arithmetic allow, as a share of the measured p50. 100 % cannot be beaten.",
        charts.bars(drawn, "%", top=100.0),
    )


def _tables(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    return _section(
        "All figures",
        "A heading sorts its column. Pointing at a cell shows all digits.",
        tables.results(rows, tag),
        tables.measured(measured, tag) if measured else None,
        tables.actions(loaded, tag),
        name="tables",
    )


def _published(loaded: Sequence[Loaded], rows: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    return _section(
        "Beside the published figures",
        published.PUBLISHED["note"],
        element("p", "Hatched: published by NVIDIA, not measured here.", class_="loud"),
        published.chart(loaded, rows, tag),
        published.side_by_side(loaded, rows, tag),
    )


def _open(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    lists: list[Child] = []
    for place, one in enumerate(loaded):
        own = [row for row in rows if row.place == place]
        runs = [row for row in measured if row.place == place]
        notes = findings.not_measured(one, own, runs)
        lists += [
            element("h3", tag[one.name], " ", one.name) if len(loaded) > 1 else None,
            element("ul", [element("li", element("b", what), ": ", why) for what, why in notes], class_="open"),
        ]
    return _section("What was not measured", "And why.", lists)


def _facts(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html:
    return _section("Machine, versions and work", "Latencies hold for these only.", tables.facts(loaded, tag))


def _method(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html:
    commands = [
        [
            element("h3", tag[one.name], " " if len(loaded) > 1 else None, one.name if len(loaded) > 1 else None),
            element("pre", element("code", one.record["command"] or "–"), tabindex=0),
            element("p", f"{one.path}: {_kept(one)} raw samples", class_="more"),
        ]
        for one in loaded
    ]
    return _section("How it was measured, and how to repeat it", METHOD, commands)


def _kept(one: Loaded) -> str:
    record = one.record
    latencies = [record["end_to_end"][name] for name in ("latency_ms", "eager_latency_ms")]
    for field in ("submodules", "stages", "measurements", "comparison"):
        latencies += [row.get(name) for row in record[field] for name in ("latency_ms", "eager_latency_ms")]
    return short(sum(len(latency["samples"]) for latency in latencies if latency))


def _label(row: Reading, tag: Mapping[str, str]) -> str:
    return f"{row.label} {tag[row.record]}" if len(tag) > 1 else row.label
