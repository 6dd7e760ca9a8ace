"""Which backend wins, decided by latencies alone, and the plan file that the choice becomes."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from ..plans.backends import AUTO, moving_parts
from ..plans.load import plan_to_mapping
from ..plans.schema import ARCHITECTURE, OPTIMIZATIONS, SUBMODULES, Plan, SubmodulePlan
from ..record.files import without_home
from ..record.numbers import p50
from ..record.result import REQUEST, Status
from ..record.samples import Samples, verdict
from ..record.schema import Record

ALWAYS_WRITTEN = ("backend", "precision", "denoising_steps", "joint_backbone", "optimizations", "loop")
"""Keys that say what was measured, and so stand in the file even where they are the default."""


def beaten_by(name: str, latencies: Mapping[str, Samples]) -> list[str]:
    """Those that are faster than `name` beyond doubt, in `samples.verdict`'s sense."""
    own, others = latencies[name], {other: latency for other, latency in latencies.items() if other != name}
    return [other for other, latency in others.items() if verdict(own, latency, names=(name, other)).winner == other]


def leader(latencies: Mapping[str, Samples]) -> str | None:
    """The one that is faster than each of the others beyond doubt; None without such a one, or without others."""
    for name in latencies:
        if len(latencies) > 1 and all(name in beaten_by(other, latencies) for other in latencies if other != name):
            return name
    return None


def winner(latencies: Mapping[str, Samples]) -> str:
    """The fastest, or the simplest of those that the fastest is not faster than beyond doubt; at least one is given.

    With fewer samples than a verdict needs, that is the simplest of all.
    """
    fastest = min(latencies, key=lambda name: latencies[name].p50)
    tied = [name for name in latencies if fastest not in beaten_by(name, latencies)]
    return min(tied, key=moving_parts)


def with_choice(plan: Plan, chosen: Mapping[str, str]) -> Plan:
    """The plan with `auto` decided: compile target -> backend; what was not measured stays in eager PyTorch."""
    backends = {part: backend for target, backend in chosen.items() for part in ARCHITECTURE.parts_of(target)}
    used = {backends.get(name, "eager") for name in SUBMODULES}
    rest = plan.backend
    if rest == AUTO:
        rest = used.pop() if len(used) == 1 else "eager"
    own = {}
    for name in SUBMODULES:
        before = plan.submodules.get(name, SubmodulePlan())
        backend = backends.get(name, None if before.backend == AUTO else before.backend)
        after = replace(before, backend=backend)
        if after != SubmodulePlan():
            own[name] = after
    return replace(plan, backend=rest, submodules=own)


def default_plan_path(device: torch.device, plan: Plan, fn_name: str) -> Path:
    """Where a chosen plan goes unless told otherwise; measured again, it replaces the older one."""
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    subject = [machine, plan.precision, *([fn_name] if fn_name != "all" else [])]
    return Path("plans", re.sub(r"[^a-z0-9_]+", "-", "-".join(subject).lower()).strip("-") + ".yaml")


def plan_text(plan: Plan, record: Record, path: Path, fn_name: str) -> str:
    """A plan file with what was measured in its header; `plans.load_plan` reads it back as `plan`.

    Args:
        record: Of the run that measured it, finished.
        path, fn_name: Where the file will lie and what was compiled, for the command in the header.
    """
    command = ["python", "run_groot_torchtrt.py", "--config", str(path)]
    command += ["--fn_name", fn_name] if fn_name != "all" else []
    about = [
        f"Hardware: {_hardware(record)}. Another machine may choose otherwise: measure again there.",
        f"Engines:  {_engines(record)}",
        f"Latency:  {_workload(record)}; p50 in ms, timed in turn on the same inputs. Where spreads overlap, the "
        "simpler backend is chosen.",
    ]
    header = [
        f"The fastest backend of each submodule on one machine, as measured there on {record.created_utc[:10]}.",
        "",
        f"  {shlex.join(command)}",
        "",
        *(line for text in about for line in textwrap.wrap(_one_line(text), 116, subsequent_indent=" " * 10)),
        *_latencies(record),
    ]
    return "".join(f"# {_one_line(line)}".rstrip() + "\n" for line in header) + "".join(_body(plan))


def _one_line(text: str) -> str:
    """Names of files and GPUs come from elsewhere, and a line break in one would end the comment."""
    return "".join(c if c.isprintable() else "?" for c in without_home(text))


def _hardware(record: Record) -> str:
    env = record.environment
    machine = f"{env.gpu}, driver {env.driver}" if record.on_gpu else f"{env.cpu}, no GPU, {env.cpu_cores} cores"
    versions = [f"{name} {version}" for name, version in env.distributions.items() if version and name in _TELLING]
    return ", ".join([machine, *versions])


_TELLING = ("torch", "torch-tensorrt", "torch-tensorrt-rtx", "onnxruntime", "onnxruntime-gpu", "tensorrt")


def _engines(record: Record) -> str:
    built = [r.subject for r in record.submodules if r.build and r.build.engine_bytes and r.status is Status.MEASURED]
    idle = sorted({r.candidate.backend for r in record.of("comparison") if r.status is Status.BUILT_NOT_RUN})
    text = f"built for {', '.join(built)}." if built else "none."
    if idle:
        text += f" Those of {', '.join(idle)} cannot run on this machine, so they had no latency to win with."
    return text


def _workload(record: Record) -> str:
    load = record.inputs
    parts = ("views", "batch_size", "sequence_length", "denoising_steps")
    named = ", ".join(f"{part.replace('_', ' ')} {getattr(load, part)}" for part in parts)
    return f"{record.setting('precision')}, {named}"


def _latencies(record: Record) -> Iterator[str]:
    """A table: one line per subject, one column per backend, what was chosen in the last."""
    entries = record.of("comparison")
    names = list(dict.fromkeys(r.name for r in entries))
    chosen = {r.subject: r.candidate.backend for r in record.submodules}
    rows = [["", *names, "chosen"]]
    for subject in dict.fromkeys(r.subject for r in entries):
        own = {r.name: p50(r.latency_ms) for r in entries if r.subject == subject}
        shown = "whole request" if subject == REQUEST else subject
        rows.append([shown, *(own.get(name, "") for name in names), chosen.get(subject, "")])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *middle, last in rows:
        aligned = [cell.rjust(width) for cell, width in zip(middle, widths[1:], strict=False)]
        yield "  ".join(["", first.ljust(widths[0]), *aligned, last])
    whole = record.request
    if whole and whole.latency_ms:
        original = p50(whole.against.latency_ms if whole.against else None)
        yield (
            f"  The whole request with this plan, measured afterwards: {p50(whole.latency_ms)}; the original model in "
            f"PyTorch: {original}."
        )


def _body(plan: Plan) -> Iterator[str]:
    default = plan_to_mapping(Plan())
    for key, value in plan_to_mapping(plan).items():
        if key == "optimizations":
            value = "all" if set(value) == set(OPTIMIZATIONS) else value or "none"
        if isinstance(value, Mapping) and key != "submodules":
            value = {name: item for name, item in value.items() if item != default[key][name]}
        if key in ALWAYS_WRITTEN or (value and value != default[key]):
            style = None if isinstance(value, (Mapping, list)) else False  # None: what holds no more goes on one line
            yield yaml.safe_dump({key: value}, default_flow_style=style, sort_keys=False, width=110)
