"""One candidate against the plain model in eager PyTorch, in turn, and where the time goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from .forms import Form, Forms
from .rows import Row
from .stages import REST, TOTAL, StageTimer
from .timers import Samples, measure_alternating

PARTS_OF_STEP = ("action_encoder", "dit_model", "action_decoder", "denoise_step", "denoise_loop")
SPLIT_CALLS = 10

StageRows = list[dict[str, Any]]


@dataclass(frozen=True)
class Taken:
    """What one run of A B A B found.

    Attributes:
        eager, candidate: Latencies; `candidate` is None when it is the plain model itself, `eager` when a row is taken
            alone.
        eager_stages, candidate_stages: Rows of `StageTimer`.
    """

    eager: Samples | None
    candidate: Samples | None
    eager_stages: StageRows
    candidate_stages: StageRows


@torch.no_grad()
def alternate(forms: Forms, row: Row, form: Form, *, calls: int, warmup: int) -> Taken:
    """Time `form` against the plain model, or alone, whole calls of what the row asks for.

    On a CPU the clock round each stage costs nothing, and the split is of the same calls; on a GPU events between
    kernels delay them, so that the split gets a few calls of its own.
    """
    device = forms.plain.device
    rivals = {} if row.alone else {"eager": forms.plain_form}
    if form is not forms.plain_form:
        rivals["candidate"] = form
    on_cpu = device.type == "cpu"
    samples, stages = _run(forms, row, rivals, split=on_cpu, calls=calls, warmup=warmup)
    if not on_cpu:
        _, stages = _run(forms, row, rivals, split=True, calls=min(calls, SPLIT_CALLS), warmup=1)
    return Taken(samples.get("eager"), samples.get("candidate"), stages.get("eager", []), stages.get("candidate", []))


def _run(
    forms: Forms, row: Row, rivals: Mapping[str, Form], *, split: bool, calls: int, warmup: int
) -> tuple[dict[str, Samples], dict[str, StageRows]]:
    device = forms.plain.device
    make = forms.request_call if row.of == "request" else forms.model_call
    fns: dict[str, Callable[[], object]] = {}
    timers: dict[str, StageTimer] = {}
    try:
        with ExitStack() as stack:
            for name, form in rivals.items():
                table = dict(form.table)
                if split and form.graphs is None:  # a replay passes through no stage
                    tables = (forms.policy.stages, table) if row.of == "request" else (table,)
                    timers[name] = stack.enter_context(StageTimer(tables, device))
                fns[name] = _marked(make(replace(form, table=table), row.workload), timers.get(name))
            samples = measure_alternating(
                fns,
                timer="cuda_event" if device.type == "cuda" and row.of != "request" else "python_timer",
                warmup=warmup,
                iterations=calls,
                device=device,
            )
    finally:
        forms.restore()
    return samples, {name: timer.rows(warmup=warmup) for name, timer in timers.items()}


def _marked(call: Callable[[], object], timer: StageTimer | None) -> Callable[[], object]:
    def marked() -> None:
        with timer.request() if timer else nullcontext():
            call()

    return marked


@torch.no_grad()
def submodule(forms: Forms, name: str, form: Form, *, calls: int, warmup: int) -> tuple[Samples, Samples]:
    """One submodule in eager PyTorch against what was built of it, in turn, on its recorded inputs."""
    part = form.parts[name]
    device = forms.plain.device
    taken = measure_alternating(
        {
            "eager": lambda: part.target.module(*part.target.inputs),
            "candidate": lambda: part.built.call(*part.target.inputs),
        },
        timer="cuda_event" if device.type == "cuda" else "python_timer",
        warmup=warmup,
        iterations=calls,
        device=device,
    )
    return taken["eager"], taken["candidate"]


def medians(rows: StageRows) -> dict[str, float] | None:
    """Stage -> p50 in ms, all its calls in a request added up, and what lies between stages; None without rows.

    Of a stage that calls others, the plain model's backbone, these others are taken: they are what all forms have. The
    rest of it lies between stages.
    """
    if not rows:
        return None
    outer = {row["within"] for row in rows if row["within"]}
    out = {row["stage"]: row["latency_ms"].p50 for row in rows if row["stage"] not in (*outer, TOTAL, REST)}
    total = next(row["latency_ms"].p50 for row in rows if row["stage"] == TOTAL)
    return {**out, REST: max(total - sum(out.values()), 0.0)}


def loop_samples(rows: StageRows) -> Samples | None:
    """The denoising steps of each timed request: everything that runs once per step, added up."""
    own = [row["latency_ms"] for row in rows if row["stage"] in PARTS_OF_STEP]
    if not own:
        return None
    sums = tuple(sum(values) for values in zip(*(samples.samples for samples in own), strict=True))
    return replace(own[0], samples=sums)
