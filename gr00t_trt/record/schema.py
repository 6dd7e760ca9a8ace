"""The schema of a record, as dataclasses that are written and read. Never imports torch.

A `Record` is one run: the machine, the plan, and a list of results. A `Result` is one thing that was tried: a candidate
on a subject under a workload, with what building it took, its latency beside that of a baseline, its accuracy and its
work. What was not measured is None, never 0; units end the names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from ..plans.precisions import Gate
from .environment import Environment, Git, environment, git_state
from .samples import Samples, verdict

SCHEMA = 2
REQUEST = "request"
"""The subject of whole requests, observation to actions."""


class Status(str, Enum):
    """What became of a candidate."""

    MEASURED = "measured"
    CHECKED = "checked"
    """Built and held against the reference, and not timed, as at the start of a service."""
    BUILT_NOT_RUN = "built_not_run"
    """An engine that cannot run on this machine."""
    NO_TIME = "no_time"
    NOT_REACHED = "not_reached"
    """The run ended before."""
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    """Not installed, or of no use on this machine."""


class Baseline(str, Enum):
    """What a latency is held against."""

    ORIGINAL = "original"
    """The model as it was published, in eager PyTorch, in the same precision."""
    STAGE = "stage"
    """The same stage of the same model in eager PyTorch."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the model.

    Attributes:
        backend: Of every submodule; ``auto`` for the best of each.
        precision: Of the model, or of the one submodule that a result is about.
        optimizations: Of the restructured model; none means the plain one.
        loop: How the denoising loop is cut.
        mode: torch.compile's, for the inductor backend.
        dynamic: Compiled for a range of batches, views and lengths instead of one request's.
        graph: Whole requests are replayed as one CUDA graph.
    """

    backend: str = "eager"
    precision: str | None = None
    optimizations: tuple[str, ...] = ()
    loop: str = "submodules"
    mode: str | None = None
    dynamic: bool = False
    graph: bool = False


@dataclass(frozen=True)
class Workload:
    """Size of a request; all elements of a batch are equally long."""

    views: int = 1
    batch: int = 1
    steps: int = 4


@dataclass(frozen=True)
class Argument:
    """One argument of a compiled submodule; `ranges`: axis -> name and range of the dimension."""

    dtype: str
    shape: tuple[int, ...]
    ranges: Mapping[str, str]


@dataclass(frozen=True)
class Build:
    """What building took, and what came out.

    Attributes:
        seconds: For everything; of an engine from the cache, what finding and checking it took.
        operators, converted, coverage_percent: Of the lowered graph, and what of it went into engines.
        engines: Engines that were built, or would be.
        unsupported: Operator -> how often it was left to PyTorch.
        layers_before, layers_after: Of the network that TensorRT was handed, and of the engine that it made.
        settings: The exact keyword arguments that the compiler got.
    """

    seconds: float | None = None
    phases_s: Mapping[str, float] = field(default_factory=dict)
    from_cache: bool = False
    operators: int | None = None
    converted: int | None = None
    coverage_percent: float | None = None
    engines: int | None = None
    unsupported: Mapping[str, int] = field(default_factory=dict)
    layers_before: int | None = None
    layers_after: int | None = None
    engine_bytes: int | None = None
    engine_path: str | None = None
    peak_bytes: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Argument] = field(default_factory=dict)


@dataclass(frozen=True)
class Agreement:
    """A candidate compared with a reference, element by element, in float64.

    The distances are over the elements that are finite on both sides; the counts tell how many were not.

    Attributes:
        elements: Elements of each side.
        shapes: Path inside the output -> shape; an output that is one tensor has the empty path.
        cosine: Cosine similarity of the flattened sides. Two zero vectors agree (1.0), one zero vector does not
            (0.0). None when nothing could be compared.
        max_abs: Largest absolute difference. None when nothing could be compared, as the next two.
        mean_abs: Mean absolute difference.
        max_rel: `max_abs` over the reference's largest magnitude; None for an all-zero reference.
        sqnr_db: Signal-to-quantisation-noise ratio in decibels: reference power over power of the difference. None
            when there is no difference, for an all-zero reference, and when nothing could be compared.
        exact: Every element is equal, and finite.
        nan, inf: NaN and infinities in the candidate.
        reference_nan, reference_inf: The same in the reference.
    """

    elements: int = 0
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    cosine: float | None = None
    max_abs: float | None = None
    mean_abs: float | None = None
    max_rel: float | None = None
    sqnr_db: float | None = None
    exact: bool = False
    nan: int = 0
    inf: int = 0
    reference_nan: int = 0
    reference_inf: int = 0

    @property
    def distance(self) -> float | None:
        """1 - cosine; 0 for equal results, whose cosine rounding may have left a hair from 1."""
        return None if self.cosine is None else 0.0 if self.exact else max(0.0, 1.0 - self.cosine)


@dataclass(frozen=True)
class Against:
    """A baseline that was timed interleaved with a candidate, and the outcome.

    Attributes:
        latency_ms: The baseline's.
        ratio: Median of the baseline over the candidate's: above 1, the candidate is faster.
        winner: The candidate's name, the baseline's, or None where their spreads overlap or samples are too few.
        text: The outcome as a sentence.
    """

    baseline: Baseline
    latency_ms: Samples
    ratio: float | None = None
    winner: str | None = None
    text: str | None = None

    @classmethod
    def of(cls, baseline: Baseline, reference: Samples, latency: Samples | None, name: str) -> Against:
        """Hold a latency against a baseline's; a candidate without one leaves the outcome open."""
        if latency is None:
            return cls(baseline, reference)
        label = "eager" if baseline is Baseline.STAGE else "the original"
        found = verdict(reference, latency, names=(label, name))
        return cls(baseline, reference, found.ratio, found.winner, found.text)


