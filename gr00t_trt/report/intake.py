"""Records from files that anyone may have written: every known field is of the right kind, or the file is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import RecordError
from ..record.records import RECORD_FIX, read_record
from .markup import visible

LARGEST = 1e20
"""No measurement comes near it; above, arithmetic on axes would overflow."""

NUMBER, TEXT, FLAG = "a number", "text", "true or false"

AGREEMENT = {"cosine": NUMBER, "max_abs": NUMBER, "sqnr_db": NUMBER, "exact": FLAG}
GATE = {"cosine": NUMBER, "max_abs": NUMBER, "sqnr_db": NUMBER}
VERDICT = {"winner": TEXT, "ratio": NUMBER, "text": TEXT}
LATENCY = {
    **dict.fromkeys(("p50", "p90", "p99", "min", "max", "mean", "std", "hz", "iterations", "warmup"), NUMBER),
    "timer": TEXT,
    "device": TEXT,
    "note": TEXT,
    "p99_is_max": FLAG,
    "samples": [NUMBER],
}
SUBMODULE = {
    **dict.fromkeys(("name", "backend", "precision", "engine_path"), TEXT),
    **dict.fromkeys(("operators", "converted", "coverage_percent", "engines", "engine_bytes", "build_s"), NUMBER),
    "runs": FLAG,
    "notes": [TEXT],
    "latency_ms": LATENCY,
    "eager_latency_ms": LATENCY,
    "verdict": VERDICT,
    "accuracy": AGREEMENT,
    "gate": GATE,
    "passed": FLAG,
    "failures": [TEXT],
}
STAGE = {
    "stage": TEXT,
    "within": TEXT,
    "calls_per_request": NUMBER,
    "latency_ms": LATENCY,
    "eager_latency_ms": LATENCY,
}
MEASUREMENT = {
    **dict.fromkeys(("group", "name", "why_not"), TEXT),
    "settings": {"of": TEXT, "backend": TEXT, "optimisations": [TEXT], "graph": FLAG},
    "latency_ms": LATENCY,
    "eager_latency_ms": LATENCY,
    "stages": {"*": NUMBER},
    "accuracy": AGREEMENT,
    "work": {
        **dict.fromkeys(("gflop", "bytes", "operators", "operators_per_step", "kernels", "kernel_ms"), NUMBER),
        "busiest_kernels": [{"name": TEXT, "launches": NUMBER, "ms": NUMBER}],
    },
    "roofline": {"device": TEXT, "ms": NUMBER, "percent": NUMBER},
    "verdict": VERDICT,
    "notes": [TEXT],
}
COMPARISON = {
    **dict.fromkeys(("subject", "backend", "precision", "why_not"), TEXT),
    **dict.fromkeys(
        ("build_s", "engine_bytes", "layers_before", "layers_after", "coverage_percent", "peak_bytes"), NUMBER
    ),
    "runs": FLAG,
    "latency_ms": LATENCY,
    "verdict": VERDICT,
    "accuracy": AGREEMENT,
    "passed": FLAG,
    "failures": [TEXT],
    "notes": [TEXT],
}
ENVIRONMENT = {
    **dict.fromkeys(("gpu", "driver", "board", "cpu", "platform", "python"), TEXT),
    **dict.fromkeys(
        (
            *("sm", "gpu_memory_bytes", "sm_clock_mhz", "max_sm_clock_mhz", "memory_clock_mhz", "power_limit_w"),
            *("cpu_cores", "memory_bytes"),
        ),
        NUMBER,
    ),
    "distributions": {"*": TEXT},
}
RECORD = {
    **dict.fromkeys(("created_utc", "command", "device", "plan_path", "exit_reason"), TEXT),
    "git": {"commit": TEXT, "dirty": FLAG},
    "environment": ENVIRONMENT,
    "plan": {"backend": TEXT, "precision": TEXT, "optimisations": [TEXT], "loop": TEXT},
    "model": {"path": TEXT},
    "workload": {
        **dict.fromkeys(("views", "batch_size", "sequence_length", "denoising_steps", "seed"), NUMBER),
        "dataset": TEXT,
        "instruction": TEXT,
    },
    "submodules": [SUBMODULE],
    "stages": [STAGE],
    "end_to_end": {
        "latency_ms": LATENCY,
        "eager_latency_ms": LATENCY,
        "verdict": VERDICT,
        "first_call_ms": NUMBER,
    },
    "measurements": [MEASUREMENT],
    "comparison": [COMPARISON],
    "accuracy": {
        "reference": TEXT,
        "normalised": AGREEMENT,
        "per_key": {"*": AGREEMENT},
        "gate": GATE,
        "passed": FLAG,
        "failures": [TEXT],
    },
    "peak_memory": {"kind": TEXT, "peak_bytes": NUMBER},
    "wall_s": NUMBER,
    "skipped": [{"what": TEXT, "why": TEXT}],
    "non_finite": [{"at": TEXT, "value": TEXT}],
}
"""The fields that a page shows; what else a record holds is left as it is."""


@dataclass(frozen=True)
class Loaded:
    """A record from a file.

    Attributes:
        name: Short, and different from the other records' of the page.
        path: As it was given.
        record: As `checked` returns it.
    """

    name: str
    path: str
    record: Mapping[str, Any]


def load(paths: Sequence[str]) -> list[Loaded]:
    """Read records, in the order given; the same file twice counts once.

    Raises: RecordError naming the file, and the field where one is at fault.
    """
    taken: dict[str, int] = {}
    out = []
    for path in dict.fromkeys(paths):
        stem = Path(path).stem
        taken[stem] = taken.get(stem, 0) + 1
        name = stem if taken[stem] == 1 else f"{stem} ({taken[stem]})"
        out.append(Loaded(name, path, checked(read_record(path), path)))
    return out


def checked(record: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The record with every field of `RECORD` there: of its kind, null, or an empty list.

    Raises: RecordError for a field that is of another kind.
    """
    # A section that is null has fields that are null: what reads it need not tell the two apart.
    empty: dict[str, Any] = {
        key: {} for key, kind in RECORD.items() if isinstance(kind, dict) and record.get(key) is None
    }
    fitted: dict[str, Any] = _fit({**record, **empty}, RECORD, "", path)
    return fitted


