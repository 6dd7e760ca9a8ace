"""What the steps of the harness return, and how that becomes the results of a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..backends.base import Built
from ..model.n1_5.fast import RequestGraphs
from ..model.protocol import Model
from ..model.targets import Call, Target, cast_inputs
from ..plans.resolve import Resolved
from ..plans.submodules import ResolvedSubmodule
from ..quantize.layers import Quantized as QuantizedStage
from ..record.result import Agreement, Argument, Build, Candidate, Quantized
from ..record.samples import Samples
from ..record.schema import StageTime
from .accuracy import compare
from .replays import WatchedCapturer
from .stages import REST, TOTAL, StageRow

Stages = Mapping[str, Callable[..., Tensor]]


@dataclass(frozen=True, eq=False)
class Part:
    """One submodule as a backend built it, held against the reference.

    Attributes:
        agreement: Its worst agreement with eager fp32 over every call of the recorded request.
        failures: What the gate holds against it; empty when it passes.
        peak_bytes: The most memory that building and checking it took, on top of what was in use.
        quantized: What was done to it in a quantised precision.
    """

    target: Target
    resolved: ResolvedSubmodule
    built: Built
    agreement: Agreement
    failures: tuple[str, ...]
    peak_bytes: int | None = None
    quantized: Quantized | None = None

    @property
    def is_baseline(self) -> bool:
        """Nothing was built: it is the stage in eager PyTorch."""
        return self.resolved.backend == "eager"

    def eager(self) -> Tensor:
        """The baseline `stage`: the same stage in eager PyTorch, on the recorded inputs."""
        return self.target.module(*self.target.inputs)

    def call(self) -> Tensor:
        """What was built, on the recorded inputs."""
        return self.built.call(*self.target.inputs)


@dataclass(frozen=True, eq=False)
class Variant:
    """A model that can be called in one way.

    Attributes:
        table: What the model's stages are during a call.
        parts: Compile target -> what was built.
        graphs: What replays requests as CUDA graphs; None for a variant without.
        watched: What captured them, where replays are to be timed by themselves.
    """

    candidate: Candidate
    model: Model
    table: Stages
    parts: Mapping[str, Part] = field(default_factory=dict)
    graphs: RequestGraphs | None = None
    watched: WatchedCapturer | None = None

    @property
    def runs(self) -> bool:
        """Whether everything that was built can run on this machine."""
        return all(part.built.runs for part in self.parts.values())


@dataclass(frozen=True)
class Checked:
    """A whole request against the reference.

    Attributes:
        actions: Normalised [B, T, action_dim], on the host.
        first_call_ms: What this call took.
    """

    actions: Tensor
    agreement: Agreement
    failures: tuple[str, ...]
    first_call_ms: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Timed:
    """Interleaved latencies by name, and where the time went.

    Attributes:
        host_us: Name -> median microseconds until the host had launched a call.
    """

    latencies: Mapping[str, Samples]
    stages: Mapping[str, Sequence[StageRow]]
    host_us: Mapping[str, float] = field(default_factory=dict)


@torch.no_grad()
def agreement_with(
    call: Callable[..., Tensor], calls: Sequence[Call], dtypes: Sequence[torch.dtype], device: torch.device
) -> Agreement:
    """The worst agreement of `call` with recorded fp32 calls, given the same inputs.

    Args:
        dtypes, device: What each floating input is cast to and where all go, as in a request.
    """
    # Copies: a backend may hand out the same buffer for every call.
    outputs = [call(*cast_inputs(recorded, dtypes, device)).clone() for recorded in calls]
    return compare(outputs, [recorded.output for recorded in calls])


def build_of(built: Built, target: Target | None = None, peak_bytes: int | None = None) -> Build:
    """What a backend says of what it built."""
    coverage = built.coverage
    arguments = {}
    if target is not None:
        for name, tensor, ranges in zip(target.argument_names, target.inputs, target.ranges, strict=True):
            spans = {str(axis): f"{dim.name} {dim.minimum} to {dim.maximum}" for axis, dim in ranges.items()}
            arguments[name] = Argument(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), spans)
    return Build(
        seconds=built.build_s,
        phases_s=dict(built.phases_s),
        from_cache=built.from_cache,
        operators=coverage.operators if coverage else None,
        converted=coverage.converted if coverage else None,
        coverage_percent=coverage.percent if coverage else None,
        engines=coverage.engines if coverage else None,
        unsupported=dict(coverage.unsupported) if coverage else {},
        layers_before=built.layers_before,
        layers_after=built.layers_after,
        engine_bytes=built.engine_bytes,
        engine_path=str(built.engine.path) if built.engine else None,
        peak_bytes=peak_bytes,
        settings=dict(built.settings),
        arguments=arguments,
    )


def quantized_of(done: QuantizedStage) -> Quantized:
    """What was done to a submodule, with the noise that each layer makes of its recorded inputs."""
    return Quantized(
        format=done.form,
        layers=len(done.layers),
        kept=dict(done.kept),
        percent=100 * done.share,
        weight_bytes=done.weight_bytes,
        half_bytes=done.half_bytes,
        calibration=done.calibration.digest,
        frames=len(done.calibration.provenance.frames),
        sqnr_db=done.sqnr_db(),
    )


def stage_times(timed: Timed, name: str) -> list[StageTime]:
    """Where a request of the variant `name` spends its time, beside the original's; what lies between stages last.

    For one that cannot run, `name` is ``original``, and nothing stands beside it.
    """
    by_stage: dict[str, dict[str, StageRow]] = {}
    for label, rows in timed.stages.items():
        for row in rows:
            by_stage.setdefault(row.stage, {})[label] = row
    for last in (REST, TOTAL):
        if last in by_stage:
            by_stage[last] = by_stage.pop(last)
    out = []
    for stage, by_name in by_stage.items():
        # The restructured model has no backbone stage around its towers: where both models have a stage, its place
        # is the variant's, whose shares are shown.
        one = by_name.get(name) or by_name["original"]
        latencies = {label: row.latency_ms for label, row in by_name.items()}
        own, original = latencies.pop(name, None), latencies.get("original")
        out.append(StageTime(stage, one.within, one.calls_per_request, own, original))
    return out


def candidate_of(resolved: Resolved, parts: Mapping[str, Part]) -> Candidate:
    """What a plan with these parts is; its backend is ``mixed`` where it has several."""
    plan = resolved.plan
    used = {part.resolved.backend for part in parts.values()}
    backend = used.pop() if len(used) == 1 else "mixed"
    return Candidate(backend, plan.precision, plan.optimizations, plan.loop)
