"""From a row to its entry in the record: how long it will take, and what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..compile.build import judge
from ..plans.load import resolve_action_gate
from ..plans.schema import Plan
from . import accuracy
from .budget import Budget
from .forms import Form, Forms
from .kernels import kernels, summary
from .roofline import ceilings
from .rows import CALLS_OF_PERCENTILES, PLAIN, Candidate, Row, Workload
from .timers import Samples, drain, verdict
from .timing import Taken, alternate, loop_samples, medians, submodule
from .work import Counter, Subject

SECONDS_PER_ROW = 30.0
"""How long the calls of one row may take, unless the fewest take longer."""

FEWEST = 5
"""Calls of each rival below which no verdict is given."""

CALLS_TO_ESTIMATE = 5
"""Calls after which it is known how long one takes, and so how many of them a row can have."""

COUNTED_PER_STEP = ("waterfall", "loop")
"""Groups of rows that tell how many operators a denoising step has."""

BUILD_S_PER_LAYER = {"default": 1.5, "reduce-overhead": 1.5, "max-autotune-no-cudagraphs": 4.0, "max-autotune": 4.0}
"""Seconds of compiling per transformer layer by mode, until the first build shows what they are here."""


@dataclass(frozen=True)
class Found:
    """Fields of a measurement, and what its accuracy gate holds against it."""

    fields: dict[str, Any]
    failures: list[str]


class Bench:
    """Takes rows, one at a time, on forms of one policy.

    Args:
        gpu: Name of the GPU, for the roofline; None on a CPU.
    """

    def __init__(self, forms: Forms, counter: Counter, gpu: str | None, budget: Budget):
        self._forms, self._counter, self._ceilings = forms, counter, ceilings(gpu)
        self._gpu, self._budget = gpu, budget
        self._gate = resolve_action_gate(Plan(precision=forms.precision))
        self._taken: dict[tuple[str, Candidate, Workload], Taken] = {}
        self._correction = 1.0
        self._call_s = self._seconds_of_a_call()

    def _seconds_of_a_call(self) -> float:
        call, device = self._forms.model_call(self._forms.plain_form, Workload()), self._forms.plain.device
        return typical_seconds(call, lambda: drain(device))

    def why_not(self, row: Row) -> str | None:
        """Why there is no time for a row; None when there is."""
        return self._budget.why_not(self._estimate_s(row))

    def _estimate_s(self, row: Row) -> float:
        calls, warmup = self._rounds(row)
        if row.of == "loop" and self._request_of(row) is not None:
            return 0.0
        if row.candidate == PLAIN and self._beside(row) is not None:
            return self._pair_s(row) / 2  # only its accuracy is left to look at
        return self._build_s(row.candidate) + self._pair_s(row) * (calls + warmup + 1)

    def _pair_s(self, row: Row) -> float:
        """Seconds of one call of each rival; one that was not timed yet is taken to be as slow as eager PyTorch."""
        if row.of not in ("model", "request", "loop"):
            return self._call_s / 2
        work = row.workload
        eager = self._call_s * work.batch * (1 + 0.75 * (work.views - 1)) * (0.65 + 0.35 * work.steps / 4)
        taken = self._taken.get(("model", row.candidate, work))
        own = taken.candidate.p50 / 1e3 if taken and taken.candidate else eager
        return own if row.alone else eager + own

    def _rounds(self, row: Row) -> tuple[int, int]:
        pair_s = self._pair_s(row)
        if row.calls == CALLS_OF_PERCENTILES:
            return row.calls, 5
        calls = max(FEWEST, int(SECONDS_PER_ROW / max(pair_s, 1e-9)))
        if row.importance == 0:
            # The first row is worth having with fewer calls: it says so itself, and gives no verdict.
            calls = max(1, min(calls, int(self._budget.left / 2 / pair_s)))
        return min(row.calls, calls), 1 if pair_s > 2 else 5

    def _build_s(self, candidate: Candidate) -> float:
        if self._forms.has(candidate) or candidate.backend == "eager":
            return 0.0
        per_layer = BUILD_S_PER_LAYER.get(candidate.mode or "default", 1.5) * (2 if candidate.dynamic else 1)
        return self._correction * per_layer * self._layers()

    def _layers(self) -> int:
        config = self._forms.plain.config
        head = config.action_head
        depths = (head.diffusion.num_layers, head.vl_self_attention.num_layers, config.backbone.select_layer)
        return config.eagle.vision.num_hidden_layers + sum(depths)

    def take(self, row: Row) -> Found:
        """Measure one row.

        Raises: whatever building or calling the candidate raises.
        """
        expected, start = self._build_s(row.candidate), time.perf_counter()
        form = self._forms.get(row.candidate)
        if expected:
            self._correction *= (time.perf_counter() - start) / expected
        if row.of == "loop":
            return self._loop(row, form)
        if row.of not in ("model", "request"):
            return self._submodule(row, form)
        agreement = accuracy.compare(self._forms.actions(form, row.workload).cpu(), self._forms.reference(row.workload))
        taken = self._run(row, form)
        own = taken.candidate or taken.eager
        assert own is not None
        rows = taken.candidate_stages if taken.candidate else taken.eager_stages
        work = self._work(row, form)
        return Found(
            {
                "latency_ms": own.to_dict(),
                "eager_latency_ms": taken.eager.to_dict() if taken.eager else None,
                "verdict": _verdict(taken.eager, taken.candidate),
                "stages": medians(rows),
                "accuracy": agreement.to_dict(),
                "work": work,
                "roofline": self._roofline(row, own),
                "notes": _notes(form),
            },
            judge(row.name, agreement, self._gate),
        )

    def _run(self, row: Row, form: Form) -> Taken:
        key = (row.of, row.candidate, row.workload)
        beside = self._beside(row) if row.candidate == PLAIN else None
        if beside is not None:
            return Taken(beside.eager, None, beside.eager_stages, [])
        calls, warmup = self._rounds(row)
        self._taken[key] = alternate(self._forms, row, form, calls=calls, warmup=warmup)
        return self._taken[key]

    def _beside(self, row: Row) -> Taken | None:
        """The first run of the same calls, of whatever candidate: eager PyTorch was timed in turn with it."""
        of_same_calls = (t for (of, _, work), t in self._taken.items() if (of, work) == (row.of, row.workload))
        return next((taken for taken in of_same_calls if taken.eager is not None), None)

    def _request_of(self, row: Row) -> Taken | None:
        """A run of whole calls of the row's candidate whose stages were timed."""
        for (_, candidate, work), taken in self._taken.items():
            if (candidate, work) == (row.candidate, row.workload) and taken.candidate_stages and taken.eager_stages:
                return taken
        return None

    def _loop(self, row: Row, form: Form) -> Found:
        taken = self._request_of(row) or self._run(replace(row, of="model"), form)
        eager, own = loop_samples(taken.eager_stages), loop_samples(taken.candidate_stages)
        work = {**_no_work(), "operators_per_step": self._counter.operators_per_step(row.candidate.optimisations)}
        fields = {
            "latency_ms": own.to_dict() if own else None,
            "eager_latency_ms": eager.to_dict() if eager else None,
            "verdict": _verdict(eager, own),
            "work": work,
            "notes": ["the stages that run once per denoising step, within the whole calls timed for another row"],
        }
        return Found(fields, [])

    def _submodule(self, row: Row, form: Form) -> Found:
        calls, warmup = self._rounds(row)
        eager, own = submodule(self._forms, row.of, form, calls=calls, warmup=warmup)
        agreement = form.parts[row.of].agreement
        fields = {
            "latency_ms": own.to_dict(),
            "eager_latency_ms": eager.to_dict(),
            "verdict": _verdict(eager, own),
            "accuracy": agreement.to_dict(),
            "notes": ["eager is the same submodule of the same model in PyTorch"],
        }
        return Found(fields, [])

    def _work(self, row: Row, form: Form) -> dict[str, Any]:
        counted = self._counter.trace(Subject.of(row.candidate, row.workload))
        return {
            "gflop": counted.flops / 1e9,
            "bytes": counted.bytes,
            "weight_bytes": counted.weight_bytes,
            "operators": counted.operators,
            "operators_per_step": self._counter.operators_per_step(row.candidate.optimisations)
            if row.group in COUNTED_PER_STEP
            else None,
            **summary(kernels(self._forms.model_call(form, row.workload))),
        }

    def _roofline(self, row: Row, own: Samples) -> dict[str, Any] | None:
        if self._ceilings is None:
            return None
        floor = self._counter.trace(Subject.of(row.candidate, row.workload)).milliseconds(self._ceilings)
        percent = None if floor is None or row.of != "model" else 100 * floor / own.p50
        return {"device": self._gpu, "source": self._ceilings.source, "ms": floor, "percent": percent}


