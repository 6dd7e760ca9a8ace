"""Measuring rows: candidates are built once, kept while later rows need them, and timed against the original."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..backends.base import Backend
from ..backends.guarded import first_line
from ..backends.inductor.backend import InductorBackend
from ..errors import BackendError
from ..plans.backends import get_backend
from ..plans.schema import ARCHITECTURE, BenchmarkOptions, Plan, Ranges
from ..plans.submodules import resolve_submodule, select
from ..record.files import write_record
from ..record.result import REQUEST, Against, Baseline, Candidate, Result, Roofline, Status, Work, Workload
from ..record.samples import Samples
from ..record.schema import Record, drift_of
from .accuracy import judge
from .budget import Budget, OutOfTime
from .harness import SPLIT_CALLS, Harness
from .kernels import kernels
from .results import Part, Timed, Variant
from .roofline import ceilings
from .rows import CALLS_OF_PERCENTILES, PLAIN, Row
from .stages import loop_samples, medians
from .timers import drain
from .work import Counted, Counter
from .workloads import Requests

SECONDS_PER_ROW = 30.0
"""How long the calls of one row may take, unless the fewest take longer."""

FEWEST = 5
"""Calls of each candidate below which no verdict is given."""

CALLS_TO_ESTIMATE = 5
"""Calls after which it is known how long one takes, and so how many of them a row can have."""

BUSIEST = 12
"""Kernels that a result names."""

COUNTED_PER_STEP = ("waterfall", "loop")
"""Groups of rows that tell how many operators a denoising step has."""

BUILD_S_PER_LAYER = {"default": 1.5, "reduce-overhead": 1.5, "max-autotune-no-cudagraphs": 4.0, "max-autotune": 4.0}
"""Seconds of compiling per transformer layer by mode, until the first build shows what they are here."""


class Sweep:
    """Takes rows, one at a time, on variants of one model; those that later rows need are kept."""

    def __init__(self, harness: Harness, requests: Requests, counter: Counter, budget: Budget):
        self._harness, self._requests, self._counter, self._budget = harness, requests, counter, budget
        gpu = torch.cuda.get_device_name(harness.device) if harness.device.type == "cuda" else None
        self._gpu, self._ceilings = gpu, ceilings(gpu)
        self._made: dict[Candidate, Variant] = {PLAIN: harness.original}
        self._failed: dict[Candidate, str] = {}
        self._timed: dict[tuple[str, Candidate, Workload], Timed] = {}
        self._correction = 1.0
        self._call_s = self._seconds_of_a_call()

    def _seconds_of_a_call(self) -> float:
        call = self._harness.call(self._harness.original, self._requests.get(Workload()))
        return typical_seconds(call, lambda: drain(self._harness.device))

    def take_all(self, rows: Sequence[Row], record: Record, path: Path) -> bool:
        """Fill in the results of all rows, by priority; returns whether one of them failed."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].priority)
        failed = False
        for done, i in enumerate(order):
            row, empty = rows[i], rows[i].result(str(self._harness.plan.precision))
            why = self._budget.why_not(self._estimate_s(row))
            if why is not None:
                record.results[i] = replace(empty, status=Status.NO_TIME, why=why)
            else:
                left = f"{done + 1} of {len(rows)}, {self._budget.left:.0f} s left"
                self._harness.steps.step(f"{row.group}: {row.name} ({left})")
                record.results[i] = result = self._take(row, empty)
                failed = failed or result.status is Status.FAILED or bool(result.failures)
            self.keep_only({rows[j].candidate for j in order[done + 1 :]})
            record.drift = drift_of(record.results)
            write_record(record, path)
        return failed

    def _take(self, row: Row, empty: Result) -> Result:
        try:
            with self._budget.enforced():
                return self.take(row)
        except OutOfTime:
            why = f"no time: it was begun, and the budget of {self._budget.seconds:.0f} s ended"
            return replace(empty, status=Status.NO_TIME, why=why)
        except Exception as error:  # whatever one row does must not cost the others
            return replace(empty, status=Status.FAILED, why=f"failed: {first_line(error)}")

    def take(self, row: Row) -> Result:
        """Measure one row. Raises: whatever building or calling the candidate raises."""
        expected, start = self._build_s(row.candidate), time.perf_counter()
        variant = self.variant(row.candidate)
        if expected:
            self._correction *= (time.perf_counter() - start) / expected
        if row.of == "loop":
            return self._loop(row, variant)
        if row.of not in ("model", REQUEST):
            return self._submodule(row, variant.parts[row.of])
        request = self._requests.get(row.workload)
        self._harness.capture(variant, request)
        checked = self._harness.check(variant, request)
        timed = self._run(row, variant)
        name = "original" if row.candidate == PLAIN else row.name
        original, own = timed.latencies.get("original"), timed.latencies[name]
        build_s = sum(part.built.build_s for part in variant.parts.values())
        built = [f"{len(variant.parts)} submodules built in {build_s:.1f} s"] if variant.parts else []
        return replace(
            self._measured(row, own, original if name != "original" else None),
            stages_ms=medians(timed.stages.get(name, ())),
            accuracy=checked.agreement,
            gate=self._harness.action_gate,
            passed=not checked.failures,
            failures=judge(row.name, checked.agreement, self._harness.action_gate),
            work=self._work(row, variant),
            roofline=self._roofline(row, own),
            notes=tuple(built),
        )

    def _measured(self, row: Row, own: Samples, baseline: Samples | None, of: Baseline = Baseline.ORIGINAL) -> Result:
        against = Against.of(of, baseline, own, row.name) if baseline is not None else None
        empty = row.result(str(self._harness.plan.precision))
        return replace(empty, status=Status.MEASURED, latency_ms=own, against=against)

    def _run(self, row: Row, variant: Variant) -> Timed:
        beside = self._beside(row) if row.candidate == PLAIN else None
        if beside is not None:
            return beside
        variants = {} if row.alone else {"original": self._harness.original}
        if row.candidate != PLAIN:
            variants[row.name] = variant
        options, request = self._options(row), self._requests.get(row.workload)
        split_calls = min(options.iterations or SPLIT_CALLS, SPLIT_CALLS)
        timed = self._harness.time(variants, request, options, of=row.of, split_calls=split_calls)
        self._timed[row.of, row.candidate, row.workload] = timed
        return timed

    def _options(self, row: Row) -> BenchmarkOptions:
        timer = "cuda_event" if self._harness.device.type == "cuda" and row.of != REQUEST else "python_timer"
        return BenchmarkOptions(timer, *self._rounds(row), math.inf)

    def _beside(self, row: Row) -> Timed | None:
        """The first run of the same calls, of whatever candidate: the original was timed interleaved with it."""
        same = (t for (of, _, work), t in self._timed.items() if (of, work) == (row.of, row.workload))
        return next((timed for timed in same if "original" in timed.latencies), None)

    def _request_of(self, row: Row) -> tuple[Timed, str] | None:
        """A run of whole calls of the row's candidate whose stages were timed, and the candidate's name in it."""
        for (_, candidate, work), timed in self._timed.items():
            if (candidate, work) == (row.candidate, row.workload):
                name = next((name for name in timed.stages if name != "original"), None)
                if name is not None and "original" in timed.stages:
                    return timed, name
        return None

    def _loop(self, row: Row, variant: Variant) -> Result:
        found = self._request_of(row)
        timed, name = found or (self._run(replace(row, of="model"), variant), row.name)
        parts = (*ARCHITECTURE.step, *ARCHITECTURE.loops[1:])
        original = loop_samples(timed.stages.get("original", ()), parts)
        own = loop_samples(timed.stages.get(name, ()), parts)
        if own is None:
            raise BackendError(f"{row.name}: no stage of a denoising step was timed")
        return replace(
            self._measured(row, own, original),
            work=Work(operators_per_step=self._counter.operators_per_step(row.candidate.optimizations)),
            notes=("the stages that run once per denoising step, within the whole calls timed for another row",),
        )

    def _submodule(self, row: Row, part: Part) -> Result:
        taken = self._harness.interleaved({"eager": part.eager, row.name: part.call}, self._options(row))
        return replace(
            self._measured(row, taken[row.name], taken["eager"], Baseline.STAGE),
            accuracy=part.agreement,
            notes=("eager is the same submodule of the same model in PyTorch",),
        )

    def _work(self, row: Row, variant: Variant) -> Work:
        counted = self._counter.trace(Counted.of(row.candidate, row.workload))
        per_step = row.group in COUNTED_PER_STEP
        steps = self._counter.operators_per_step(row.candidate.optimizations) if per_step else None
        found = kernels(self._harness.call(variant, self._requests.get(row.workload)))
        self._harness.restore()
        work = Work(counted.flops / 1e9, counted.bytes, counted.weight_bytes, counted.operators, steps)
        if found is None:
            return work
        launches, spent_ms = sum(kernel.launches for kernel in found), sum(kernel.ms for kernel in found)
        return replace(work, kernels=launches, kernel_ms=spent_ms, busiest_kernels=tuple(found[:BUSIEST]))

    def _roofline(self, row: Row, own: Samples) -> Roofline | None:
        if self._ceilings is None:
            return None
        floor = self._counter.trace(Counted.of(row.candidate, row.workload)).milliseconds(self._ceilings)
        percent = None if floor is None or row.of != "model" else 100 * floor / own.p50
        return Roofline(self._gpu, self._ceilings.source, floor, percent)

    def variant(self, candidate: Candidate) -> Variant:
        """The candidate, built on first use. Raises: BackendError when it cannot be, or could not before."""
        if candidate in self._failed:
            raise BackendError(f"could not be built: {self._failed[candidate]}")
        if candidate not in self._made:
            try:
                self._made[candidate] = self._make(candidate)
            except Exception as error:
                self._failed[candidate] = first_line(error)
                raise
        return self._made[candidate]

    def _make(self, candidate: Candidate) -> Variant:
        harness, precision = self._harness, str(self._harness.plan.precision)
        if candidate.graph:
            return harness.graphed(self.variant(replace(candidate, graph=False)))
        made = replace(candidate, precision=precision)
        if candidate.backend == "eager":
            return harness.variant(made)
        inductor = candidate.backend == "inductor"
        backend: Backend = InductorBackend(candidate.mode or "default") if inductor else get_backend(candidate.backend)
        found = backend.availability()
        if not found.installed:
            raise BackendError(f"{candidate.backend}: {found.reason}")
        plan = Plan(candidate.backend, precision, optimizations=candidate.optimizations, loop=candidate.loop)
        length = harness.reference.base.length
        ranges = Ranges() if candidate.dynamic else Ranges((1, 1), (1, 1), (length, length))
        parts = {}
        for name in select("all", plan):
            own, label = resolve_submodule(plan, name), f"{candidate.backend} {candidate.mode or ''}: building {name}"
            parts[name] = part = harness.build(
                name, own, candidate.optimizations, ranges=ranges, backend=backend, label=label
            )
            if not part.built.runs:
                raise BackendError(f"{name}: {candidate.backend} engines cannot run on this machine")
        return harness.variant(made, parts)

    def keep_only(self, candidates: set[Candidate]) -> None:
        """Let go of every variant that no row needs any more, and of the GPU memory that failed builds hold."""
        kept = {PLAIN, *candidates, *(replace(candidate, graph=False) for candidate in candidates)}
        self._made = {candidate: variant for candidate, variant in self._made.items() if candidate in kept}
        self._harness.keep_only(candidate.optimizations for candidate in kept)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _estimate_s(self, row: Row) -> float:
        calls, warmup = self._rounds(row)
        if row.of == "loop" and self._request_of(row) is not None:
            return 0.0
        if row.candidate == PLAIN and self._beside(row) is not None:
            return self._pair_s(row) / 2  # only its accuracy is left to look at
        return self._build_s(row.candidate) + self._pair_s(row) * (calls + warmup + 1)

    def _pair_s(self, row: Row) -> float:
        """Seconds of one call of each; one that was not timed yet is taken to be as slow as the original."""
        if row.of not in ("model", REQUEST, "loop"):
            return self._call_s / 2
        work = row.workload
        original = self._call_s * work.batch * (1 + 0.75 * (work.views - 1)) * (0.65 + 0.35 * work.steps / 4)
        timed = self._timed.get(("model", row.candidate, work))
        latencies = timed.latencies if timed else {}
        own = next((latency.p50 / 1e3 for name, latency in latencies.items() if name != "original"), original)
        return own if row.alone else original + own

    def _rounds(self, row: Row) -> tuple[int, int]:
        pair_s = self._pair_s(row)
        if row.calls == CALLS_OF_PERCENTILES:
            return row.calls, 5
        calls = max(FEWEST, int(SECONDS_PER_ROW / max(pair_s, 1e-9)))
        if row.priority == 0:
            # The first row is worth having with fewer calls: it says so itself, and gives no verdict.
            calls = max(1, min(calls, int(self._budget.left / 2 / pair_s)))
        return min(row.calls, calls), 1 if pair_s > 2 else 5

    def _build_s(self, candidate: Candidate) -> float:
        made = candidate in self._made or replace(candidate, graph=False) in self._made
        if made or candidate.backend == "eager":
            return 0.0
        per_layer = BUILD_S_PER_LAYER.get(candidate.mode or "default", 1.5) * (2 if candidate.dynamic else 1)
        return self._correction * per_layer * self._layers()

    def _layers(self) -> int:
        config = self._harness.plain.config
        head = config.action_head
        depths = (head.diffusion.num_layers, head.vl_self_attention.num_layers, config.backbone.select_layer)
        return int(config.eagle.vision.num_hidden_layers + sum(depths))


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


def to_count(rows: Sequence[Row]) -> tuple[list[Counted], list[tuple[str, ...]]]:
    """What taking these rows will ask of a `Counter`, each question once."""
    whole = [Counted.of(row.candidate, row.workload) for row in rows if row.of in ("model", REQUEST)]
    steps = [row.candidate.optimizations for row in rows if row.group in COUNTED_PER_STEP]
    return list(dict.fromkeys(whole)), list(dict.fromkeys(steps))
