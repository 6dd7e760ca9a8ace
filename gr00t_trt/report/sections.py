"""The sections that are charts; each says in a sentence what it shows, or why it shows nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from . import charts, findings
from .figures import exact, share
from .intake import Loaded
from .markup import Child, Html, element, join
from .names import GROUPS
from .readings import SAME_WORK, WHOLE, Reading, in_short, machine, measurements, rivals
from .timings import parts, split


def section(title: str, lead: str, *children: Child, name: str | None = None) -> Html:
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


def latency(
    loaded: Sequence[Loaded], rows: Sequence[Reading], measured: Sequence[Reading], tag: Mapping[str, str]
) -> Html:
    whole = [row for row in rows if row.subject == WHOLE]
    run = in_short(measured)
    if not whole and not run:
        return section("How long one request takes", "No request was timed.")
    return section(
        "How long one request takes",
        "From observation to action chunk. Bar and thick mark: p50. Whisker: p10 to p90. Thin mark: p99, or the "
        "slowest call below 100 samples. Shorter is better.",
        join([_backends(rows), _bars(loaded, whole, tag)]) if whole else None,
        element("p", _resident(run), class_="more") if run else None,
        _bars(loaded, run, tag) if run else None,
    )


def _resident(run: Sequence[Reading]) -> str:
    """Where the calls of a measuring run begin: the way to the device is part of some."""
    return (
        "Measuring runs, with how many times as fast as eager PyTorch, timed in turn. "
        + ("Inputs lie on the device already, but for the row from numpy to numpy. " if _on_device(run) else "")
        + "All steps and forms are below."
    )


def _on_device(run: Sequence[Reading]) -> bool:
    return any(row.of == "model" for row in run)


def submodules(loaded: Sequence[Loaded], rows: Sequence[Reading], tag: Mapping[str, str]) -> Html | None:
    subjects = list(dict.fromkeys(row.subject for row in rows if row.subject != WHOLE))
    panels = []
    for subject in subjects[: charts.MOST_ROWS]:
        own = [row for row in rows if row.subject == subject]
        panels.append(element("div", element("h3", subject), _bars(loaded, own, tag), class_="panel"))
    if not panels:
        return None
    if not any(row.timing for row in rows if row.subject != WHOLE):
        return section("How long each submodule takes", "None was timed; why stands under what was not measured.")
    more = len(subjects) - charts.MOST_ROWS
    return section(
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


def speed_accuracy(
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
        return section("Speed against accuracy", "Not drawn: no request has both a latency and a cosine.")
    return section(
        "Speed against accuracy",
        "Whole requests, both axes logarithmic: the lower left corner is fast and exact. Above a dashed line, the "
        "actions stray further from eager fp32 than the gate allows.",
        charts.points(known, [(name, value) for value, name in gates.items()]),
    )


def waterfall(loaded: Sequence[Loaded], tag: Mapping[str, str]) -> Html | None:
    panels: list[Child] = []
    for one in loaded:
        rows = measurements([one], "waterfall")
        if not rows:
            continue
        drawn, before = [], None
        for row in rows:
            bar = charts.latency_bar(row, row.step or row.label, "c-first" if before is None else "c-step")
            if row.timing:
                bar = _step(bar, row.timing.p50, before)
                before = row.timing.p50
            drawn.append(bar)
        panels += [element("h3", tag[one.name], " ", one.name) if len(loaded) > 1 else None, charts.bars(drawn, "ms")]
    if not panels:
        return None
    return section(
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


def variations(loaded: Sequence[Loaded], measured: Sequence[Reading], tag: Mapping[str, str]) -> Html | None:
    shown = ("waterfall", "request", "percentiles")  # further up
    groups = list(dict.fromkeys(row.subject for row in measured if row.timing and row.subject not in shown))
    panels = [
        element(
            "div",
            element("h3", GROUPS.get(group, group)),
            _bars(loaded, [row for row in measured if row.subject == group], tag),
            class_="panel",
        )
        for group in groups[: charts.MOST_ROWS]
    ]
    if not panels:
        return None
    lead = "Each with how many times as fast as eager PyTorch it is. Every panel has its own axis, from zero."
    return section("What else was varied", lead, element("div", panels, class_="panels"))


def stages(loaded: Sequence[Loaded], measured: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    charted: list[Child] = []
    several = len(loaded) > 1
    for place, one in enumerate(loaded):
        rows = [("eager", split(one, "eager_latency_ms")), ("as planned", split(one, "latency_ms"))]
        for row in measured:
            if row.place == place and row.stages and row.subject in SAME_WORK:
                rows.append((row.step or row.label, parts(row.stages, {})))
        drawn = [(label, own) for label, own in rows if sum(value for _, value in own) > 0]
        if drawn:
            charted += [element("h3", tag[one.name], " ", one.name) if several else None, charts.stacks(drawn)]
    if not charted:
        return section("Where a request spends its time", "No stage was timed.")
    return section(
        "Where a request spends its time",
        "Medians of each stage, all its calls in one request added up. Timed in requests of their own, so that a sum "
        "may differ a little from the latency above.",
        charted,
    )


def roofline(measured: Sequence[Reading], tag: Mapping[str, str]) -> Html:
    # What lies between eager and all optimisations, and the thousand calls, would say the same over and over.
    known = [
        row for row in measured if row.roofline_percent is not None and not row.between and row.subject != "percentiles"
    ]
    drawn = [
        charts.Bar(
            _label(row, tag), row.roofline_percent, share(row.roofline_percent),
            f"{_label(row, tag)}: {exact(row.roofline_percent)} %, {exact(row.roofline_ms)} ms of "
            f"{exact(row.timing.p50 if row.timing else None)} ms",
            "c-step",
        )
        for row in known
    ]  # fmt: skip
    if not drawn:
        why = "Not computed: no record has a roofline, which needs a measuring run on a GPU whose ceilings are known."
        return section("How close to the hardware's limit", why)
    return section(
        "How close to the hardware's limit",
        "The time that memory bandwidth and arithmetic allow, as a share of the measured p50. 100 % cannot be beaten; "
        "what the fastest form lacks of it is the most that could still be won.",
        charts.bars(drawn, "%", top=100.0),
    )


def _label(row: Reading, tag: Mapping[str, str]) -> str:
    return f"{row.label} {tag[row.record]}" if len(tag) > 1 else row.label
