"""What a result file holds, and how it is written and read. Never imports torch.

    schema          1
    created_utc     when the record was started
    command         the command line; home folders are written as ~
    git             commit, dirty
    environment     machine, GPU, driver, clocks, versions
    device          what the model ran on: cuda:0, cpu
    plan, plan_path the effective plan, every default spelled out, and the file it came from
    model           path, config
    workload        views, batch_size, sequence_length, denoising_steps, seed, dataset, instruction
    submodules      one entry per compiled submodule: SUBMODULE_FIELDS
    stages          one entry per stage of a request: STAGE_FIELDS
    end_to_end      the whole request: END_TO_END_FIELDS
    measurements    one entry per configuration that a measuring run tried: MEASUREMENT_FIELDS
    comparison      one entry per backend and submodule, or backend and whole request: COMPARISON_FIELDS
    accuracy        the actions: ACTION_ACCURACY_FIELDS
    evaluation      only in records of that program, as the next two: errors and latencies against recorded episodes
    simulation      success rate, every episode, latencies of the policy
    rollout         per way of executing: latencies, loop times, jitter, stalls
    peak_memory     what `benchmark.PeakMemory` saw
    wall_s          seconds for the whole command
    skipped         [{what, why}]: everything that was not done or is not proven
    non_finite      [{at, value}]: where a NaN or an infinity stood, which JSON cannot hold, and null stands now
    exit_reason     null while running; then done, gate failed, interrupted, or the error's first line

What was not measured is null, never 0. Units end the names.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..common.files import prepare_file, write_whole
from ..errors import RecordError
from .environment import environment, git_state

SCHEMA = 1
RECORD_FIX = "name a record; a run prints the path of its own as its last line"

SUBMODULE_FIELDS = (
    "name",
    "backend",
    "precision",
    "shapes",
    "operators",
    "converted",
    "coverage_percent",
    "engines",
    "unsupported",
    "layers_before",
    "layers_after",
    "engine_bytes",
    "engine_path",
    "runs",
    "build_s",
    "build_phases_s",
    "from_cache",
    "settings",
    "notes",
    "latency_ms",
    "eager_latency_ms",
    "verdict",
    "accuracy",
    "gate",
    "passed",
    "failures",
)
"""`shapes`: argument -> sizes and range as text. `latency_ms`, `eager_latency_ms`: `Samples.to_dict()`. `verdict`:
`Verdict.to_dict()`. `accuracy`: `Agreement.to_dict()`. `runs`: false for an engine that cannot run on this machine.
`from_cache`: true for an engine that an earlier run built; `build_s` is then what finding and checking it took.
`layers_before`, `layers_after`: of the network that TensorRT was handed, and of the engine that it made."""

STAGE_FIELDS = ("stage", "within", "calls_per_request", "latency_ms", "eager_latency_ms")
"""`within`: the stage that called this one, or null. Latencies are of all calls in one request, added up."""

END_TO_END_FIELDS = ("latency_ms", "eager_latency_ms", "verdict", "first_call_ms", "cuda_graph")
"""`cuda_graph`: when requests were replayed, `graphs` captured, their `input_bytes`, and how far the worst of them
`strayed` from the uncaptured actions; else null. Stages are timed without it."""

ACTION_ACCURACY_FIELDS = ("reference", "normalised", "per_key", "gate", "passed", "failures")
"""`normalised`: one agreement; `per_key`: action key -> agreement in physical units; the gate judges the first."""

MEASUREMENT_FIELDS = (
    "group",
    "name",
    "settings",
    "latency_ms",
    "eager_latency_ms",
    "stages",
    "accuracy",
    "work",
    "roofline",
    "verdict",
    "notes",
    "why_not",
)
"""`group`: what is varied: waterfall, loop, compile, submodules, views, batch, steps, percentiles, request.
`settings`: what was timed (`of`), how it was made, and the size of the request. `eager_latency_ms`: the plain model in
eager PyTorch on the same request, timed in turn with it. `stages`: stage -> milliseconds. `work`: gflop, bytes,
weight_bytes (a part of them), operators, operators_per_step, kernels launched, kernel_ms (how long they ran, gaps left
out), busiest_kernels (name, launches, ms); null where not counted. `roofline`: device, source, ms, percent; null where
none is known. `why_not`: why nothing was measured, else null."""

COMPARISON_FIELDS = (
    "subject",
    "backend",
    "precision",
    "runs",
    "latency_ms",
    "verdict",
    "build_s",
    "engine_bytes",
    "layers_before",
    "layers_after",
    "coverage_percent",
    "peak_bytes",
    "accuracy",
    "passed",
    "failures",
    "best",
    "notes",
    "why_not",
)
"""`subject`: a submodule, or ``whole request``. `backend`: of a whole request also ``plain``, the model as it was
published, in PyTorch, and ``auto``, the fastest backend of each submodule. `runs`: false for an engine that was built
and cannot run here. `verdict`: against eager (of a whole request's eager: against plain). `peak_bytes`: the most that
`PeakMemory` saw beyond what was in use before, while it was built and first called; of a whole request, during one.
`best`: whether it passes its gate and is faster than every other that does, beyond doubt; null for one without a
latency. `why_not`: why the backend could not be tried on it, else null."""

WHOLE_REQUEST = "whole request"

WORKLOAD_FIELDS = (
    "views",
    "batch_size",
    "sequence_length",
    "denoising_steps",
    "seed",
    "dataset",
    "instruction",
)

_FILE = ("record", "--record")

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "created_utc": str,
    "command": str,
    "git": dict,
    "environment": dict,
    "model": dict,
    "workload": dict,
    "submodules": list,
    "stages": list,
    "end_to_end": dict,
    "measurements": list,
    "comparison": list,
    "accuracy": dict,
    "skipped": list,
}


def new_record(
    command: str,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    plan: Mapping[str, Any] | None = None,
    plan_path: str | Path | None = None,
    model: Mapping[str, Any] | None = None,
    workload: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A record of schema 1 with the machine filled in and every measurement null.

    Args:
        command: The command line as it was given.
        root: A folder of the checkout whose commit to record; None records none.
        plan: The effective plan, from `plans.plan_to_mapping`.
        model: `path` and `config`, a summary of the sizes.
        workload: Any of `WORKLOAD_FIELDS`.
    Raises: TypeError for an unknown workload field.
    """
    return {
        "schema": SCHEMA,
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": command,
        "git": git_state(root) if root is not None else {"commit": None, "dirty": None},
        "environment": environment(_device_index(device)),
        "device": device,
        "plan": plan,
        "plan_path": None if plan_path is None else str(plan_path),
        "model": {"path": None, "config": None, **(model or {})},
        "workload": _entry("workload", WORKLOAD_FIELDS, workload or {}),
        "submodules": [],
        "stages": [],
        "end_to_end": dict.fromkeys(END_TO_END_FIELDS),
        "measurements": [],
        "comparison": [],
        "accuracy": {**dict.fromkeys(ACTION_ACCURACY_FIELDS), "reference": "eager fp32", "failures": []},
        "peak_memory": None,
        "wall_s": None,
        "skipped": [],
        "non_finite": [],
        "exit_reason": None,
    }


def submodule_entry(name: str, backend: str, precision: str, **known: Any) -> dict[str, Any]:
    """One entry of `submodules`; what is not given is null. Raises: TypeError for a field of another name."""
    entry = _entry("submodule", SUBMODULE_FIELDS, {"name": name, "backend": backend, "precision": precision, **known})
    for field in ("notes", "failures"):
        entry[field] = list(entry[field] or ())
    return entry


def built_fields(built: Any) -> dict[str, Any]:
    """The fields of a submodule's entry that a backend's `Built` knows, for `submodule_entry(..., **these)`."""
    coverage = built.coverage
    return {
        "operators": coverage.operators if coverage else None,
        "converted": coverage.converted if coverage else None,
        "coverage_percent": coverage.percent if coverage else None,
        "engines": coverage.engines if coverage else None,
        "unsupported": dict(coverage.unsupported) if coverage else None,
        "layers_before": built.layers_before,
        "layers_after": built.layers_after,
        "engine_bytes": built.engine_bytes,
        "engine_path": str(built.engine.path) if built.engine else None,
        "runs": built.runs,
        "build_s": built.build_s,
        "build_phases_s": dict(built.phases_s),
        "from_cache": built.from_cache,
        "settings": dict(built.settings),
        "notes": list(built.notes),
    }


def measurement_entry(group: str, name: str, **known: Any) -> dict[str, Any]:
    """One entry of `measurements`; what is not given is null. Raises: TypeError for a field of another name."""
    entry = _entry("measurement", MEASUREMENT_FIELDS, {"group": group, "name": name, **known})
    entry["notes"] = list(entry["notes"] or ())
    return entry


def comparison_entry(subject: str, backend: str, **known: Any) -> dict[str, Any]:
    """One entry of `comparison`; what is not given is null. Raises: TypeError for a field of another name."""
    entry = _entry("comparison", COMPARISON_FIELDS, {"subject": subject, "backend": backend, **known})
    for field in ("notes", "failures"):
        entry[field] = list(entry[field] or ())
    return entry


def stage_entry(stage: str, **known: Any) -> dict[str, Any]:
    """One entry of `stages`; what is not given is null. Raises: TypeError for a field of another name."""
    return _entry("stage", STAGE_FIELDS, {"stage": stage, **known})


def on_gpu(record: Mapping[str, Any]) -> bool:
    """Whether the model ran on a GPU; that the machine has one does not say so."""
    return str(record.get("device") or "").startswith("cuda")


def skip(record: dict[str, Any], what: str, why: str) -> None:
    """Say in the record what was not done, or is not proven, and why."""
    entry = {"what": what, "why": why}
    if entry not in record["skipped"]:
        record["skipped"].append(entry)


def _entry(kind: str, fields: tuple[str, ...], known: Mapping[str, Any]) -> dict[str, Any]:
    strangers = [key for key in known if key not in fields]
    if strangers:
        raise TypeError(f"{kind} entry has no field {', '.join(strangers)}; known: {', '.join(fields)}")
    return {**dict.fromkeys(fields), **known}


def _device_index(device: str | None) -> int:
    match = re.fullmatch(r"cuda:(\d+)", device or "")
    return int(match[1]) if match else 0


def default_record_path(root: str | Path, name: str) -> Path:
    """A path under `root`/records that no file has yet: UTC time to the millisecond and a short subject.

    Args:
        name: The subject, such as ``"fp16 all"``; anything but letters, digits, dots and dashes becomes a dash.
    """
    now = datetime.now(timezone.utc)
    stamp = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z"
    subject = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "run"
    folder = Path(root) / "records"
    path = folder / f"{stamp}-{subject}.json"
    number = 2
    while path.exists():
        path = folder / f"{stamp}-{subject}-{number}.json"
        number += 1
    return path


def prepare_record(path: str | Path) -> None:
    """`files.prepare_file` for a record. Raises: RecordError for a path that cannot be written."""
    prepare_file(path, *_FILE)


def write_record(record: Mapping[str, Any], path: str | Path) -> Path:
    """Write a record whole or not at all, making the folder where needed; an older file at `path` is replaced.

    NaN and infinities become null and are listed under `non_finite`; `record` itself is left as it is.

    Returns: `path`.
    Raises: RecordError for a path that cannot be written, a full disk, or a value that JSON has no form for.
    """
    return write_whole(dumps(record) + "\n", path, *_FILE)


def dumps(record: Mapping[str, Any]) -> str:
    """The record as JSON text, the same that `write_record` writes. Raises: RecordError for a value without a form."""
    lost: list[dict[str, str]] = list(record.get("non_finite") or ())
    plain = _plain(record, "", lost)
    if isinstance(plain, dict) and lost:
        plain["non_finite"] = lost
    return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, at: str, lost: list[dict[str, str]]) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        lost.append({"at": at, "value": str(float(value))})
        return None
    if isinstance(value, (str, Path)):
        return without_home(str(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{at}.{key}" if at else str(key), lost) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{at}[{i}]", lost) for i, item in enumerate(value)]
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict(), at, lost)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), at, lost)
    raise RecordError(
        f"record: {at}: a {type(value).__name__} has no form in JSON", known="numbers, text, lists, mappings"
    )


