"""Measuring rows: what is left of the budget decides which, and each is timed, checked and written by itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..backends.guarded import first_line
from ..errors import BackendError
from ..plans.schema import ARCHITECTURE, BenchmarkOptions
from ..record.files import write_record
from ..record.numbers import digits
from ..record.result import REQUEST, Against, Baseline, Card, Launch, Result, Roofline, Status, Work, Workload
from ..record.samples import Samples
from ..record.schema import Record, drift_of
from .accuracy import judge
from .budget import Budget, OutOfTime
from .estimates import Estimates
from .harness import SPLIT_CALLS, Harness
from .kernels import timeline
from .launches import host_us, replays, stage_replays
from .memory import GpuMeter
from .replays import joined
from .results import Checked, Part, Timed, Variant
from .roofline import ceilings
from .rows import CALLS_OF_PERCENTILES, PLAIN, REPLAYS, Row
from .settings import unknown_setting
from .stages import REST, loop_samples, medians
from .timers import typical_seconds
from .variants import Variants, about_quantized, not_here, not_in
from .work import COUNTED_PER_STEP, Counted, Counter
from .workloads import Requests

BUSIEST = 12
"""Kernels that a result names."""

HOST_CALLS = 20
"""Calls that tell the host's part where replays alone are timed."""

ORIGINAL = "original"


