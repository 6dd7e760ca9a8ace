"""The sentences of a page: what a record answers, what to be wary of, and what was not measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .figures import cosine, megabytes, share, short, speedup
from .intake import Loaded
from .readings import WHOLE, Reading, is_gpu, is_measuring_run, machine, outside_gate, ran_restructured, rivals
from .timings import Timing

Note = tuple[str, str]
"""What it is about, and the sentence."""

Figure = tuple[str, str, str]
"""Name, value, and what it is of."""


def answer(one: Loaded, rows: Sequence[Reading], measured: Sequence[Reading]) -> str:
    """Which backend serves a request fastest here, or that no engine has run, and whether the gates hold.

    Args:
        rows, measured: The readings of this record alone.
    """
    tried = rivals(rows, measured)
    engines = sum(1 for row in rows if row.engine_bytes is not None and row.subject != WHOLE)
    ran = any(row.timing and row.engine_bytes is not None for row in rows)
    sentences = []
    if engines and not ran:
        many = "engines were" if engines > 1 else "engine was"
        sentences.append(f"No engine has run on this machine: {engines} {many} built and not timed.")
    if len(tried) > 1:
        sentences.append(_fastest(tried))
    elif tried:
        only = tried[0]
        sentences.append(f"Only {only.label} was timed: p50 {short(only.timing.p50 if only.timing else None, 'ms')}.")
    else:
        sentences.append("No request was timed.")
    return " ".join([*sentences, _gates(one, measured)])


def _fastest(tried: Sequence[Reading]) -> str:
    ranked = _ranked(tried)
    if not ranked or ranked[0].timing is None:
        return "Nothing that was timed is within its accuracy gate."
    best, taken = ranked[0], ranked[0].timing
    rate = f", {short(taken.hz)} requests a second" if taken.hz else ""
    text = f"Fastest here: {best.label}, p50 {short(taken.p50, 'ms')}{rate}{'; ' if best.verdict else ''}"
    text += f"{best.verdict or ''}."
    level = [row.label for row in ranked[1:] if row.timing and _level(taken, row.timing)]
    if best.roofline_percent is not None:
        text += f" That is {share(best.roofline_percent)} of the roofline: of what the hardware allows."
    if level:
        text += f" Level with it, as the spreads overlap or are not known: {several(level)}."
    return text


def _ranked(tried: Sequence[Reading]) -> list[Reading]:
    """Those within their gate, the fastest first."""
    fit = [row for row in tried if row.passed is not False]
    return sorted(fit, key=lambda row: row.timing.p50 if row.timing else 0.0)


def _gates(one: Loaded, measured: Sequence[Reading]) -> str:
    record = one.record
    judged = [(entry["name"], entry["passed"]) for entry in record["submodules"]]
    judged += [(f"{row['subject']} on {row['backend'] or 'unnamed'}", row["passed"]) for row in record["comparison"]]
    judged += [(row.label, row.passed) for row in measured]
    judged += [("the actions", record["accuracy"]["passed"])]
    known = [(name, passed) for name, passed in judged if passed is not None]
    failed = [name for name, passed in known if not passed]
    if not known:
        return "Nothing was held against an accuracy gate."
    if failed:
        return f"{len(failed)} of {len(known)} accuracy checks FAIL: {several(failed)}."
    return f"All {len(known)} accuracy checks pass." if len(known) > 1 else "The accuracy check passes."


def _level(a: Timing, b: Timing) -> bool:
    """Whether two spreads, p10 to p90, touch; unknown spreads do."""
    if a.p10 is None or a.p90 is None or b.p10 is None or b.p90 is None:
        return True
    return a.p10 <= b.p90 and b.p10 <= a.p90


def key_figures(one: Loaded, rows: Sequence[Reading], measured: Sequence[Reading]) -> list[Figure]:
    """The figures to look at first."""
    ranked = _ranked(rivals(rows, measured))
    best = ranked[0] if ranked else None
    taken = best.timing if best else None
    requests = [*([best] if best else []), *(row for row in rows if row.subject == WHOLE)]
    checked = next((row for row in requests if row.cosine is not None), None)
    same_work = [row for row in rivals((), measured) if row.roofline_percent is not None]
    roof = best if best in same_work else max(same_work, key=lambda row: row.roofline_percent or 0.0, default=None)
    ratio = best.ratio if best else None
    doubt = "" if best is None or best.winner else ", no clear winner"
    peak = one.record["peak_memory"]
    return [
        ("one request, p50", short(taken.p50 if taken else None, "ms"), best.label if best else "nothing was timed"),
        ("requests a second", short(taken.hz if taken else None), best.label if best else "nothing was timed"),
        _slowest(best, measured),
        ("against eager", speedup(ratio), "nothing to compare" if ratio is None else f"median over median{doubt}"),
        ("cosine of the actions", cosine(checked.cosine, checked.exact) if checked else cosine(None, None),
         f"{checked.label}, to eager fp32" if checked else "not compared"),
        ("share of the roofline", share(roof.roofline_percent if roof else None),
         roof.label if roof else "not computed"),
        *(_of_whole_calls(measured) if is_measuring_run(one.record) else _of_building(requests)),
        ("peak memory", short(None if peak["peak_bytes"] is None else peak["peak_bytes"] / 1e9, "GB"),
         peak["kind"] or "not measured"),
    ]  # fmt: skip


def _slowest(best: Reading | None, measured: Sequence[Reading]) -> Figure:
    """The p99 of the fastest: of the thousand calls where they were of the same form, else of its own."""
    many = [row for row in measured if row.subject == "percentiles" and row.timing]
    row = next((row for row in many if best and row.form and row.form == best.form), best)
    if row is None or row.timing is None:
        return "slowest seen", short(None, "ms"), "nothing was timed"
    name = "slowest seen" if row.timing.p99_is_max else "slowest in a hundred"
    return name, short(row.timing.p99, "ms"), _count(row.timing.count)


def _of_whole_calls(measured: Sequence[Reading]) -> list[Figure]:
    """A measuring run writes no engines; what it tells besides is the way from the robot and back, where that is no
    part of every call.
    """
    if any(row.of == "request" for row in rivals((), measured)):
        return []
    row = next((row for row in measured if row.subject == "request" and row.timing), None)
    taken = row.timing if row else None
    return [("from numpy to numpy", short(taken.p50 if taken else None, "ms"), row.label if row else "not measured")]


def _of_building(requests: Sequence[Reading]) -> list[Figure]:
    sized = next((row for row in requests if row.engine_bytes is not None), None)
    built = next((row for row in requests if row.build_s is not None and row.backend != "eager"), None)
    return [
        ("engines", megabytes(sized.engine_bytes if sized else None) + ("\u00a0MB" if sized else ""),
         sized.label if sized else "none was built"),
        ("build time", short(built.build_s if built else None, "s"), built.label if built else "nothing was built"),
    ]  # fmt: skip


def warnings(loaded: Sequence[Loaded]) -> list[Note]:
    """What makes a figure unfit to be quoted, loudly."""
    out = []
    for one in loaded:
        record = one.record
        if record["git"]["dirty"]:
            out.append((one.name, "taken with uncommitted changes: its commit does not reproduce it"))
        elif record["git"]["commit"] is None:
            out.append((one.name, "taken outside a checkout: there is no commit to reproduce it with"))
        if record["exit_reason"] is None:
            out.append((one.name, "the run has not ended, or was killed: figures are missing"))
        elif record["exit_reason"] not in ("done", "gate failed", "a row failed"):
            out.append((one.name, f"the run ended early: {record['exit_reason']}"))
        failures = [text for entry in record["submodules"] for text in entry["failures"]]
        failures += record["accuracy"]["failures"]
        failures += [
            f"{row['subject']} on {row['backend'] or 'unnamed'}: {'; '.join(row['failures']) or 'no reason is given'}"
            for row in record["comparison"]
            if row["passed"] is False
        ]
        out += [(one.name, note) for row in record["measurements"] for note in outside_gate(row)]
        out += [(one.name, f"outside its accuracy gate: {text}") for text in failures]
    for what, values in (
        ("models", {one.record["model"]["path"] for one in loaded}),
        ("machines", {machine(one) for one in loaded}),
        ("work", {_work(one) for one in loaded}),
        ("torch versions", {(one.record["environment"]["distributions"] or {}).get("torch") for one in loaded}),
    ):
        if len(values) > 1:
            out.append(("these records", f"are of different {what}: their latencies are not one comparison"))
    return out


def _work(one: Loaded) -> tuple[object, ...]:
    known = one.record["workload"]
    return tuple(known[key] for key in ("views", "batch_size", "denoising_steps", "sequence_length"))


def not_measured(one: Loaded, rows: Iterable[Reading], measured: Iterable[Reading]) -> list[Note]:
    """What this record does not answer, and why; the same reason is told once for all it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in (*rows, *measured):
        if row.timing is None and row.why_not:
            # How much time was left differs from row to row, and stands in the table.
            why = "there was no time left for it" if row.why_not.startswith("no time") else row.why_not
            reasons.setdefault(why, []).append(f"{row.subject}: {row.step or row.label}")
    out = [(several(what), f"no latency: {why}") for why, what in reasons.items()]
    out += [(entry["what"] or "", entry["why"] or "") for entry in one.record["skipped"]]
    lost = [f"{entry['at']} was {entry['value']}" for entry in one.record["non_finite"]]
    if lost:
        out.append(("not a number", f"{several(lost)}, and is shown as –"))
    if not one.record["measurements"]:
        out.append(("waterfall, share of the roofline", "this record is not of a measuring run"))
    if not one.record["comparison"]:
        out.append(("other backends on the same inputs", "this record is not of a run with --compare"))
    if not is_gpu(one):
        out.append(("anything on a GPU", "the model ran on the CPU"))
    return out


def _count(samples: int) -> str:
    return "1 sample" if samples == 1 else f"{samples} samples"


def several(texts: Sequence[str], most: int = 8) -> str:
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def subtitle(one: Loaded) -> str:
    """What ran on what, in one line."""
    record = one.record
    work = record["workload"]
    named = (
        ("views", "{} view", "{} views"),
        ("batch_size", "batch {}", "batch {}"),
        ("denoising_steps", "{} step", "{} steps"),
    )
    restructured = ran_restructured(one) and not is_measuring_run(record)
    parts = [record["model"]["path"], "restructured model" if restructured else None]
    parts += [record["plan"]["precision"], machine(one)]
    parts += [(a if work[key] == 1 else b).format(work[key]) for key, a, b in named if work[key] is not None]
    return " · ".join(part for part in parts if part)