def typical_seconds(call: Callable[[], object], wait: Callable[[], None], *, slow_s: float = 1.0) -> float:
    """How long a call takes once what it needs is there: the first ones on a GPU load libraries, for seconds.

    Args:
        wait: Returns when the device has nothing left to do.
        slow_s: Two calls that take longer are enough; one that is slow by itself is hardly slower for being the first.
    """
    fastest = math.inf
    for number in range(CALLS_TO_ESTIMATE):
        start = time.perf_counter()
        call()
        wait()
        fastest = min(fastest, time.perf_counter() - start)
        if number and fastest > slow_s:
            break
    return fastest


def to_count(rows: Sequence[Row]) -> tuple[list[Subject], list[tuple[str, ...]]]:
    """What taking these rows will ask of a `Counter`, each question once."""
    whole = [Subject.of(row.candidate, row.workload) for row in rows if row.of in ("model", "request")]
    steps = [row.candidate.optimisations for row in rows if row.group in COUNTED_PER_STEP]
    return list(dict.fromkeys(whole)), list(dict.fromkeys(steps))


def _notes(form: Form) -> list[str]:
    return [f"{len(form.parts)} submodules built in {form.build_s:.1f} s"] if form.parts else []


def _verdict(eager: Samples | None, own: Samples | None) -> dict[str, Any] | None:
    return None if own is None or eager is None else verdict(eager, own, names=("eager", "this")).to_dict()


def _no_work() -> dict[str, Any]:
    counts = dict.fromkeys(("gflop", "bytes", "weight_bytes", "operators", "operators_per_step"))
    return {**counts, **summary(None)}