def _fit(value: Any, kind: Any, at: str, path: str) -> Any:
    if isinstance(kind, list):
        if value is not None and not isinstance(value, list):
            raise _misfit(value, "a list", at, path)
        return [_fit(item, kind[0], f"{at}[{i}]", path) for i, item in enumerate(value or ()) if item is not None]
    if value is None:
        return None
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            raise _misfit(value, "a mapping", at, path)
        if "*" in kind:
            own = kind["*"]
            # Among named figures a null is no figure; a version that is null is a package that is not there.
            kept = {k: v for k, v in value.items() if v is not None or own == TEXT}
            return {visible(k): _fit(v, own, f"{at}.{k}", path) for k, v in kept.items()}
        known = {name: _fit(value.get(name), own, f"{at}.{name}".lstrip("."), path) for name, own in kind.items()}
        return {**value, **known}
    fits = {
        TEXT: isinstance(value, str),
        FLAG: isinstance(value, bool),
        NUMBER: isinstance(value, (int, float)) and not isinstance(value, bool),
    }
    if not fits[kind]:
        raise _misfit(value, kind, at, path)
    # 1e999 is JSON, and Python reads it as infinity.
    if kind == NUMBER and not (abs(value) <= LARGEST and math.isfinite(value)):
        raise RecordError(
            f"{path}: {at} is beyond anything that can be measured",
            known=f"numbers up to {LARGEST:g}, or null",
            fix=RECORD_FIX,
        )
    return visible(value) if kind == TEXT else value


def _misfit(value: Any, kind: str, at: str, path: str) -> RecordError:
    return RecordError(f"{path}: {at} is a {type(value).__name__}", known=f"{kind}, or null", fix=RECORD_FIX)
