"""One result of a run: a candidate on a subject under a workload, with its latency, accuracy and work. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from ..plans.precisions import Gate
from .samples import Samples, verdict

Number = TypeVar("Number", int, float)

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
    FORM = "form"
    """The same form of the model without what is compared, timed before and after it: A B A."""


_LABELS = {Baseline.ORIGINAL: "the original", Baseline.STAGE: "eager", Baseline.FORM: "the same without it"}
"""What a verdict calls a baseline."""


@dataclass(frozen=True)
class Candidate:
    """One way to run the model.

    Attributes:
        backend: Of every submodule; ``auto`` for the best of each.
        stages: The submodules that are on it, where the others are on the backend that it falls back on; else empty.
            ``name:mode`` for one in a mode of its own.
        precision: Of the model, or of the one submodule that a result is about.
        optimizations: Of the restructured model; none means the plain one.
        loop: How the denoising loop is cut.
        mode: torch.compile's, for the inductor backend.
        settings: Options of torch.compile that are switched on besides the mode's.
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
    settings: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()


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

    @classmethod
    def total(cls, builds: Sequence[Build]) -> Build:
        """What several submodules took together; engines from the cache took no time to build."""

        def added(values: Iterable[Number | None]) -> Number | None:
            known = [value for value in values if value is not None]
            return sum(known) if known else None

        return cls(
            seconds=added(one.seconds for one in builds if not one.from_cache),
            from_cache=bool(builds) and all(one.from_cache for one in builds),
            engines=added(one.engines for one in builds),
            layers_before=added(one.layers_before for one in builds),
            layers_after=added(one.layers_after for one in builds),
            engine_bytes=added(one.engine_bytes for one in builds),
        )


@dataclass(frozen=True)
class Agreement:
    """A candidate compared with a reference, element by element, in float64.

    The distances are over the elements that are finite on both sides; the counts tell how many were not.

    Attributes:
        elements: Of each side.
        shapes: Path inside the output -> shape; an output that is one tensor has the empty path.
        cosine: Cosine similarity of the flattened sides. Two zero vectors agree (1.0), one zero vector does not
            (0.0). None when nothing could be compared.
        max_abs, mean_abs: None when nothing could be compared, as the next two.
        max_rel: `max_abs` over the reference's largest magnitude; None for an all-zero reference.
        sqnr_db: Signal-to-quantisation-noise ratio in decibels: reference power over power of the difference. None
            when there is no difference, for an all-zero reference, and when nothing could be compared.
        exact: Every element is equal, and finite.
        nan, inf: How many the candidate has; reference_nan, reference_inf: and the reference.
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
    """A baseline that was timed interleaved with a candidate, or before and after it, and the outcome.

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
        found = verdict(reference, latency, names=(_LABELS[baseline], name))
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
        first_kernel_ms, last_kernel_ms: When the first one started and the last one ended, from the call's first use of
            the GPU, by the profiler's clock.
        gaps_ms: Between the first start and the last end, the time in which no kernel ran.
    """

    gflop: float | None = None
    bytes: int | None = None
    weight_bytes: int | None = None
    operators: int | None = None
    operators_per_step: int | None = None
    kernels: int | None = None
    kernel_ms: float | None = None
    busiest_kernels: tuple[Kernel, ...] | None = None
    first_kernel_ms: float | None = None
    last_kernel_ms: float | None = None
    gaps_ms: float | None = None


@dataclass(frozen=True)
class Launch:
    """What lies between a call and its answer, apart: the host's part, and the graph's.

    Attributes:
        host_us: Median microseconds from the call to the launch of its last kernel: of a graph, to the return of
            `replay()`.
        replay_ms: Replays back to back, without a host between them.
        event_ms: Events right round `replay()` within calls, each on an idle GPU.
    """

    host_us: float | None = None
    replay_ms: Samples | None = None
    event_ms: Samples | None = None


@dataclass(frozen=True)
class StageReplay:
    """All calls of one stage in one request, captured as a graph of its own.

    Attributes:
        calls: How many these are.
        latency_ms: Of all of them together, replayed back to back.
    """

    stage: str
    calls: int
    latency_ms: Samples


@dataclass(frozen=True)
class Card:
    """The GPU while one result was taken; means of what the driver told meanwhile, None where it told nothing."""

    name: str | None = None
    sm_clock_mhz: float | None = None
    power_w: float | None = None


@dataclass(frozen=True)
class Roofline:
    """The shortest time that the hardware allows, and its share of the measured p50."""

    device: str | None = None
    source: str | None = None
    ms: float | None = None
    percent: float | None = None


@dataclass(frozen=True)
class Quantized:
    """Linear layers of a submodule in 8 or 4 bits.

    Attributes:
        layers: How many are; kept: layer that stays in 16 bit -> why.
        percent: Of the linear layers' weights, what is quantised.
        weight_bytes: What all of the submodule's parameters take; half_bytes: what they took in 16 bit.
        calibration: Hash of what gave the scales. frames: How many it was taken of.
        sqnr_db: Layer -> signal over noise of its own output, in decibels, the layers before it exact.
    """

    format: str | None = None
    layers: int | None = None
    kept: Mapping[str, str] = field(default_factory=dict)
    percent: float | None = None
    weight_bytes: int | None = None
    half_bytes: int | None = None
    calibration: str | None = None
    frames: int | None = None
    sqnr_db: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One candidate on one subject.

    Attributes:
        group: What it is part of: ``run``, ``comparison``, or a group of a measuring run.
        name: What sets it apart within its group and subject.
        subject: A submodule, ``request`` (observation to actions), ``model`` (inputs on the device to actions),
            ``loop`` (the denoising steps within such calls), or ``replay`` (the graph of such calls, back to back).
        why: Why it has no latency, or no figures at all.
        first_call_ms: What the first call took, which loads libraries.
        best: It passes its gate and is faster than every other of its subject that does, beyond doubt; None without
            a latency, or where nothing was compared.
        stages_ms: Stage -> p50 in ms, all its calls in one call added up.
        launch: Of whole calls on a GPU.
        quantized: Of a submodule in a quantised precision.
        split: The stages as graphs of their own; what `latency_ms` has beyond their sum lies between them.
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
    launch: Launch | None = None
    split: tuple[StageReplay, ...] | None = None
    card: Card | None = None
    quantized: Quantized | None = None
    notes: tuple[str, ...] = ()

    @property
    def split_ms(self) -> float | None:
        """The sum of the stages' medians; None without a split."""
        return sum(part.latency_ms.p50 for part in self.split) if self.split else None

    @property
    def ratio(self) -> float | None:
        return None if self.against is None else self.against.ratio

    @property
    def won(self) -> bool:
        """Whether the interleaved timing named a winner."""
        return self.against is not None and self.against.winner is not None
