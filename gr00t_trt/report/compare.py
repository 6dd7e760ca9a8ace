"""A comparison of backends in a terminal: who is fastest at what, what it cost, and what could not be run. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from ..record.numbers import cosine, digits, gate, megabytes, p50, percent
from ..record.records import WHOLE_REQUEST

Entry = Mapping[str, Any]
Mark = Callable[..., str]
"""Sentences -> the numbers of their footnotes."""

NOT_RUN = "built, and cannot run on this machine: it has no latency"


def tables(entries: Sequence[Entry], mark: Mark) -> list[Text | Table]:
    """Latencies side by side, the whole request, and what each submodule cost by each backend.

    Args:
        entries: A record's `comparison`, as its file has it.
    """
    parts = [e for e in entries if e["subject"] != WHOLE_REQUEST]
    whole = [e for e in entries if e["subject"] == WHOLE_REQUEST]
    return [
        Text("\nEach submodule by each backend, p50 in ms, timed in turn on the same inputs (*: fastest beyond doubt)"),
        _latencies(parts, mark),
        Text("\nThe whole request, observation to actions"),
        _requests(whole, mark),
        Text("\nWhat each submodule took; memory is what came on top of what was in use, cosine is to eager fp32"),
        _costs(parts, mark),
    ]


def _latencies(entries: Sequence[Entry], mark: Mark) -> Table:
    backends = list(dict.fromkeys(e["backend"] for e in entries))
    table = _table()
    table.add_column("submodule", no_wrap=True)
    for backend in backends:
        table.add_column(backend, justify="right", no_wrap=True)
    for subject, own in _by_subject(entries):
        cells = {e["backend"]: _latency(e, mark) for e in own}
        table.add_row(subject, *(cells.get(backend, Text("")) for backend in backends))
    return table


def _latency(entry: Entry, mark: Mark) -> Text:
    if entry.get("why_not"):
        return Text("-")
    if entry.get("runs") is False:
        return Text(f"built {mark(NOT_RUN)}")
    if entry.get("passed") is False:
        return Text(f"{p50(entry.get('latency_ms'))} FAIL", style="bold red")
    if entry.get("best"):
        return Text(f"{p50(entry.get('latency_ms'))} *", style="bold green")
    return Text(p50(entry.get("latency_ms")))


def _requests(entries: Sequence[Entry], mark: Mark) -> Table:
    table = _table()
    table.add_column("backend", no_wrap=True)
    for head in (
        "p50\nms",
        "p90\nms",
        "p99\nms",
        "against\neager",
        "build\ns",
        "engines\nMB",
        "peak\nMB",
        "cosine",
        "gate",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    explained = {
        "plain": "plain: the model as it was published, in eager PyTorch; eager: the model that is compiled here",
        "auto": "auto: for each submodule the backend that won there",
    }
    for e in entries:
        judged = e.get("verdict") or {}
        ratio = None if e["backend"] in ("plain", "eager") else judged.get("ratio")
        speed = "-" if ratio is None else f"{ratio:.2f}x"
        if ratio is not None and judged.get("winner") is None:
            speed += " " + mark("no winner: too few samples, or the spreads (p10 to p90) overlap")
        notes = [explained[e["backend"]]] if e["backend"] in explained else []
        notes += [NOT_RUN] if e.get("runs") is False else []
        latency = e.get("latency_ms") or {}
        star = " *" if e.get("best") else ""
        table.add_row(
            f"{e['backend']} {mark(*notes)}".rstrip(),
            digits(latency.get("p50")) + star,
            digits(latency.get("p90")),
            digits(latency.get("p99")),
            speed,
            digits(e.get("build_s")),
            megabytes(e.get("engine_bytes")),
            _whole_megabytes(e.get("peak_bytes")),
            cosine(e.get("accuracy") or {}),
            _gate(e),
        )
    return table


def _costs(entries: Sequence[Entry], mark: Mark) -> Table:
    table = _table()
    table.add_column("submodule\n  backend", no_wrap=True)
    for head in ("p99\nms", "build\ns", "engine\nMB", "layers", "in\nengine", "peak\nMB", "cosine", "gate"):
        table.add_column(head, justify="right", no_wrap=True)
    for subject, own in _by_subject(entries):
        table.add_row(Text(subject, style="bold"))
        for e in own:
            if e.get("why_not"):
                continue
            table.add_row(
                f"  {e['backend']} {mark(*(e.get('notes') or ()))}".rstrip(),
                digits((e.get("latency_ms") or {}).get("p99")),
                digits(e.get("build_s")),
                megabytes(e.get("engine_bytes")),
                _layers(e),
                percent(e.get("coverage_percent")),
                _whole_megabytes(e.get("peak_bytes")),
                cosine(e.get("accuracy") or {}),
                _gate(e),
            )
    return table


def _layers(entry: Entry) -> str:
    before, after = entry.get("layers_before"), entry.get("layers_after")
    return "-" if before is None and after is None else f"{digits(before)} > {digits(after)}"


def _whole_megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:.0f}"


def _gate(entry: Entry) -> Text:
    word = gate(entry.get("passed"))
    return Text(word, style={"pass": "green", "FAIL": "bold red"}.get(word, ""))


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0), header_style="bold")


def _by_subject(entries: Sequence[Entry]) -> Iterable[tuple[str, list[Entry]]]:
    for subject in dict.fromkeys(e["subject"] for e in entries):
        yield subject, [e for e in entries if e["subject"] == subject]


def lines(entries: Sequence[Entry], *, alone: bool) -> list[str]:
    """What missed a gate, and what could not be run and why, one line for each reason.

    Args:
        alone: The comparison is all there is; else a plan was chosen from it, and what missed a gate was ruled out.
    """
    word = "FAIL" if alone else "ruled out:"
    out = [f"{word} {e['backend']}: {failure}" for e in entries for failure in e.get("failures") or ()]
    reasons: dict[tuple[str, str], list[str]] = {}
    for e in entries:
        # The whole request fails for what one of its submodules failed for, and that is said there.
        if e.get("why_not") and e["subject"] != WHOLE_REQUEST:
            reasons.setdefault((e["backend"], e["why_not"]), []).append(e["subject"])
    everything = {e["subject"] for e in entries} - {WHOLE_REQUEST}
    for (backend, why), subjects in reasons.items():
        where = "" if set(subjects) == everything else f" ({', '.join(subjects)})"
        out.append(f"not run: {backend}{where}: {why}")
    return out


def judged(entries: Sequence[Entry]) -> list[tuple[str, bool]]:
    """What was held against a gate, and whether it passed."""
    return [(f"{e['subject']} by {e['backend']}", e["passed"]) for e in entries if e.get("passed") is not None]


def outcome(entries: Sequence[Entry]) -> str:
    """Which backend makes the fastest request, in one sentence."""
    whole = [e for e in entries if e["subject"] == WHOLE_REQUEST and e.get("latency_ms")]
    best = next((e for e in whole if e.get("best")), None)
    if best is not None:
        return f"Fastest whole request: {best['backend']}, p50 {p50(best['latency_ms'])} ms."
    if len(whole) > 1:
        return "No backend makes the fastest request beyond doubt: too few samples, or their spreads overlap."
    return "Only one backend could run the whole request here, so none is the fastest."
