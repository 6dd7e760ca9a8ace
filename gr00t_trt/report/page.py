"""The page: everything in the order in which a team would ask for it, in one file that loads nothing."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import findings, published, sections, tables
from .figures import DASH, short
from .intake import Loaded
from .markup import Child, Html, element, join
from .readings import Reading, measurements, readings
from .sections import section

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
    shown = (
        _head(loaded, title, tag),
        _figures(loaded, rows, measured, tag),
        sections.latency(loaded, rows, measured, tag),
        sections.submodules(loaded, rows, tag),
        sections.speed_accuracy(loaded, rows, measured, tag),
        sections.waterfall(loaded, tag),
        sections.variations(loaded, measured, tag),
        sections.stages(loaded, measured, tag),
        sections.roofline(measured, tag),
        _tables(loaded, rows, measured, tag),
        _published(loaded, rows, measured, tag),
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
    body = element("body", skip, hatch, element("main", shown), element("script", Html(SCRIPT)))
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


def _figures(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
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


def _tables(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    return section(
        "All figures",
        "A heading sorts its column. Pointing at a cell shows all digits.",
        tables.results(rows, tag),
        tables.measured(measured, tag) if measured else None,
        *tables.busiest(measured, tag),
        tables.actions(loaded, tag),
        name="tables",
    )


def _published(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    return section(
        "Beside the published figures",
        published.PUBLISHED["note"],
        element("p", "Hatched: published by others, not measured here.", class_="loud"),
        published.chart(loaded, rows, measured, tag),
        published.side_by_side(loaded, rows, measured, tag),
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
    return section("What was not measured", "And why.", lists)


def _facts(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html:
    return section("Machine, versions and work", "Latencies hold for these only.", tables.facts(loaded, tag))


def _method(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html:
    commands = [
        [
            element("h3", tag[one.name], " " if len(loaded) > 1 else None, one.name if len(loaded) > 1 else None),
            element("pre", element("code", one.record["command"] or DASH), tabindex=0),
            element("p", f"{one.path}: {_kept(one)} raw samples", class_="more"),
        ]
        for one in loaded
    ]
    return section("How it was measured, and how to repeat it", METHOD, commands)


def _kept(one: Loaded) -> str:
    record = one.record
    latencies = [record["end_to_end"][name] for name in ("latency_ms", "eager_latency_ms")]
    for field in ("submodules", "stages", "measurements", "comparison"):
        latencies += [row.get(name) for row in record[field] for name in ("latency_ms", "eager_latency_ms")]
    return short(sum(len(latency["samples"]) for latency in latencies if latency))
