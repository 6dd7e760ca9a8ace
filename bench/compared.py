"""The table of a record that compares backends: one line per submodule, the same four figures of every backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cells import cells, cosine, cost, number, quantile, title

WHOLE = "whole request"
FIGURES = ("build s", "MB", "layers", "p50 ms", "cosine to fp32")


def section(name: str, record: Mapping[str, Any], links: str) -> str:
    """Title, table and remarks of one record. Layers: of the network TensorRT is given, then of the engine."""
    entries = record["comparison"]
    backends = list(dict.fromkeys(entry["backend"] for entry in entries if entry["subject"] != WHOLE))
    subjects = list(dict.fromkeys(entry["subject"] for entry in entries))
    by_place = {(entry["subject"], entry["backend"]): entry for entry in entries}
    known = {backend: _known(by_place, subjects, backend) for backend in backends}
    heads = [f"{backend}: {figure}" for backend in backends for figure in known[backend]]
    lines = [
        title(name, record, links, ", backends side by side"),
        "",
        cells("submodule", *heads),
        "|---|" + "--:|" * len(heads),
        *(
            cells(subject, *(_figures(by_place.get((subject, b)))[f] for b in backends for f in known[b]))
            for subject in subjects
        ),
        "",
        cost(record),
        *_remarks(entries, backends),
    ]
    return "\n".join(lines)


def _known(by_place: Mapping[tuple[str, str], Mapping[str, Any]], subjects: list[str], backend: str) -> list[str]:
    """The figures that a backend has for any subject: an empty column tells nobody anything."""
    rows = [_figures(by_place.get((subject, backend))) for subject in subjects]
    return [figure for figure in FIGURES if any(row[figure] is not None for row in rows)]


def _figures(entry: Mapping[str, Any] | None) -> dict[str, str | None]:
    if entry is None:
        return dict.fromkeys(FIGURES)
    before, after = entry["layers_before"], entry["layers_after"]
    eager = entry["backend"] == "eager"  # builds nothing
    return {
        "build s": None if eager else number(entry["build_s"], 1, 1),
        "MB": number(entry["engine_bytes"], 1e-6, 0),
        "layers": None if before is None and after is None else f"{_or_dash(before)} → {_or_dash(after)}",
        "p50 ms": quantile(entry["latency_ms"], "p50"),
        "cosine to fp32": cosine(entry["accuracy"]),
    }


def _or_dash(value: object) -> object:
    return "–" if value is None else value


def _remarks(entries: list[Mapping[str, Any]], backends: list[str]) -> list[str]:
    idle = [b for b in backends if any(e["backend"] == b and e["runs"] is False for e in entries)]
    refused = dict.fromkeys(f"{e['backend']}, {e['subject']}: {e['why_not']}" for e in entries if e["why_not"])
    lines = [f"{' and '.join(idle)}: built and not run, so without a latency."] if idle else []
    return lines + [f"Not tried: {text}" for text in refused]
