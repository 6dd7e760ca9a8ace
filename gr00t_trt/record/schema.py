"""The schema of a record, as dataclasses that are written and read. Never imports torch.

A `Record` is one run: the machine, the plan, and a list of results. A `Result` is one thing that was tried: a candidate
on a subject under a workload, with what building it took, its latency beside that of a baseline, its accuracy and its
work. What was not measured is None, never 0; units end the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .environment import Environment, Git, environment, git_state
from .result import REQUEST, Agreement, Baseline, Result
from .samples import Samples
from .simulation import Simulation

SCHEMA = 2


@dataclass(frozen=True)
class StageTime:
    """One stage of a request; latencies are of all its calls in one request, added up.

    Attributes:
        within: The stage that called this one, or None.
        baseline_ms: The same in the original model.
    """

    stage: str
    within: str | None = None
    calls_per_request: float | None = None
    latency_ms: Samples | None = None
    baseline_ms: Samples | None = None


@dataclass(frozen=True)
class ModelInfo:
    path: str | None = None
    config: Any = None


@dataclass(frozen=True)
class Inputs:
    """What a run was done with."""

    views: int | None = None
    batch_size: int | None = None
    sequence_length: int | None = None
    denoising_steps: int | None = None
    seed: int | None = None
    dataset: str | None = None
    instruction: str | None = None


@dataclass(frozen=True)
class Replay:
    """Requests replayed as CUDA graphs.

    Attributes:
        input_bytes: Memory that the graphs read their inputs from.
        max_rel_error: The largest difference to the uncaptured model, over the larger of 1 and the largest action.
    """

    graphs: int
    input_bytes: int
    max_rel_error: float | None = None


@dataclass(frozen=True)
class PeakMemory:
    """The most memory in use during a run; `kind` says of what."""

    kind: str | None = None
    start_bytes: int | None = None
    peak_bytes: int | None = None
    peak_reserved_bytes: int | None = None
    device_used_bytes: int | None = None


@dataclass(frozen=True)
class Telemetry:
    """What the GPU did during a run, sampled; None where the driver does not say.

    Attributes:
        throttle_reasons: Why clocks were held down at any time, in the driver's words; empty for never.
    """

    samples: int = 0
    sm_clock_mhz_min: float | None = None
    sm_clock_mhz_p50: float | None = None
    power_w_p50: float | None = None
    power_w_max: float | None = None
    temperature_c_max: float | None = None
    energy_j: float | None = None
    throttle_reasons: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Drift:
    """How far the baseline moved within the run; ratios of a drifted record are worth less than they look."""

    baseline: Baseline
    lowest_ms: float
    highest_ms: float
    percent: float
    drifted: bool


@dataclass(frozen=True)
class Skipped:
    """What was not done, or is not proven, and why."""

    what: str
    why: str | None = None


@dataclass(frozen=True)
class NonFinite:
    """Where a NaN or an infinity stood, which JSON cannot hold."""

    at: str
    value: str


@dataclass
class Record:
    """One run.

    Attributes:
        command: The command line; home folders are written as ~.
        device: What the model ran on: cuda:0, cpu.
        plan, plan_path: The effective plan, every default spelled out, and the file it came from.
        results: Everything that was tried.
        stages: Where a request of the run spends its time.
        reference: What accuracies are held against.
        per_key: Action key -> agreement in physical units.
        evaluation, simulation, rollout: What those programs found.
        host_adds_us: Microseconds in which the host launched 1,000 additions of one number: its speed.
        wall_s: Seconds for the whole command.
        exit_reason: None while running; then done, gate failed, interrupted, or the error's first line.
    """

    schema: int = SCHEMA
    created_utc: str = ""
    command: str = ""
    git: Git = field(default_factory=Git)
    environment: Environment = field(default_factory=Environment)
    device: str | None = None
    plan: Any = None
    plan_path: str | None = None
    model: ModelInfo = field(default_factory=ModelInfo)
    inputs: Inputs = field(default_factory=Inputs)
    results: list[Result] = field(default_factory=list)
    stages: list[StageTime] = field(default_factory=list)
    reference: str | None = None
    per_key: Mapping[str, Agreement] = field(default_factory=dict)
    cuda_graph: Replay | None = None
    evaluation: Any = None
    simulation: Simulation | None = None
    rollout: Any = None
    drift: Drift | None = None
    telemetry: Telemetry | None = None
    host_adds_us: float | None = None
    peak_memory: PeakMemory | None = None
    wall_s: float | None = None
    skipped: list[Skipped] = field(default_factory=list)
    non_finite: list[NonFinite] = field(default_factory=list)
    exit_reason: str | None = None

    def of(self, *groups: str) -> list[Result]:
        """The results of these groups, in order."""
        return [result for result in self.results if result.group in groups]

    @property
    def request(self) -> Result | None:
        """The whole request of a run of the main job."""
        return next((r for r in self.of("run") if r.subject == REQUEST), None)

    @property
    def submodules(self) -> list[Result]:
        """The submodules of a run of the main job."""
        return [r for r in self.of("run") if r.subject != REQUEST]

    @property
    def measured(self) -> list[Result]:
        """The rows of a measuring run."""
        return [r for r in self.results if r.group not in ("run", "comparison")]

    @property
    def failures(self) -> list[str]:
        """Everything that a gate holds against the run; each line names the submodule, or the actions.

        Of a comparison alone that is every backend's; where a choice was made from it, only the chosen count.
        """
        own = self.of("run")
        if own:
            return [failure for result in own for failure in result.failures]
        return [f"{r.name}: {failure}" for r in self.of("comparison") for failure in r.failures]

    @property
    def on_gpu(self) -> bool:
        """Whether the model ran on a GPU; that the machine has one does not say so."""
        return str(self.device or "").startswith("cuda")

    def setting(self, key: str) -> Any:
        """One setting of the plan; None where there is none."""
        return self.plan.get(key) if isinstance(self.plan, Mapping) else None

    def skip(self, what: str, why: str) -> None:
        """Say what was not done, or is not proven, and why; the same twice is said once."""
        note = Skipped(what, why)
        if note not in self.skipped:
            self.skipped.append(note)

    def skip_all(self, notes: Iterable[tuple[str, str]]) -> None:
        for what, why in notes:
            self.skip(what, why)


def new_record(
    command: str,
    *,
    root: str | Path | None = None,
    device: str | None = None,
    plan: Any = None,
    plan_path: str | Path | None = None,
    model: ModelInfo | None = None,
    inputs: Inputs | None = None,
) -> Record:
    """A record with the machine filled in and no results.

    Args:
        command: The command line as it was given.
        root: A folder of the checkout whose commit to record; None records none.
        plan: The effective plan, from `plans.plan_to_mapping`.
    """
    return Record(
        created_utc=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command,
        git=git_state(root) if root is not None else Git(),
        environment=environment(device),
        device=device,
        plan=plan,
        plan_path=None if plan_path is None else str(plan_path),
        model=model or ModelInfo(),
        inputs=inputs or Inputs(),
        reference="eager fp32",
    )


def drift_of(results: Iterable[Result], threshold_percent: float = 5.0) -> Drift | None:
    """How far the baseline of whole requests moved: between results of one subject and workload, and within each.

    Returns: The worst; None where no baseline was timed twice, or in too few calls to have halves.
    """
    seen: dict[object, list[float]] = {}
    for result in results:
        if result.against is not None and result.against.baseline is Baseline.ORIGINAL:
            key = (result.group == "loop", result.subject, result.workload)
            seen.setdefault(key, []).extend(_halves(result.against.latency_ms))
    spans = [(max(own) / min(own), min(own), max(own)) for own in seen.values() if len(own) > 1 and min(own) > 0]
    if not spans:
        return None
    ratio, lowest, highest = max(spans)
    percent = 100 * (ratio - 1)
    return Drift(Baseline.ORIGINAL, lowest, highest, percent, percent > threshold_percent)


def _halves(latency: Samples) -> Iterator[float]:
    """The medians of the first and the second half of the samples; the median of few."""
    middle = len(latency.samples) // 2
    for part in (latency.samples[:middle], latency.samples[middle:]) if middle >= 4 else (latency.samples,):
        yield Samples(part).p50
