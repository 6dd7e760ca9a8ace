"""The one harness: take the reference, build, check, time. Each step returns what the next one needs.

    reference = take_reference(policy, request, [plan.optimizations], steps)   eager fp32, nothing compiled
    harness = Harness(reference, plan, steps)                casts the model to the plan's precisions, in place
    part = harness.build("dit_model", resolved["dit_model"], plan.optimizations)
    variant = harness.variant(candidate, {"dit_model": part})
    checked = harness.check(variant, request)                actions of a whole request against the reference
    timed = harness.time({"original": harness.original, "inductor": variant}, request, plan.benchmark)

A run is one candidate, a comparison one per backend, a measuring run a list of them with a budget, and a deployment one
that is not timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ..backends.base import Backend, BuildContext
from ..common.progress import Steps
from ..compile import capture
from ..compile.build import dimension_ranges, set_precision
from ..engines.cache import EngineCache
from ..errors import BackendError
from ..model.n1_5.fast import RequestGraphs
from ..model.protocol import Model
from ..model.targets import Recording
from ..plans.backends import get_backend
from ..plans.precisions import PRECISIONS, Gate
from ..plans.resolve import Resolved
from ..plans.schema import BenchmarkOptions, Plan, Ranges
from ..plans.submodules import ResolvedSubmodule, graph_tolerance, resolve_action_gate
from ..quantize.calibration import Calibration
from ..quantize.layers import quantized_target
from ..record.result import REQUEST, Against, Baseline, Build, Candidate, Result, Status, Workload
from ..record.samples import Samples, percentile
from .accuracy import compare, judge
from .memory import MemoryMeter
from .reference import Reference, reference_actions, reference_recording
from .replays import WatchedCapturer, launching
from .results import Checked, Part, Timed, Variant, agreement_with, build_of, quantized_of
from .stages import StageRow, StageTimer
from .timers import Calls, drain, measure_alternating
from .workloads import Request

SPLIT_CALLS = 10
"""Calls whose stages are timed where that needs calls of its own."""


class Harness:
    """Builds, checks and times candidates of one plan against a reference.

    Making one casts the reference's model to the plan's precisions, in place.

    Args:
        calibration: Of this very model, for quantised candidates; None has each read the plan's.
    Attributes:
        original: The model as it was published, in eager PyTorch: the baseline of requests.
        action_gate: What the actions of every variant in the plan's precisions must reach.
    """

    def __init__(self, reference: Reference, plan: Plan, steps: Steps, calibration: Calibration | None = None):
        self.reference, self.plan, self.steps, self.calibration = reference, plan, steps, calibration
        self.policy = reference.policy
        self.plain: Model = reference.policy.model
        self.device = self.plain.device
        self.action_gate = resolve_action_gate(plan)
        self._expected, self._recordings = dict(reference.actions), dict(reference.recordings)
        self._models: dict[tuple[str, ...], Model] = {(): self.plain}
        self._captured: WeakKeyDictionary[RequestGraphs, set[Workload]] = WeakKeyDictionary()
        loaded = dict(self.plain.stage_dtypes), self.plain.dtype
        set_precision(self.plain, plan)
        self._uncast = (self.plain.stage_dtypes, self.plain.dtype) == loaded
        precision = PRECISIONS[plan.precision].carrier
        self.original = Variant(Candidate(precision=precision), self.plain, dict(self.plain.stages))

    def gate_of(self, candidate: Candidate) -> Gate:
        """What a candidate's actions must reach: one in fewer bits than the plan has its own precision's gate."""
        row = PRECISIONS[candidate.precision or self.plan.precision]
        own = row.quantized and not PRECISIONS[self.plan.precision].quantized
        return row.action_gate if own else self.action_gate

    def expected(self, request: Request) -> Tensor:
        """The reference's actions; of a model that stays as it was loaded, worked out when they are asked for."""
        if request.workload not in self._expected:
            if not self._uncast:
                raise RuntimeError(f"no reference was taken of {request.workload}, and the model is cast already")
            self.install(self.original, request.workload)
            self._expected[request.workload] = reference_actions(self.plain, request)
        return self._expected[request.workload]

    def give(self, request: Request, actions: Tensor | None) -> None:
        """Put actions in the reference's place; None has them worked out again, of a model as it was loaded only."""
        self._expected.pop(request.workload, None)
        if actions is not None:
            self._expected[request.workload] = actions

    def recording(self, optimizations: tuple[str, ...]) -> Recording:
        """The reference's calls of the stages that a model with these optimizations has."""
        if optimizations not in self._recordings:
            if not self._uncast:
                raise RuntimeError(f"no stages were recorded with {optimizations}, and the model is cast already")
            self.install(self.original, self.reference.base.workload)
            self._recordings[optimizations] = reference_recording(
                self.plain, self.reference.base, optimizations, self.steps
            )
        return self._recordings[optimizations]

    def model(self, optimizations: tuple[str, ...]) -> Model:
        """The model with these optimizations, which shares the plain one's weights; made once while it is kept."""
        if optimizations not in self._models:
            self._models[optimizations] = self.plain.architecture.restructured(self.plain, optimizations)
        return self._models[optimizations]

    def keep_only(self, optimizations: Iterable[tuple[str, ...]]) -> None:
        """Let go of the models that nothing needs any more."""
        kept = {(), *optimizations}
        self._models = {names: model for names, model in self._models.items() if names in kept}

    def build(
        self,
        name: str,
        resolved: ResolvedSubmodule,
        optimizations: tuple[str, ...],
        *,
        ranges: Ranges | None = None,
        backend: Backend | None = None,
        engine_dir: Path | None = None,
        cache: EngineCache | None = None,
        label: str = "",
    ) -> Part:
        """Build one submodule and hold it against the eager fp32 recording; the model is left as it is.

        Args:
            ranges: Sizes that it must accept; the plan's where None.
            backend: In place of the one that `resolved` names.
            label: What to call it while it is built.
        Raises: BackendError, PlanError or RecordError from the backend; PlanError as `quantized_target`.
        """
        model, recording, base = self.model(optimizations), self.recording(optimizations), self.reference.base
        dims = dimension_ranges(model.config, ranges or self.plan.ranges, base)

        def progress(phase: str) -> None:
            self.steps.step(f"{label or name}: {phase}")

        with MemoryMeter(self.device) as memory:
            target = model.target(name, recording, dims)
            target, done = quantized_target(target, model, resolved, self.policy, self.calibration)
            quantized = quantized_of(done) if done else None
            maker = backend or get_backend(resolved.backend)
            built = maker.build(target, resolved.build, BuildContext(engine_dir, progress, cache))
            built = replace(built, notes=(*(done.notes if done else ()), *built.notes))
            progress("comparing with eager fp32")
            agreement = agreement_with(built.call, recording[name], model.argument_dtypes(name), self.device)
        failures = judge(name, agreement, resolved.gate)
        return Part(target, resolved, built, agreement, failures, memory.added_bytes, quantized)

    def variant(self, candidate: Candidate, parts: Mapping[str, Part] | None = None) -> Variant:
        """The model of a candidate, with the built parts in place of their stages."""
        model, parts = self.model(candidate.optimizations), parts or {}
        table: dict[str, Callable[..., Tensor]] = dict(self.original.table)
        if candidate.optimizations:
            table = {name: model.eager_stage(name) for name in model.stages}
        table |= {name: part.built.call for name, part in parts.items()}
        return Variant(candidate, model, table, parts)

    def graphed(self, variant: Variant) -> Variant:
        """The same, every request replayed as one CUDA graph. Raises: BackendError where that is impossible."""
        backends = {name: part.resolved.backend for name, part in variant.parts.items()}
        found = capture.capturer_for(self.device)
        watched = WatchedCapturer(found, self.device) if found is not None else None
        tolerance = graph_tolerance(self.plan)
        graphs = capture.request_graphs(variant.model, backends, tolerance=tolerance, capturer=watched)
        return replace(variant, candidate=replace(variant.candidate, graph=True), graphs=graphs, watched=watched)

    def captured(self, variant: Variant) -> Variant:
        """The variant with the graphs that its model holds by now."""
        graphs: Any = variant.model.graphs
        return replace(variant, candidate=replace(variant.candidate, graph=graphs is not None), graphs=graphs)

    def install(self, variant: Variant, work: Workload) -> None:
        """Make the model call what the variant says, in the workload's denoising steps."""
        model = variant.model
        if model.denoising_steps != work.steps:
            model.denoising_steps = work.steps
        if model.loop != variant.candidate.loop:
            model.loop = variant.candidate.loop
        model.stages.update(variant.table)
        model.graphs = variant.graphs

    def restore(self) -> None:
        """Give the policy its plain model back, in eager PyTorch."""
        self.policy.model = self.plain
        self.install(self.original, self.reference.base.workload)

    def call(self, variant: Variant, request: Request, of: str = "model") -> Callable[[], Any]:
        """What is timed, and checked.

        Args:
            of: ``model``: inputs resident on the device to normalised actions; ``request``: an observation in numpy to
                actions in numpy.
        """
        self.install(variant, request.workload)
        resident = None if of == REQUEST else request.resident(variant.model)

        def call() -> Any:
            self.install(variant, request.workload)
            if resident is not None:
                return variant.model.get_action(resident, noise=request.noise)["action_pred"]
            self.policy.model = variant.model
            return self.policy.get_action(request.observation, noise=request.noise)

        return call

    def capture(self, variant: Variant, request: Request) -> None:
        """Capture requests of this workload, unless that was done. Raises: BackendError saying why it cannot be."""
        if variant.graphs is None:
            return
        captured = self._captured.setdefault(variant.graphs, set())
        if request.workload in captured:
            return
        self.install(variant, request.workload)
        refused = variant.graphs.capture(variant.model.prepare(request.resident(variant.model)), request.noise)
        if refused is not None:
            raise BackendError(f"one CUDA graph: {refused}")
        captured.add(request.workload)

    @torch.no_grad()
    def check(self, variant: Variant, request: Request) -> Checked:
        """Hold the actions of one request against eager fp32, from the same noise."""
        expected = self.expected(request)
        with MemoryMeter(self.device) as memory:
            call = self.call(variant, request)
            start = time.perf_counter()
            actions = call()
            drain(self.device)
            first_call_ms = (time.perf_counter() - start) * 1e3
        agreement = compare(actions.cpu(), expected)
        failures = judge("actions", agreement, self.gate_of(variant.candidate))
        return Checked(actions, agreement, failures, first_call_ms, memory.added_bytes)

    @torch.no_grad()
    def time(
        self,
        variants: Mapping[str, Variant],
        request: Request,
        options: BenchmarkOptions,
        *,
        of: str = REQUEST,
        split: bool = True,
        split_calls: int | None = None,
        from_idle: bool = False,
    ) -> Timed:
        """Time whole calls of several variants, interleaved, and where asked for their stages.

        Reading the clock is nothing beside a request on a CPU, but events between its kernels delay a GPU: there the
        split gets calls of its own. A replayed graph passes through no stage and has none.

        Args:
            split_calls: Calls whose stages are timed on a GPU; as many as are timed where None.
            from_idle: See `timers.measure_alternating`.
        """
        on_cpu = self.device.type == "cpu"
        timed = self._interleaved(variants, request, options, of, split and on_cpu, from_idle=from_idle)
        passing = {name: variant for name, variant in variants.items() if variant.graphs is None}
        if split and passing and not on_cpu:
            fewer = replace(options, iterations=split_calls, warmup=1) if split_calls else options
            timed = replace(timed, stages=self.split(passing, request, fewer, of=of))
        return timed

    @torch.no_grad()
    def split(
        self, variants: Mapping[str, Variant], request: Request, options: BenchmarkOptions, *, of: str = REQUEST
    ) -> Mapping[str, Sequence[StageRow]]:
        """The stages of whole calls, in calls of their own: their totals are no latencies on a GPU."""
        return self._interleaved(variants, request, options, of, True).stages

    def _interleaved(
        self,
        variants: Mapping[str, Variant],
        request: Request,
        options: BenchmarkOptions,
        of: str,
        split: bool,
        *,
        from_idle: bool = False,
    ) -> Timed:
        calls: dict[str, Callable[[], object]] = {}
        timers: dict[str, StageTimer] = {}
        launched: dict[str, list[float]] = {name: [] for name in variants}
        try:
            with ExitStack() as stack:
                for name, variant in variants.items():
                    table = dict(variant.table)
                    if split and variant.graphs is None:
                        tables = (self.policy.stages, table) if of == REQUEST else (table,)
                        timers[name] = stack.enter_context(StageTimer(tables, self.device))
                    call = _marked(self.call(replace(variant, table=table), request, of), timers.get(name))
                    calls[name] = launching(call, variant.watched, launched[name])
                latencies = self.interleaved(calls, options, from_idle=from_idle)
        finally:
            self.restore()
        stages = {name: timer.rows(warmup=latencies[name].warmup) for name, timer in timers.items()}
        host_us = {name: percentile(tuple(us[latencies[name].warmup :]), 50) for name, us in launched.items()}
        return Timed(latencies, stages, host_us)

    @torch.no_grad()
    def interleaved(self, calls: Calls, options: BenchmarkOptions, *, from_idle: bool = False) -> dict[str, Samples]:
        """Latencies by name, taken in turn as the options say."""
        return measure_alternating(calls, **vars(options), device=self.device, from_idle=from_idle)

    def part_result(self, part: Part, group: str = "run", latencies: Mapping[str, Samples] | None = None) -> Result:
        """What became of one submodule.

        Args:
            latencies: Of ``eager`` and of the backend, whichever there are; None where nothing was timed.
        """
        backend, latencies = part.resolved.backend, latencies or {}
        eager, own = latencies.get("eager"), latencies.get(backend)
        return Result(
            group,
            backend,
            part.target.name,
            Candidate(backend, part.resolved.precision, self.plan.optimizations, self.plan.loop),
            self.reference.base.workload,
            Status.BUILT_NOT_RUN if not part.built.runs else Status.MEASURED if own else Status.CHECKED,
            build=build_of(part.built, part.target, part.peak_bytes),
            latency_ms=own,
            against=Against.of(Baseline.STAGE, eager, own, backend) if eager and not part.is_baseline else None,
            accuracy=part.agreement,
            gate=part.resolved.gate,
            passed=not part.failures,
            failures=part.failures,
            peak_bytes=part.peak_bytes,
            quantized=part.quantized,
            notes=part.built.notes,
        )

    def request_result(
        self, name: str, variant: Variant, checked: Checked | None, group: str = "run", timed: Timed | None = None
    ) -> Result:
        """What became of a whole request.

        Args:
            timed: Latencies of ``original`` and of `name`, whichever there are; None where nothing was timed.
        """
        latencies = timed.latencies if timed else {}
        original, own = latencies.get("original"), latencies.get(name)
        if own is None and variant.table == self.original.table:
            own, original = original, None  # the candidate is the original itself
        built = [build_of(part.built) for part in variant.parts.values() if not part.is_baseline]
        return Result(
            group,
            name,
            REQUEST,
            variant.candidate,
            self.reference.base.workload,
            Status.BUILT_NOT_RUN if not variant.runs else Status.MEASURED if own else Status.CHECKED,
            build=Build.total(built) if built else None,
            latency_ms=own,
            against=Against.of(Baseline.ORIGINAL, original, own, name) if original and name != "original" else None,
            first_call_ms=checked.first_call_ms if checked and variant.runs else None,
            accuracy=checked.agreement if checked else None,
            gate=self.action_gate if checked else None,
            passed=not checked.failures if checked else None,
            failures=checked.failures if checked else (),
            peak_bytes=checked.peak_bytes if checked else None,
        )


def _marked(call: Callable[[], object], timer: StageTimer | None) -> Callable[[], object]:
    def marked() -> object:
        with timer.request() if timer else nullcontext():
            return call()

    return marked


def build_all(harness: Harness, resolved: Resolved, cache: EngineCache | None) -> dict[str, Part]:
    """Every compile target, built one after the other and held against the reference."""
    parts, names, optimizations = {}, resolved.names, resolved.plan.optimizations
    for number, name in enumerate(names, 1):
        label, folder = f"{name} ({number} of {len(names)})", resolved.engine_dir
        parts[name] = harness.build(name, resolved[name], optimizations, engine_dir=folder, cache=cache, label=label)
    return parts
