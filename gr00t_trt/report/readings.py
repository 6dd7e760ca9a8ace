"""What records say was tried, how fast it was and how exact: one `Reading` each, whatever list it stands in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..plans.schema import SUBMODULES
from ..record.records import WHOLE_REQUEST, on_gpu
from .intake import Loaded
from .names import OUTSIDE, alone, form, in_its_group, is_between
from .timings import Timing, timing

WHOLE = WHOLE_REQUEST
BUILT_NOT_RUN = "built, not run: its engine cannot run on this machine"

ORDER = (WHOLE, *SUBMODULES)
SAME_WORK = ("waterfall", "compile")
"""Groups of measurements whose rows all do the same work, so that their latencies may be held against each other."""


@dataclass(frozen=True)
class Reading:
    """One thing that was tried; what is not known is None.

    Attributes:
        record: Name of the record.
        place: Of the record among those of the page, from 0.
        subject: A submodule, `WHOLE`, or for a measurement its group.
        backend: As in the record; ``eager`` for the baseline; empty for a measurement, whose label says what ran.
        label: What sets it apart from others of its subject: backend and precision, or a measurement's name, as it is
            read alone.
        step: Of a measurement: its name beside the rows before it.
        form: Of a measurement: the form of the model.
        of: Of a measurement: what was timed, as in the record's settings.
        between: It is a step of the waterfall on the way to all optimisations.
        eager: Of a measurement: the plain model in eager PyTorch, timed in turn with it.
        why_not: Why there is no latency, when there is none.
        ratio: Median of the baseline over this one's.
        kernel_ms: What its kernels take on a GPU, without what lies between them.
        busiest: Those that take the most: name, launches, ms.
    """

    record: str
    place: int
    subject: str
    backend: str
    precision: str | None
    label: str
    timing: Timing | None
    eager: Timing | None = None
    step: str | None = None
    form: str | None = None
    of: str | None = None
    between: bool = False
    why_not: str | None = None
    ratio: float | None = None
    winner: str | None = None
    verdict: str | None = None
    build_s: float | None = None
    engine_bytes: float | None = None
    layers_before: float | None = None
    layers_after: float | None = None
    coverage_percent: float | None = None
    peak_bytes: float | None = None
    cosine: float | None = None
    exact: bool | None = None
    max_abs: float | None = None
    passed: bool | None = None
    stages: Mapping[str, float] | None = None
    roofline_ms: float | None = None
    roofline_percent: float | None = None
    gflop: float | None = None
    operators_per_step: float | None = None
    kernels: float | None = None
    kernel_ms: float | None = None
    busiest: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def distance(self) -> float | None:
        """1 - cosine; 0 for equal results, whose cosine rounding may have left a hair from 1."""
        return None if self.cosine is None else 0.0 if self.exact else max(0.0, 1.0 - self.cosine)


def readings(loaded: Iterable[Loaded]) -> list[Reading]:
    """Of all records, by subject in the order in which a request passes through them, the whole request first."""
    every = [reading for place, one in enumerate(loaded) for reading in _of_record(one, place)]
    rank = {subject: i for i, subject in enumerate(ORDER)}
    return sorted(every, key=lambda reading: rank.get(reading.subject, len(rank)))


def measurements(loaded: Iterable[Loaded], *groups: str) -> list[Reading]:
    """The rows of measuring runs, of these groups or all, in the order of the records."""
    return [
        _measured(one.name, place, row)
        for place, one in enumerate(loaded)
        for row in one.record["measurements"]
        if not groups or (row["group"] or "") in groups
    ]


def rivals(rows: Iterable[Reading], measured: Iterable[Reading]) -> list[Reading]:
    """The readings of one record that did the same work and were timed: whole requests, or where there are none, the
    configurations of a measuring run, which may leave out the way to the device and back. Of its optimisations, all or
    none.
    """
    whole = [row for row in rows if row.subject == WHOLE and row.timing]
    return whole or [row for row in measured if row.subject in SAME_WORK and row.timing and not row.between]


def in_short(measured: Iterable[Reading]) -> list[Reading]:
    """The rows that sum a measuring run up: eager, all optimisations and what came on top, and the whole request."""
    groups = ("waterfall", "percentiles", "request")
    return [row for row in measured if row.subject in groups and row.timing and not row.between]


def outside_gate(row: Mapping[str, Any]) -> list[str]:
    """What its accuracy gate holds against an entry of a record's `measurements`."""
    return [note for note in row["notes"] if note.startswith(OUTSIDE)]


def is_measuring_run(record: Mapping[str, Any]) -> bool:
    """Whether it holds the rows of a measuring run alone, each of which is of a form of its own."""
    return bool(record["measurements"]) and not record["submodules"] and not record["comparison"]


def is_gpu(one: Loaded) -> bool:
    return on_gpu(one.record)


def machine(one: Loaded) -> str:
    """What the model ran on: the GPU, or the CPU and its cores."""
    known = one.record["environment"]
    if is_gpu(one):
        return known["gpu"] or known["board"] or "GPU"
    return f"{known['cpu'] or 'CPU'}, {known['cpu_cores'] or '?'} cores"


def ran_restructured(one: Loaded) -> bool:
    return bool(one.record["plan"]["optimisations"])


def _of_record(one: Loaded, place: int) -> list[Reading]:
    compared = [_compared(one, place, row) for row in one.record["comparison"]]
    seen = {(row["subject"], row["backend"], row["precision"]) for row in one.record["comparison"]}
    single = [reading for entry in one.record["submodules"] for reading in _submodule(one, place, entry)]
    single += _request(one, place)
    return [*compared, *(own for own in single if (own.subject, own.backend, own.precision) not in seen)]


