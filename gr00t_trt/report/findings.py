"""The sentences of a page: what a record answers, what to be wary of, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..record.numbers import cosine, digits
from ..record.result import REQUEST
from ..record.simulation import Simulation
from ..record.success import share
from .terminal import drift_text
from .views import Loaded, View, counted, fastest, grouped, listed, rivals, rows_of, several, told

Note = tuple[str, str]
"""What it is about, and the sentence."""

Figure = tuple[str, str, str]
"""Name, value, and what it is of."""

NONE = "–"


def ms(value: float | None, unit: str = "ms") -> str:
    return NONE if value is None else f"{digits(value)}\u00a0{unit}"


def answer(one: Loaded) -> str:
    """Which backend serves a request fastest here, or that no engine has run, and whether the gates hold."""
    if one.record.simulation is not None and one.record.simulation.played:
        return f"{'. '.join(one.record.simulation.sentences)}."
    tried = rivals(one)
    built = [v for v in listed([one]) if not v.whole and v.result.build and v.result.build.engine_bytes is not None]
    sentences = []
    if built and not any(view.latency for view in built):
        many = "engines were" if len(built) > 1 else "engine was"
        sentences.append(f"No engine has run on this machine: {len(built)} {many} built and not timed.")
    if len(tried) > 1:
        sentences.append(_fastest(tried))
    elif tried:
        sentences.append(f"Only {tried[0].label} was timed: p50 {ms(tried[0].p50)}.")
    else:
        sentences.append("No request was timed.")
    return " ".join([*sentences, _gates(one)])


def _ranked(tried: Sequence[View]) -> list[View]:
    """Those within their gate, the fastest first."""
    return fastest(view for view in tried if view.result.passed is not False)


def _fastest(tried: Sequence[View]) -> str:
    ranked = _ranked(tried)
    latency = ranked[0].latency if ranked else None
    if latency is None:
        return "Nothing that was timed is within its accuracy gate."
    best = ranked[0]
    rate = f", {digits(latency.hz)} requests a second" if latency.hz else ""
    text = f"Fastest here: {best.label}, p50 {ms(latency.p50)}{rate}"
    against = best.result.against
    if against is not None and best.ratio and best.baseline and best.baseline != against.latency_ms:
        text += f"; {best.ratio:.2f}\u00d7 against the {ms(best.baseline.p50)} of the original in its own row"
        text += "; interleaved with each other, " if against.text else ""
    else:
        text += "; " if against and against.text else ""
    text += f"{against.text if against and against.text else ''}."
    if best.share is not None:
        text += f" That is {best.share:.1f}\u00a0% of the roofline: of what the hardware allows."
    # The spread of a single sample is not known.
    others = [(view.label, view.latency) for view in ranked[1:] if view.latency]
    level = [name for name, own in others if min(map(len, (latency.samples, own.samples))) < 2 or latency.meets(own)]
    if level:
        text += f" Level with it, as the spreads overlap or are not known: {several(level)}."
    return text


def _gates(one: Loaded) -> str:
    known = [(_judged(view), view.result.passed) for view in one.views if view.result.passed is not None]
    failed = [name for name, passed in known if not passed]
    if not known:
        return "Nothing was held against an accuracy gate."
    if failed:
        return f"{len(failed)} of {len(known)} accuracy checks FAIL: {several(failed)}."
    return f"All {len(known)} accuracy checks pass." if len(known) > 1 else "The accuracy check passes."


def _judged(view: View) -> str:
    if view.measured:
        return view.label
    if view.result.group == "comparison":
        return f"{view.what} on {view.result.name}"
    return "the actions" if view.whole else view.what


def key_figures(one: Loaded) -> list[Figure]:
    """The figures to look at first."""
    if one.record.simulation is not None and one.record.simulation.played:
        return _of_simulation(one.record.simulation)
    ranked = _ranked(rivals(one))
    best = ranked[0] if ranked else None
    latency = best.latency if best else None
    timed = best.label if best else "nothing was timed"
    requests = [*ranked[:1], *(view for view in listed([one]) if view.whole)]
    checked = next((v for v in requests if v.result.accuracy and v.result.accuracy.cosine is not None), None)
    same_work = [view for view in rivals(one) if view.measured and view.share is not None]
    roofed = best if best in same_work else max(same_work, key=lambda view: view.share or 0.0, default=None)
    ratio = best.ratio if best else None
    doubt = ", no clear winner" if best and best.doubtful else ""
    peak = one.record.peak_memory
    used = peak.peak_bytes if peak else None
    share = roofed.share if roofed else None
    return [
        ("one request, p50", ms(latency.p50 if latency else None), timed),
        ("requests a second", digits(latency.hz) if latency else NONE, timed),
        _slowest(best, one),
        ("against the original", f"{ratio:.2f}×" if ratio else NONE,
         f"median over median{doubt}" if ratio else "nothing to compare"),
        ("cosine of the actions", cosine(checked.result.accuracy) if checked else NONE,
         f"{checked.label}, to eager fp32" if checked else "not compared"),
        ("share of the roofline", NONE if share is None else f"{share:.1f}\u00a0%",
         roofed.label if roofed else "not computed"),
        *(_of_whole_calls(one) if 0 < len(one.views) == len(one.record.measured) else _of_building(requests)),
        ("peak memory", ms(None if used is None else used / 1e9, "GB"),
         (peak.kind if peak else None) or "not measured"),
    ]  # fmt: skip


def _of_simulation(found: Simulation) -> list[Figure]:
    """Of each policy: how often it succeeded, and how long a question took."""
    out = []
    for name in found.names:
        own, latency = found.of(name), found.latency(name)
        rate = own[0].rate if len(own) == 1 else None
        shown, of = (share(rate.rate), rate.text) if rate else (share(found.mean(name)), f"mean of {found.tasks} tasks")
        out += [
            (f"success, {name}", shown, of),
            (f"a question, p50, {name}", ms(latency.p50 if latency else None), name),
        ]
    return out


def _slowest(best: View | None, one: Loaded) -> Figure:
    """The p99 of the fastest form: of its thousand calls where the record has them, else of its own samples."""
    many = [view for view in rows_of([one], "percentiles") if view.latency]
    row = next((view for view in many if best and view.form and view.form == best.form), best)
    latency = row.latency if row else None
    if latency is None:
        return "slowest seen", NONE, "nothing was timed"
    name = "slowest seen" if latency.p99_is_max else "slowest in a hundred"
    return name, ms(latency.p99), counted(len(latency.samples), "sample")


def _of_whole_calls(one: Loaded) -> list[Figure]:
    """The latency from numpy to numpy; nothing where every row of the measuring run was timed so."""
    if any(view.result.subject == REQUEST for view in rivals(one)):
        return []
    row = next((view for view in rows_of([one], "request") if view.latency), None)
    return [("from numpy to numpy", ms(row.p50 if row else None), row.label if row else "not measured")]


def _of_building(requests: Sequence[View]) -> list[Figure]:
    built = [(view.label, view.result.build) for view in requests if view.result.build]
    sized = [(f"{ms(made.engine_bytes / 1e6, 'MB')}", name) for name, made in built if made.engine_bytes is not None]
    timed = [(ms(made.seconds, "s"), name) for name, made in built if made.seconds is not None]
    size, seconds = next(iter(sized), (NONE, "none was built")), next(iter(timed), (NONE, "nothing was built"))
    return [("engines", *size), ("build time", *seconds)]


def warnings(loaded: Sequence[Loaded]) -> list[Note]:
    """What makes figures unfit to be quoted."""
    out = []
    for one in loaded:
        record = one.record
        if record.git.dirty:
            out.append((one.name, "taken with uncommitted changes: its commit does not reproduce it"))
        elif record.git.commit is None:
            out.append((one.name, "taken outside a checkout: there is no commit to reproduce it with"))
        if record.exit_reason is None:
            out.append((one.name, "the run has not ended, or was killed: figures are missing"))
        elif record.exit_reason not in ("done", "gate failed", "a row failed"):
            out.append((one.name, f"the run ended early: {record.exit_reason}"))
        if record.drift and record.drift.drifted:
            out.append((one.name, drift_text(record)))
        if record.telemetry and record.telemetry.throttle_reasons:
            out.append((one.name, f"the GPU's clocks were held down: {', '.join(record.telemetry.throttle_reasons)}"))
        for view in one.views:
            if view.result.passed is False:
                why = "; ".join(view.result.failures) or "no reason is given"
                about = f"{_judged(view)}: " if view.result.group == "comparison" else ""
                out.append((one.name, f"outside its accuracy gate: {about}{why}"))
    for what, values in (
        ("models", {one.record.model.path for one in loaded}),
        ("machines", {one.machine for one in loaded}),
        (
            "work",
            {(i.views, i.batch_size, i.denoising_steps, i.sequence_length) for i in (o.record.inputs for o in loaded)},
        ),
        ("torch versions", {one.record.environment.distributions.get("torch") for one in loaded}),
    ):
        if len(values) > 1:
            out.append(("these records", f"are of different {what}: their latencies are not one comparison"))
    return out


def not_measured(one: Loaded) -> list[Note]:
    """What this record does not answer, and why; the same reason is told once for all it holds for."""
    record = one.record
    reasons = grouped(
        (view.reason, f"{view.what}: {view.step if view.measured else view.label}")
        for view in (*listed([one]), *rows_of([one]))
        if view.reason is not None
    )
    out = [(several(what), f"no latency: {why}") for why, what in reasons.items()]
    out += [(note.what, note.why or "") for note in record.skipped]
    lost = [f"{entry.at} was {entry.value}" for entry in record.non_finite]
    if lost:
        out.append(("not a number", f"{several(lost)}, and is shown as –"))
    absent = (
        (record.measured, "waterfall, share of the roofline", "this record is not of a measuring run"),
        (record.of("comparison"), "other backends on the same inputs", "this record is not of a run with --compare"),
        (record.on_gpu, "anything on a GPU", "the model ran on the CPU"),
    )
    return out + [(what, why) for known, what, why in absent if not known]


def subtitle(one: Loaded) -> str:
    """What ran on what, in one line."""
    record, given = one.record, one.record.inputs
    names = record.setting("optimizations")
    parts: Iterable[str | None] = (
        record.model.path,
        "restructured model" if names and not record.measured else None,
        record.setting("precision"),
        one.machine,
        counted(given.views, "view"),
        told("batch {}", given.batch_size),
        counted(given.denoising_steps, "step"),
    )
    return " · ".join(str(part) for part in parts if part)