class Sweep:
    """Takes rows, one at a time, on variants of one model; those that later rows need are kept.

    Args:
        meter: Running already; gives each row the clock and the power that the GPU had meanwhile.
        built: Called when something was built.
    """

    def __init__(
        self,
        harness: Harness,
        requests: Requests,
        counter: Counter,
        budget: Budget,
        *,
        meter: GpuMeter | None = None,
        built: Callable[[], object] = lambda: None,
    ):
        self._harness, self._requests, self._counter, self._budget = harness, requests, counter, budget
        self._meter, self._built = meter, built
        gpu = torch.cuda.get_device_name(harness.device) if harness.device.type == "cuda" else None
        self._gpu, self._ceilings = gpu, ceilings(gpu)
        self._variants = Variants(harness)
        self._timed: dict[Row, Timed] = {}
        config = harness.plain.config
        layers = {
            "vision_model": int(config.eagle.vision.num_hidden_layers),
            "language_model": int(config.backbone.select_layer),
            "vl_components": int(config.action_head.vl_self_attention.num_layers),
            "denoise_step": int(config.action_head.diffusion.num_layers),
        }
        self._estimates = Estimates(harness.device.type, layers, self._seconds_of_a_call())

    def _seconds_of_a_call(self) -> float:
        call = self._harness.call(self._harness.original, self._requests.get(Workload()))
        return typical_seconds(call, self._harness.device)

    def take_all(self, rows: Sequence[Row], record: Record, path: Path) -> bool:
        """Fill in the results of all rows, by priority; returns whether one of them failed."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].priority)
        failed = False
        for done, i in enumerate(order):
            row = rows[i]
            left = f"{done + 1} of {len(rows)}, {self._budget.left:.0f} s left"
            record.results[i] = result = self._result(row, left)
            failed = failed or result.status is Status.FAILED or bool(result.failures)
            if row in self._timed and row.candidate == PLAIN and row.beside is not None:
                self._hold_against_original(row, rows, record)
            needed = [rows[j] for j in order[done + 1 :]]
            self._variants.keep_only({one for row in needed for one in (row.candidate, row.beside) if one is not None})
            record.drift = drift_of(record.results)
            write_record(record, path)
        return failed

    def _result(self, row: Row, left: str) -> Result:
        """The result of a row, with or without figures."""
        empty = row.result(str(self._harness.plan.precision))
        made, harness = row.candidate, self._harness
        absent = row.absent or unknown_setting(made.settings) or not_here(made.backend)
        absent = absent or not_in(made, harness.plan, harness.device)
        if absent is not None:
            return replace(empty, status=Status.UNAVAILABLE, why=absent)
        why = self._budget.why_not(self._estimate_s(row))
        if why is not None:
            return replace(empty, status=Status.NO_TIME, why=why)
        self._harness.steps.step(f"{row.group}: {row.name} ({left})")
        began = self._meter.mark() if self._meter else None
        try:
            with self._budget.enforced():
                taken = self.take(row)
        except OutOfTime:
            why = f"no time: it was begun, and the budget of {self._budget.seconds:.0f} s ended"
            return replace(empty, status=Status.NO_TIME, why=why)
        except Exception as error:  # whatever one row does must not cost the others
            return replace(empty, status=Status.FAILED, why=f"failed: {first_line(error)}")
        seen = self._meter.since(began) if self._meter and began else {}
        return replace(taken, card=Card(self._gpu, **seen)) if self._gpu else taken

    def take(self, row: Row) -> Result:
        """Measure one row. Raises: whatever building or calling the candidate raises."""
        variant = self._build(row)
        if row.of == "loop":
            return self._loop(row, variant)
        if row.of == "split":
            return self._split(row, variant)
        if row.of == "replay":
            return self._compare(row, variant)
        if row.of not in ("model", REQUEST):
            return self._submodule(row, variant.parts[row.of])
        return self._whole(row, variant)

    def _build(self, row: Row) -> Variant:
        expected, start = self._estimates.build_s(row.candidate, self._variants.made), time.perf_counter()
        variant = self._variants.get(row.candidate)
        if expected:
            self._estimates.learn_build(expected, time.perf_counter() - start)
            self._built()
        return variant

    def _whole(self, row: Row, variant: Variant) -> Result:
        """Whole calls: their latency, accuracy and work."""
        request = self._requests.get(row.workload)
        self._harness.capture(variant, request)
        checked = self._harness.check(variant, request)
        timed = self._run(row, variant)
        name = ORIGINAL if row.candidate == PLAIN else row.name
        original, own = timed.latencies.get(ORIGINAL), timed.latencies[name]
        build_s = sum(part.built.build_s for part in variant.parts.values())
        built = [f"{len(variant.parts)} submodules built in {build_s:.1f} s"] if variant.parts else []
        measured = self._measured(row, own, original if name != ORIGINAL else None)
        return replace(
            self._judged(measured, variant, checked),
            stages_ms=medians(timed.stages.get(name, ())),
            work=self._work(row, variant),
            roofline=self._roofline(row, own),
            launch=self._launch(row, variant, timed.host_us.get(name)),
            notes=(*built, *about_quantized(variant)),
        )

    def _measured(self, row: Row, own: Samples, baseline: Samples | None, of: Baseline = Baseline.ORIGINAL) -> Result:
        against = Against.of(of, baseline, own, row.name) if baseline is not None else None
        empty = row.result(str(self._harness.plan.precision))
        return replace(empty, status=Status.MEASURED, latency_ms=own, against=against)

    def _judged(self, result: Result, variant: Variant, checked: Checked) -> Result:
        """A result with the accuracy of the variant's actions."""
        found, gate = checked.agreement, self._harness.gate_of(variant.candidate)
        failures = judge(result.name, found, gate)
        return replace(result, accuracy=found, gate=gate, passed=not checked.failures, failures=failures)

    def _run(self, row: Row, variant: Variant) -> Timed:
        beside = self._beside(row) if row.candidate == PLAIN else None
        if beside is not None:
            return beside
        variants = {} if row.alone and row.candidate != PLAIN else {ORIGINAL: self._harness.original}
        if row.candidate != PLAIN:
            variants[row.name] = variant
        elif row.beside is not None:
            variants["in turn"] = self._variants.get(row.beside)
        request = self._requests.get(row.workload)
        if variant.graphs is not None:
            # A graph is many times as fast as anything that was timed before it.
            call = self._harness.call(variant, request, row.of)
            self._estimates.learn(row, typical_seconds(call, self._harness.device))
        options = self._options(row)
        split_calls = min(options.iterations or SPLIT_CALLS, SPLIT_CALLS)
        timed = self._harness.time(variants, request, options, of=row.of, split_calls=split_calls, from_idle=True)
        self._timed[row] = timed
        if row.candidate != PLAIN:
            self._estimates.learn(row, timed.latencies[row.name].p50 / 1e3)
        return timed

    def _options(self, row: Row) -> BenchmarkOptions:
        timer = "cuda_event" if self._harness.device.type == "cuda" and row.of != REQUEST else "python_timer"
        return BenchmarkOptions(timer, *self._estimates.rounds(row, self._budget.left), math.inf)

    def _beside(self, row: Row) -> Timed | None:
        """The first run of the same calls, of whatever candidate: the original was timed interleaved with it."""
        same = (t for other, t in self._timed.items() if (other.of, other.workload) == (row.of, row.workload))
        return next((timed for timed in same if ORIGINAL in timed.latencies), None)

    def _hold_against_original(self, row: Row, rows: Sequence[Row], record: Record) -> None:
        """Give the row that the original was timed in turn with its verdict: the one ratio to the original."""
        taken = self._timed[row].latencies
        for i, other in enumerate(rows):
            same = (other.of, other.candidate, other.workload) == (row.of, row.beside, row.workload)
            if same and record.results[i].latency_ms is not None:
                against = Against.of(Baseline.ORIGINAL, taken[ORIGINAL], taken["in turn"], other.name)
                record.results[i] = replace(record.results[i], against=against)

    def _loop(self, row: Row, variant: Variant) -> Result:
        found = self._request_of(row)
        timed, name = found or (self._run(replace(row, of="model"), variant), row.name)
        parts = (*ARCHITECTURE.step, *ARCHITECTURE.loops[1:])
        original = loop_samples(timed.stages.get(ORIGINAL, ()), parts)
        own = loop_samples(timed.stages.get(name, ()), parts)
        if own is None:
            raise BackendError(f"{row.name}: no stage of a denoising step was timed")
        return replace(
            self._measured(row, own, original),
            work=Work(operators_per_step=self._counter.operators_per_step(row.candidate.optimizations)),
            notes=("the stages that run once per denoising step, within the whole calls timed for another row",),
        )

    def _request_of(self, row: Row) -> tuple[Timed, str] | None:
        """A run of whole calls of the row's candidate whose stages were timed, and the candidate's name in it."""
        for other, timed in self._timed.items():
            if (other.candidate, other.workload) == (row.candidate, row.workload):
                name = next((name for name in timed.stages if name != ORIGINAL), None)
                if name is not None and ORIGINAL in timed.stages:
                    return timed, name
        return None

    def _submodule(self, row: Row, part: Part) -> Result:
        taken = self._harness.interleaved({"eager": part.eager, row.name: part.call}, self._options(row))
        return replace(
            self._measured(row, taken[row.name], taken["eager"], Baseline.STAGE),
            accuracy=part.agreement,
            notes=("eager is the same submodule of the same model in PyTorch",),
        )

    def _split(self, row: Row, variant: Variant) -> Result:
        """The whole graph, and every stage as one of its own."""
        harness, request = self._harness, self._requests.get(row.workload)
        harness.capture(variant, request)
        whole = replays(harness, variant, request, CALLS_OF_PERCENTILES)
        parts = stage_replays(harness, variant, request, row.calls)
        stages = {part.stage: part.latency_ms.p50 for part in parts}
        added = sum(stages.values())
        told = f"the stages add up to {digits(added)} ms, and the whole graph takes {digits(whole.p50)} ms"
        return replace(
            self._measured(row, whole, None),
            split=parts,
            stages_ms={**stages, REST: max(whole.p50 - added, 0.0)},
            launch=Launch(host_us(harness, variant, request, HOST_CALLS)),
            notes=(told,),
        )

    def _compare(self, row: Row, variant: Variant) -> Result:
        """A B A: the graph of `beside`, the row's, and the first again."""
        assert row.beside is not None
        harness, request, base = self._harness, self._requests.get(row.workload), self._variants.get(row.beside)
        for one in (base, variant):
            harness.capture(one, request)
        checked = harness.check(variant, request)
        before, own, after = (replays(harness, one, request, row.calls) for one in (base, variant, base))
        result = self._measured(row, own, joined(before, after), Baseline.FORM)
        won = result.against is not None and result.against.winner == row.name
        medians_ms = ", ".join(digits(latency.p50) for latency in (before, own, after))
        told = f"A B A: {medians_ms} ms: {'kept' if won else 'not kept'}"
        return replace(
            self._judged(result, variant, checked),
            launch=Launch(host_us(harness, variant, request, HOST_CALLS)),
            notes=(told, *about_quantized(variant)),
        )

    def _launch(self, row: Row, variant: Variant, launched_us: float | None) -> Launch | None:
        """The host's part of whole calls, and the graph's."""
        if variant.graphs is None:
            return Launch(launched_us) if self._gpu else None
        if row.of == REQUEST:
            return Launch(launched_us)
        request = self._requests.get(row.workload)
        replay, event = (replays(self._harness, variant, request, REPLAYS, in_calls=own) for own in (False, True))
        return Launch(launched_us, replay, event)

    def _work(self, row: Row, variant: Variant) -> Work:
        counted = self._counter.trace(Counted.of(row.candidate, row.workload))
        per_step = row.group in COUNTED_PER_STEP
        steps = self._counter.operators_per_step(row.candidate.optimizations) if per_step else None
        found = timeline(self._harness.call(variant, self._requests.get(row.workload)))
        self._harness.restore()
        work = Work(counted.flops / 1e9, counted.bytes, counted.weight_bytes, counted.operators, steps)
        if found is None:
            return work
        return replace(
            work,
            kernels=found.launches,
            kernel_ms=found.kernel_ms,
            busiest_kernels=found.kernels[:BUSIEST],
            first_kernel_ms=found.first_ms,
            last_kernel_ms=found.last_ms,
            gaps_ms=found.gaps_ms,
        )

    def _roofline(self, row: Row, own: Samples) -> Roofline | None:
        if self._ceilings is None:
            return None
        floor = self._counter.trace(Counted.of(row.candidate, row.workload)).milliseconds(self._ceilings)
        percent = None if floor is None or row.of != "model" else 100 * floor / own.p50
        return Roofline(self._gpu, self._ceilings.source, floor, percent)

    def _estimate_s(self, row: Row) -> float:
        if row.of == "loop" and self._request_of(row) is not None:
            return 0.0
        if row.candidate == PLAIN and self._beside(row) is not None:
            return self._estimates.round_s(row) / 2  # only its accuracy is left to look at
        build_s = self._estimates.build_s(row.candidate, self._variants.made)
        return build_s + self._estimates.row_s(row, self._budget.left)