def _compared(one: Loaded, place: int, row: Mapping[str, Any]) -> Reading:
    taken = timing(row["latency_ms"])
    why = row["why_not"] or (None if taken else BUILT_NOT_RUN if row["runs"] is False else "not measured")
    return Reading(
        record=one.name,
        place=place,
        subject=row["subject"],
        backend=row["backend"] or "",
        precision=row["precision"],
        label=_label(row["backend"], row["precision"]),
        timing=taken,
        why_not=None if taken else why,
        **_verdict(row["verdict"]),
        **{
            name: row[name]
            for name in (
                *("build_s", "engine_bytes", "layers_before", "layers_after", "coverage_percent", "peak_bytes"),
                "passed",
            )
        },
        **_accuracy(row["accuracy"]),
        notes=tuple(row["notes"]),
    )


def _submodule(one: Loaded, place: int, entry: Mapping[str, Any]) -> list[Reading]:
    precision, backend = entry["precision"], entry["backend"] or ""
    known: dict[str, Any] = {"record": one.name, "place": place, "subject": entry["name"], "precision": precision}
    eager, compiled = timing(entry["eager_latency_ms"]), timing(entry["latency_ms"])
    out = []
    if eager and backend != "eager":
        out.append(Reading(**known, backend="eager", label=_label("eager", precision), timing=eager))
    taken = compiled or (eager if backend == "eager" else None)
    why = BUILT_NOT_RUN if entry["runs"] is False else "not measured"
    notes = list(entry["notes"])
    if (entry["engines"] or 0) > 1:
        notes.append(f"{entry['engines']} engines instead of one")
    out.append(
        Reading(
            **known,
            backend=backend,
            label=_label(backend, precision),
            timing=taken,
            why_not=None if taken else why,
            **_verdict(entry["verdict"]),
            build_s=entry["build_s"] if backend != "eager" else None,
            engine_bytes=entry["engine_bytes"],
            coverage_percent=entry["coverage_percent"],
            passed=entry["passed"],
            **_accuracy(entry["accuracy"]),
            notes=tuple(notes),
        )
    )
    return out


def _request(one: Loaded, place: int) -> list[Reading]:
    record, whole, plan = one.record, one.record["end_to_end"], one.record["plan"]
    known: dict[str, Any] = {
        "record": one.name, "place": place, "subject": WHOLE, "precision": plan["precision"]
    }  # fmt: skip
    used = {entry["backend"] for entry in record["submodules"]} or {plan["backend"]}
    backend = "mixed" if len(used) > 1 else next(iter(used)) or ""
    eager, compiled = timing(whole["eager_latency_ms"]), timing(whole["latency_ms"])
    # Of a restructured model the baseline is the plain one.
    forms = (", plain model", ", restructured") if ran_restructured(one) else ("", "")
    out = []
    if eager:
        label = _label("eager", plan["precision"]) + forms[0]
        out.append(Reading(**known, backend="eager", label=label, timing=eager))
    is_the_baseline = backend == "eager" and not ran_restructured(one) and eager is not None
    if is_the_baseline or not (compiled or record["submodules"]):
        return out
    runs = all(entry["runs"] is not False for entry in record["submodules"])
    built = [entry for entry in record["submodules"] if entry["backend"] != "eager"]
    candidate = Reading(
        **known,
        backend=backend,
        label=_label(backend, plan["precision"]) + forms[1],
        timing=compiled,
        why_not=None if compiled else "not measured" if runs else BUILT_NOT_RUN,
        **_verdict(whole["verdict"]),
        build_s=_sum(entry["build_s"] for entry in built),
        engine_bytes=_sum(entry["engine_bytes"] for entry in built),
        passed=record["accuracy"]["passed"],
        **_accuracy(record["accuracy"]["normalised"]),
    )
    return [*out, candidate]


def _measured(record: str, place: int, row: Mapping[str, Any]) -> Reading:
    taken, roofline, work = timing(row["latency_ms"]), row["roofline"] or {}, row["work"] or {}
    return Reading(
        record=record,
        place=place,
        subject=row["group"] or "measurement",
        backend="",
        precision=None,
        label=alone(row),
        step=in_its_group(row),
        form=form(row),
        of=(row["settings"] or {}).get("of"),
        between=is_between(row),
        timing=taken,
        eager=timing(row["eager_latency_ms"]),
        why_not=None if taken else row["why_not"] or "not measured",
        **_verdict(row["verdict"]),
        **_accuracy(row["accuracy"]),
        passed=None if row["accuracy"] is None else not outside_gate(row),
        stages={name: ms for name, ms in (row["stages"] or {}).items() if ms is not None} or None,
        roofline_ms=roofline.get("ms"),
        roofline_percent=roofline.get("percent"),
        gflop=work.get("gflop"),
        operators_per_step=work.get("operators_per_step"),
        kernels=work.get("kernels"),
        kernel_ms=work.get("kernel_ms"),
        busiest=tuple(work.get("busiest_kernels") or ()),
        notes=tuple(row["notes"]),
    )


def _label(backend: str | None, precision: str | None) -> str:
    return " ".join(part for part in (backend, precision) if part) or "unnamed"


def _verdict(given: Mapping[str, Any] | None) -> dict[str, Any]:
    given = given or {}
    return {"ratio": given.get("ratio"), "winner": given.get("winner"), "verdict": given.get("text")}


def _accuracy(given: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: (given or {}).get(name) for name in ("cosine", "exact", "max_abs")}


def _sum(values: Iterable[float | None]) -> float | None:
    """None when nothing, or not everything, is known: half a sum would pass for a whole one."""
    known = list(values)
    return None if not known or None in known else sum(value for value in known if value is not None)