def without_home(text: str) -> str:
    """Home folders carry the user's name, which is nobody's business in a shared result."""
    home = os.path.expanduser("~")
    if len(home) <= 1:
        return text
    return re.sub(re.escape(home) + r"(?=/|\\|$|[\s'\":,;)])", "~", text)


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record back and check that it is one.

    Raises: RecordError for a missing or unreadable file, broken JSON, another schema, a missing or misshapen field.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        near = sorted(str(p) for p in Path(path).parent.glob("*.json"))
        raise RecordError(f"{path}: no such record", known=near[:20] or None, fix=RECORD_FIX) from None
    except OSError as error:
        raise RecordError(f"{path}: the record cannot be read: {error.strerror or error}", fix=RECORD_FIX) from error
    except (ValueError, RecursionError) as error:  # includes JSONDecodeError and UnicodeDecodeError
        raise RecordError(
            f"{path}: not a record: {error}", known="JSON as this program writes it", fix=RECORD_FIX
        ) from error
    if not isinstance(record, dict) or "schema" not in record:
        raise RecordError(f"{path}: not a record: it has no schema number", known=f"schema {SCHEMA}", fix=RECORD_FIX)
    if record["schema"] != SCHEMA:
        raise RecordError(f"{path}: schema {record['schema']!r} is not known to this release", known=f"schema {SCHEMA}")
    for key in ("measurements", "comparison"):  # records of the first release lack them
        record.setdefault(key, [])
    for key, kind in _KINDS.items():
        if key not in record:
            raise RecordError(f"{path}: {key} is missing", known=f"the fields of schema {SCHEMA}")
        if not isinstance(record[key], kind):
            raise RecordError(f"{path}: {key} is a {type(record[key]).__name__}", known=getattr(kind, "__name__", ""))
    named = (("submodules", "name"), ("stages", "stage"), ("skipped", "what"))
    for field, key in (*named, ("measurements", "name"), ("comparison", "subject")):
        for i, entry in enumerate(record[field]):
            if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
                raise RecordError(f"{path}: {field}[{i}] has no {key}")
    return record
