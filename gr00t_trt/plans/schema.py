"""Every setting of a run, as frozen dataclasses. The command line and the YAML plans fill the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..model.n1_5.architecture import N1_5
from .precisions import Gate

ARCHITECTURE = N1_5
"""The generation that plans are about."""

SUBMODULES, GROUPS, LOOPS = ARCHITECTURE.submodules, ARCHITECTURE.groups, ARCHITECTURE.loops
OPTIMIZATIONS = ARCHITECTURE.optimizations

CALIBRATE = "gr00t-trt calibrate --model_path CHECKPOINT --dataset_path DATASET --out FILE"
"""How to make the file that a quantised precision needs, for messages."""

AUTO_KEEP = "auto"
"""Among a plan's patterns of layers to keep: the worst of a calibration's ranking, until the gate holds."""

CUDA_GRAPH = ("none", "startup", "on_demand")
"""Whether whole requests are captured as CUDA graphs: never; for the shapes known at the start; or for every new shape
at its first request as well."""

TIMERS = ("cuda_event", "python_timer")


@dataclass(frozen=True)
class BuildOptions:
    """What a compiling backend is told, in this project's words; a backend maps them to its release's settings.

    Attributes:
        use_fp32_acc: Accumulate matrix products of half precision in fp32.
        use_explicit_typing: The graph's dtypes are the engine's dtypes; always so from Torch-TensorRT 2.10.
        disable_tf32: Keep fp32 products out of TF32.
        use_cpp_runtime: Run engines through the C++ runtime (Torch-TensorRT up to 2.12 has two runtimes).
        cpu_offload: Move the PyTorch weights to the CPU once the engine exists.
        debug: Verbose compiler log and graph dumps.
        optimization_level: TensorRT's builder effort, 0 to 5; None leaves the builder's default.
        decompose_attention: Lower attention to matmul, softmax, matmul instead of TensorRT's attention layer.
        require_full_compilation: A submodule that needs more than one engine is an error, not a warning.
        compute_capabilities: Targets of engines built ahead of time, such as ``("8.9", "12.0")``.
            Empty: TensorRT-RTX's portable default (8.0 and newer), less those that cannot multiply in the precision.
        trt_engine_path: Folder of engines that NVIDIA's deployment scripts built; the tensorrt backend takes those that
            fit and builds the rest.
    """

    use_fp32_acc: bool = False
    use_explicit_typing: bool = True
    disable_tf32: bool = False
    use_cpp_runtime: bool = False
    cpu_offload: bool = False
    debug: bool = False
    optimization_level: int | None = None
    decompose_attention: bool = False
    require_full_compilation: bool = True
    compute_capabilities: tuple[str, ...] = ()
    trt_engine_path: str | None = None


@dataclass(frozen=True)
class SubmodulePlan:
    """What one submodule does differently from the rest of the plan; None inherits.

    Attributes:
        keep: As `Plan.keep`, in the plan's place.
    """

    backend: str | None = None
    precision: str | None = None
    keep: tuple[str, ...] | None = None
    decompose_attention: bool | None = None
    gate: Gate | None = None


@dataclass(frozen=True)
class Ranges:
    """Sizes that compiled submodules must accept, [minimum, maximum]; the recorded request is the optimum.

    Attributes:
        batch: Requests served together.
        views: Cameras per request; three are covered unless the plan says less.
        length: Prompt length in tokens; None derives it from the model: 32 to three views plus 256 text tokens.
    """

    batch: tuple[int, int] = (1, 8)
    views: tuple[int, int] = (1, 3)
    length: tuple[int, int] | None = None


@dataclass(frozen=True)
class BenchmarkOptions:
    """How latencies are taken.

    Attributes:
        iterations: Timed calls of each candidate; None goes on until their medians are known to 2 %, for 10 to 100
            calls.
        warmup: Untimed calls before them.
        max_seconds: No further round of calls, timed or not, starts after this long; one timed round always runs.
    """

    timer: str = "cuda_event"
    iterations: int | None = None
    warmup: int = 5
    max_seconds: float = 60.0


@dataclass(frozen=True)
class Plan:
    """A compile plan: which backend and precision each submodule gets, and what must hold afterwards.

    Attributes:
        optimizations: Names from `OPTIMIZATIONS`; with none, the plain model is compiled instead of the restructured
            one. A file or a command line that asks for what only the plain model has gets none by default.
        loop: One of `LOOPS`.
        cuda_graph: One of `CUDA_GRAPH`.
        cuda_graph_lengths: Prompt lengths in tokens that are captured at the start besides the observation's own.
        calibration: The file of `gr00t-trt calibrate`, for quantised precisions.
        keep: Patterns of layers that stay in 16 bit where the rest is quantised, and `AUTO_KEEP`.
    """

    backend: str = "torch_tensorrt"
    precision: str = "fp16"
    submodules: Mapping[str, SubmodulePlan] = field(default_factory=dict)
    build: BuildOptions = field(default_factory=BuildOptions)
    ranges: Ranges = field(default_factory=Ranges)
    gate: Gate = field(default_factory=Gate)
    action_gate: Gate = field(default_factory=Gate)
    benchmark: BenchmarkOptions = field(default_factory=BenchmarkOptions)
    joint_backbone: bool = False
    optimizations: tuple[str, ...] = tuple(OPTIMIZATIONS)
    loop: str = "submodules"
    cuda_graph: str = "none"
    cuda_graph_lengths: tuple[int, ...] = ()
    denoising_steps: int = 4
    calibration: str | None = None
    keep: tuple[str, ...] = ()