@dataclass(frozen=True)
class Kernel:
    """All launches of one GPU kernel within a call; `ms` is of all of them together, without what lies between them."""

    name: str
    launches: int
    ms: float


@dataclass(frozen=True)
class Work:
    """What one call does, counted and not timed; None where it was not counted.

    Attributes:
        weight_bytes: A part of `bytes`.
        operators_per_step: ATen operators in the exported graph of one denoising step.
        kernels: Launched on the GPU. kernel_ms: How long they ran, gaps left out.
    """

    gflop: float | None = None
    bytes: int | None = None
    weight_bytes: int | None = None
    operators: int | None = None
    operators_per_step: int | None = None
    kernels: int | None = None
    kernel_ms: float | None = None
    busiest_kernels: tuple[Kernel, ...] | None = None


@dataclass(frozen=True)
class Roofline:
    """The shortest time that the hardware allows, and its share of the measured p50."""

    device: str | None = None
    source: str | None = None
    ms: float | None = None
    percent: float | None = None


@dataclass(frozen=True)
class Result:
    """One candidate on one subject.

    Attributes:
        group: What it is part of: ``run``, ``comparison``, or a group of a measuring run.
        name: What sets it apart within its group and subject.
        subject: A submodule, ``request`` (observation to actions), ``model`` (inputs on the device to actions), or
            ``loop`` (the denoising steps within such calls).
        why: Why it has no latency, or no figures at all.
        first_call_ms: What the first call took, which loads libraries.
        best: It passes its gate and is faster than every other of its subject that does, beyond doubt; None without
            a latency, or where nothing was compared.
        stages_ms: Stage -> p50 in ms, all its calls in one call added up.
    """

    group: str
    name: str
    subject: str
    candidate: Candidate = field(default_factory=Candidate)
    workload: Workload | None = None
    status: Status = Status.NOT_REACHED
    why: str | None = None
    build: Build | None = None
    latency_ms: Samples | None = None
    against: Against | None = None
    first_call_ms: float | None = None
    accuracy: Agreement | None = None
    gate: Gate | None = None
    passed: bool | None = None
    failures: tuple[str, ...] = ()
    best: bool | None = None
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    work: Work | None = None
    roofline: Roofline | None = None
    peak_bytes: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float | None:
        return None if self.against is None else self.against.ratio

    @property
    def won(self) -> bool:
        """Whether the interleaved timing named a winner."""
        return self.against is not None and self.against.winner is not None


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
    simulation: Any = None
    rollout: Any = None
    drift: Drift | None = None
    telemetry: Telemetry | None = None
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
