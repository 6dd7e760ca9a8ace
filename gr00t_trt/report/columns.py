"""The figures of a result: each is one column, and every table is a list of columns. Never imports torch.

A new figure is a field of `record.schema`, a row of `COLUMNS`, and its key in each of the `tables` that should show it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..record.numbers import cosine, digits, gate, percent, small
from ..record.result import REQUEST, Build, Quantized, Result, Status
from ..record.samples import Samples
from .views import View, grouped

DASH = "-"
NO_WINNER = "no winner: too few samples, or the spreads (p10 to p90) overlap"
IDLE = "built, and cannot run on this machine: it has no latency"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: As a terminal shows it; a dash for what is not known.
        value: The number behind it, which is sorted by.
        mark: ``pass``, ``FAIL``, ``best``, ``doubtful``, ``max`` (a p99 of fewer than 100 samples), ``built`` (an
            engine that cannot run), ``strong``, or nothing.
        notes: Sentences about it.
    """

    text: str = DASH
    value: float | None = None
    mark: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """A table before it is written.

    Attributes:
        heads: One per column. texts: How many of the first are text, aligned at the left.
        stacked: Column -> the column under whose cells its own stand where the table would be too wide.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int = 1
    stacked: Mapping[int, int] | None = None

    def filled(self) -> Table:
        """The table without the columns that are empty in every row."""
        told = [
            any(row[i].text not in (DASH, "") and row[i].mark != "built" for row in self.rows)
            for i in range(len(self.heads))
        ]
        kept = [i for i, says in enumerate(told) if says or i < self.texts]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return replace(self, heads=tuple(self.heads[i] for i in kept), rows=rows, stacked=None)

    def absent(self) -> list[str]:
        """The heads of the columns that `filled` leaves out."""
        return [head for head in self.heads if head not in self.filled().heads]


@dataclass(frozen=True)
class Column:
    """One figure of a result; `under`: the key under whose cells it stands in a narrow terminal."""

    head: str
    get: Callable[[View], Cell]
    under: str | None = None


def number(value: float | None, scale: float = 1.0, **more: Any) -> Cell:
    shown = None if value is None else value * scale
    return Cell(digits(shown), shown, **more)


def median(latency: Samples | None) -> Cell:
    return number(latency.p50 if latency else None)


def _latency(view: View, percentile: str) -> Cell:
    latency = view.latency
    if latency is None:
        return Cell(mark="built" if view.result.status is Status.BUILT_NOT_RUN else "")
    if percentile == "p90" and len(latency.samples) < 2:
        return Cell()  # one sample has no spread
    few, best = percentile == "p99" and latency.p99_is_max, percentile == "p50" and view.result.best
    return number(getattr(latency, percentile), mark="max" if few else "best" if best else "")


def _tail(view: View) -> Cell:
    latency = view.latency
    if latency is None or latency.p99_is_max or not latency.p50:
        return Cell()
    return Cell(f"{latency.p99 / latency.p50:.2f}", latency.p99 / latency.p50)


def _speed_up(view: View) -> Cell:
    if view.result.status is Status.BUILT_NOT_RUN:
        why = "built, not run: what was built cannot run on this machine, so it has no latency"
        return Cell(mark="built", notes=(why,))
    if view.ratio is None:
        return Cell()
    shown = Cell(f"{view.ratio:.2f}x", view.ratio)
    return replace(shown, mark="doubtful", notes=(NO_WINNER,)) if view.doubtful else shown


def _built(get: Callable[[Build], Cell]) -> Callable[[View], Cell]:
    return lambda view: Cell() if view.result.build is None else get(view.result.build)


def _seconds(build: Build) -> Cell:
    return Cell("cached", None if build.seconds is None else 0.0) if build.from_cache else number(build.seconds)


def _layers(build: Build) -> Cell:
    before, after = build.layers_before, build.layers_after
    known = after if before is None else before
    return Cell() if known is None else Cell(f"{digits(before)} > {digits(after)}", known)


def _operators(build: Build) -> Cell:
    known = float(build.converted or 0)
    return Cell() if build.operators is None else Cell(f"{build.converted} of {build.operators}", known)


def _cosine(view: View) -> Cell:
    found = view.result.accuracy
    return Cell(cosine(found), found.cosine if found else None)


def _max_abs(view: View) -> Cell:
    value = view.result.accuracy.max_abs if view.result.accuracy else None
    return Cell(small(value), value)


def _gate(view: View) -> Cell:
    word = gate(view.result.passed)
    return Cell(word, mark="" if word == DASH else word)


def _roofline(view: View) -> Cell:
    return Cell() if view.share is None else Cell(f"{view.share:.1f} %", view.share)


def _work(what: str, scale: float = 1.0) -> Callable[[View], Cell]:
    return lambda view: number(getattr(view.result.work, what, None), scale)


def _launch(what: str) -> Callable[[View], Cell]:
    return lambda view: median(getattr(view.result.launch, what, None))


def _card(what: str) -> Callable[[View], Cell]:
    return lambda view: number(getattr(view.result.card, what, None))


def _quantized(get: Callable[[Quantized], Cell]) -> Callable[[View], Cell]:
    return lambda view: Cell() if view.result.quantized is None else get(view.result.quantized)


def _layers_in_format(found: Quantized) -> Cell:
    if found.layers is None:
        return Cell()
    reasons = grouped((why, name.partition("/")[2]) for name, why in found.kept.items())
    notes = tuple(f"in 16 bit, {why}: {', '.join(names)}" for why, names in reasons.items())
    return Cell(f"{found.layers} of {found.layers + len(found.kept)}", float(found.layers), notes=notes)


def _share(value: float | None, whole: float | None) -> Cell:
    part = 100 * value / whole if value is not None and whole else None
    return Cell() if part is None else Cell(f"{part:.1f} %", part)


def _engine_share(view: View) -> Cell:
    built, found = view.result.build, view.result.quantized
    return _share(built.engine_bytes if built else None, found.half_bytes if found else None)


def _noisiest(found: Quantized) -> Cell:
    if not found.sqnr_db:
        return Cell()
    name, least = min(found.sqnr_db.items(), key=lambda item: item[1])
    return number(least, notes=(f"of its own output: {name.partition('/')[2]}",))


def remarks(result: Result) -> tuple[str, ...]:
    """What a table says of a result in sentences."""
    build = result.build
    out = list(result.notes)
    if build and build.unsupported:
        out.append(f"left to PyTorch: {', '.join(f'{op} ({count})' for op, count in build.unsupported.items())}")
    if build and (build.engines or 0) > 1 and result.subject != REQUEST:
        out.append(f"{build.engines} engines instead of one")
    return tuple(out)


def _notes(view: View) -> Cell:
    against = view.result.against
    texts = (view.why, against.text if against else None, *remarks(view.result))
    return Cell("; ".join(text for text in texts if text))


COLUMNS: Mapping[str, Column] = {
    "what": Column("what", lambda v: Cell(v.what)),
    "on": Column("on", lambda v: Cell(v.label)),
    "record": Column("record", lambda v: Cell(v.one.tag)),
    "group": Column("group", lambda v: Cell(v.result.group)),
    "step": Column("configuration", lambda v: Cell(v.step)),
    "submodule": Column("submodule", lambda v: Cell(v.what, notes=remarks(v.result))),
    "backend": Column("backend", lambda v: Cell(v.result.candidate.backend), "submodule"),
    "precision": Column("type", lambda v: Cell(v.result.candidate.precision or DASH), "submodule"),
    "calls": Column("calls", lambda v: number(len(v.latency.samples) if v.latency else None)),
    "p50": Column("p50 ms", lambda v: _latency(v, "p50")),
    "p90": Column("p90 ms", lambda v: _latency(v, "p90")),
    "p99": Column("p99 ms", lambda v: _latency(v, "p99")),
    "tail": Column("p99 ÷ p50", _tail),
    "baseline": Column("baseline ms", lambda v: median(v.baseline)),
    "speed_up": Column("speed-up", _speed_up),
    "coverage": Column("in engine", _built(lambda b: Cell(percent(b.coverage_percent), b.coverage_percent))),
    "operators_in": Column("operators in engine", _built(_operators)),
    "engines": Column("engines", _built(lambda b: number(b.engines))),
    "mb": Column("MB", _built(lambda b: number(b.engine_bytes, 1e-6)), "coverage"),
    "build": Column("build s", _built(_seconds)),
    "layers": Column("layers", _built(_layers)),
    "peak": Column("peak MB", lambda v: number(v.result.peak_bytes and round(v.result.peak_bytes / 1e6))),
    "cosine": Column("cosine", _cosine),
    "max_abs": Column("max abs", _max_abs, "cosine"),
    "gate": Column("gate", _gate),
    "roofline": Column("of roofline", _roofline),
    "roofline_ms": Column("roofline ms", lambda v: number(v.result.roofline.ms if v.result.roofline else None)),
    "gflop": Column("GFLOP", _work("gflop")),
    "moved": Column("MB moved", _work("bytes", 1e-6)),
    "operators": Column("operators", _work("operators")),
    "per_step": Column("in a step", _work("operators_per_step")),
    "kernels": Column("kernels", _work("kernels")),
    "kernel_ms": Column("ms in them", _work("kernel_ms")),
    "first_kernel": Column("first kernel ms", _work("first_kernel_ms")),
    "last_kernel": Column("last kernel ms", _work("last_kernel_ms")),
    "gaps": Column("gaps ms", _work("gaps_ms")),
    "host": Column("host µs", lambda v: number(v.result.launch.host_us if v.result.launch else None)),
    "event": Column("its graph ms", _launch("event_ms")),
    "replay": Column("back to back ms", _launch("replay_ms")),
    "card": Column("GPU", lambda v: Cell((v.result.card.name if v.result.card else None) or DASH)),
    "clock": Column("MHz", _card("sm_clock_mhz")),
    "watts": Column("W", _card("power_w")),
    "in_format": Column("layers", _quantized(_layers_in_format)),
    "in_format_percent": Column("of weights", _quantized(lambda q: _share(q.percent, 100.0)), "in_format"),
    "weights_mb": Column("weights MB", _quantized(lambda q: number(q.weight_bytes, 1e-6))),
    "weights_share": Column("of 16 bit", _quantized(lambda q: _share(q.weight_bytes, q.half_bytes)), "weights_mb"),
    "engine_mb": Column("engine MB", _built(lambda b: number(b.engine_bytes, 1e-6))),
    "engine_share": Column("of 16 bit", _engine_share, "engine_mb"),
    "sqnr": Column("stage dB", lambda v: number(v.result.accuracy.sqnr_db if v.result.accuracy else None)),
    "noisiest": Column("worst layer", _quantized(_noisiest), "sqnr"),
    "notes": Column("notes", _notes),
}
"""Key -> figure."""

WORK = ("gflop", "moved", "operators", "per_step", "kernels", "kernel_ms", "gaps")
LAUNCH = ("host", "event", "replay")


def table(title: str, views: Iterable[View], keys: Sequence[str], *, texts: int = 1, **heads: str) -> Table:
    """One row per view.

    Args:
        heads: Other heads than the columns' own, by key.
    """
    place = {key: i for i, key in enumerate(keys)}
    stacked = {i: place[under] for key, i in place.items() if (under := COLUMNS[key].under) in place}
    rows = tuple(tuple(COLUMNS[key].get(view) for key in keys) for view in views)
    return Table(title, tuple(heads.get(key, COLUMNS[key].head) for key in keys), rows, texts, stacked)
