"""Records of the first schema, in the shape of today's: four kinds of entries become results.

Works on what JSON holds and leaves checking it to `files.typed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import RecordError

Json = Any

_LISTS = ("submodules", "stages", "measurements", "comparison", "skipped")
_BUILD = (
    *("operators", "converted", "coverage_percent", "engines", "unsupported", "layers_before", "layers_after"),
    *("engine_bytes", "engine_path", "from_cache", "settings"),
)
_OUTSIDE = "outside the gate: "


def upgraded(old: Json, path: str) -> Json:
    """The same record in schema 2. Raises: RecordError for a list that is none."""
    for key in _LISTS:
        entries = old.get(key, [])
        if not isinstance(entries, list):
            raise RecordError(f"{path}: {key} is a {type(entries).__name__}", known="a list")
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise RecordError(f"{path}: {key}[{i}] is a {type(entry).__name__}", known="a mapping, or null")
    plan, accuracy = _spelled(old.get("plan")), _map(old.get("accuracy"))
    whole = _map(old.get("end_to_end"))
    entries, compared = old.get("submodules") or [], old.get("comparison") or []
    results = [_submodule(entry, plan) for entry in entries]
    if entries or whole.get("latency_ms") or whole.get("eager_latency_ms"):
        results.append(_request(whole, entries, accuracy, plan))
    results += [_compared(entry, compared, plan) for entry in compared]
    results += [_measured(entry, accuracy.get("gate")) for entry in old.get("measurements") or []]
    graph = whole.get("cuda_graph")
    if isinstance(graph, dict) and "strayed" in graph:
        graph = {**graph, "max_rel_error": graph["strayed"]}
    stages = [{**row, "baseline_ms": row.get("eager_latency_ms")} for row in old.get("stages") or []]
    moved = {
        "schema": 2,
        **({"plan": plan} if plan else {}),
        "inputs": old.get("workload"),
        "results": results,
        "stages": stages,
        "reference": accuracy.get("reference"),
        "per_key": accuracy.get("per_key") or {},
        "cuda_graph": graph,
    }
    return {**{key: value for key, value in old.items() if key != "accuracy"}, **moved}


def _submodule(entry: Json, plan: Mapping[str, Json]) -> Json:
    backend, latency, eager = entry.get("backend"), entry.get("latency_ms"), entry.get("eager_latency_ms")
    if backend == "eager" and latency is None:
        latency, eager = eager, None
    return {
        **_common(entry, latency),
        "group": "run",
        "name": backend,
        "subject": entry.get("name"),
        "candidate": _candidate(plan, backend, entry.get("precision")),
        "against": _against("stage", eager, entry.get("verdict"), {"compiled": backend}),
        "build": {**_build(entry), "phases_s": entry.get("build_phases_s"), "arguments": entry.get("shapes")},
    }


def _request(whole: Mapping[str, Json], entries: Json, accuracy: Mapping[str, Json], plan: Mapping[str, Json]) -> Json:
    latency, eager = whole.get("latency_ms"), whole.get("eager_latency_ms")
    used = {entry.get("backend") for entry in entries} or {plan.get("backend")}
    backend = "mixed" if len(used) > 1 else used.pop()
    runs = all(entry.get("runs") is not False for entry in entries)
    if backend == "eager" and not plan.get("optimizations") and latency is None:
        latency, eager = eager, None
    names = {"compiled": backend, "restructured": backend}
    return {
        **_common({**accuracy, "runs": runs, "accuracy": accuracy.get("normalised")}, latency),
        "group": "run",
        "name": backend,
        "subject": "request",
        "candidate": _candidate(plan, backend, plan.get("precision")),
        "against": _against("original", eager, whole.get("verdict"), names),
        "first_call_ms": whole.get("first_call_ms"),
    }


def _compared(entry: Json, every: Json, plan: Mapping[str, Json]) -> Json:
    subject, backend = entry.get("subject"), entry.get("backend")
    whole = subject == "whole request"
    beside = {e.get("backend"): e.get("latency_ms") for e in every if e.get("subject") == subject}
    # The first schema held whole requests against the restructured model in eager PyTorch; its sentence is kept only
    # where that was the original itself.
    original = "plain" if whole and "plain" in beside else "eager"
    reference = None if backend in (original, "plain") or entry.get("latency_ms") is None else beside.get(original)
    named, precision = {"plain": "original"}, entry.get("precision")
    told = entry.get("verdict") if original == "eager" else None
    return {
        **_common(entry, entry.get("latency_ms")),
        "group": "comparison",
        "name": named.get(backend, backend),
        "subject": "request" if whole else subject,
        "candidate": _candidate({}, "eager", precision) if backend == "plain" else _candidate(plan, backend, precision),
        "against": _against("original" if whole else "stage", reference, told, named),
        "build": _build(entry),
        "best": entry.get("best"),
        "peak_bytes": entry.get("peak_bytes"),
        "why": entry.get("why_not"),
    }


def _measured(entry: Json, gate: Json) -> Json:
    settings, group = _spelled(entry.get("settings")), entry.get("group") or "measurement"
    notes = entry.get("notes") or ()
    failures = [note.removeprefix(_OUTSIDE) for note in notes if str(note).startswith(_OUTSIDE)]
    kept = [note for note in notes if not str(note).startswith(_OUTSIDE)]
    passed = None if entry.get("accuracy") is None else not failures
    own = {"failures": failures, "passed": passed, "notes": kept, "gate": gate}
    latency, eager = entry.get("latency_ms"), entry.get("eager_latency_ms")
    baseline = "stage" if group == "submodules" else "original"
    alone = eager == latency and entry.get("verdict") is None
    sized = {key: settings.get(key) for key in ("views", "batch", "steps")}
    return {
        **_common({**entry, **own}, latency),
        "group": group,
        "name": entry.get("name"),
        "subject": settings.get("of") or group,
        "candidate": {
            **_candidate(settings, settings.get("backend"), None),
            **{key: settings.get(key) for key in ("mode", "dynamic", "graph")},
        },
        "workload": sized if settings else None,
        "against": None if alone else _against(baseline, eager, entry.get("verdict"), {"this": entry.get("name")}),
        "stages_ms": entry.get("stages"),
        "work": entry.get("work"),
        "roofline": entry.get("roofline"),
        "why": entry.get("why_not"),
    }


def _common(entry: Json, latency: Json) -> Json:
    same = {key: entry.get(key) for key in ("accuracy", "gate", "passed", "failures", "notes")}
    return {**same, "latency_ms": latency, "status": _status(entry, latency)}


def _status(entry: Json, latency: Json) -> str:
    why = str(entry.get("why_not") or "")
    if why:
        known = {"no time": "no_time", "not reached": "not_reached", "not available": "unavailable"}
        return next((status for start, status in known.items() if why.startswith(start)), "failed")
    if entry.get("runs") is False:
        return "built_not_run"
    return "measured" if latency else "checked"


def _candidate(plan: Mapping[str, Json], backend: Json, precision: Json) -> Json:
    return {"backend": backend, "precision": precision, "optimizations": plan.get("optimizations") or [],
            "loop": plan.get("loop")}  # fmt: skip


def _build(entry: Json) -> Json:
    return {"seconds": entry.get("build_s"), **{key: entry.get(key) for key in _BUILD}}


def _against(baseline: str, latency: Json, verdict: Json, names: Mapping[str, Json]) -> Json:
    if latency is None:
        return None
    found = _map(verdict)
    winner = found.get("winner")
    named = names.get(winner, winner) if isinstance(winner, str) else winner
    return {"baseline": baseline, "latency_ms": latency, "ratio": found.get("ratio"), "winner": named,
            "text": found.get("text")}  # fmt: skip


def _spelled(settings: Json) -> Mapping[str, Json]:
    """A plan, or a row's settings, in today's spelling."""
    return {"optimizations" if key == "optimisations" else key: value for key, value in _map(settings).items()}


def _map(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}
