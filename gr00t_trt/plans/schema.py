"""Every setting of a run, as frozen dataclasses. The command line and the YAML plans fill the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SUBMODULES = (
    "vision_model",
    "language_model",
    "vl_components",
    "state_encoder",
    "action_encoder",
    "dit_model",
    "action_decoder",
)
"""The compile targets, in the order in which a request passes through them."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "eagle_backbone": ("vision_model", "language_model"),
    "action_head": ("vl_components", "state_encoder", "action_encoder", "dit_model", "action_decoder"),
    "all": SUBMODULES,
}

LOOPS = ("submodules", "denoise_step", "denoise_loop")
"""How the denoising loop is cut: three submodules and Euler in PyTorch, one graph per step, or one for all steps.
The last two exist in the restructured model only, and are compile targets of their own."""

CUDA_GRAPH = ("none", "startup", "on_demand")
"""Whether whole requests are captured as CUDA graphs: never; for the shapes known at the start; or for every new shape
at its first request as well."""

BACKENDS = ("eager", "inductor", "onnxruntime", "torch_tensorrt", "tensorrt")
AUTO = "auto"
"""In a backend's place: whichever of them is measured to be the fastest."""

PRECISIONS = ("fp32", "fp16", "bf16")
QUANTISED = ("fp8", "int8", "nvfp4")
"""Names that users know from elsewhere and that are refused with a message of their own."""

TIMERS = ("cuda_event", "python_timer")

OPTIMISATIONS: Mapping[str, str] = {
    "embodiment_weights": "weights of the embodiments in a batch are taken out of the 32 slots once, not every step",
    "cross_attention_kv": "keys and values of the cross-attention blocks are computed once per observation",
    "future_tokens": "state and future tokens are joined once; position rows go into the action encoder's last bias",
    "timestep_tables": "everything that follows from the timestep alone is tabulated for the steps in use",
    "action_rows": "past the last self-attention, only the rows of the actions are computed",
    "fused_projections": "query, key and value are one matrix product, and so are gate and up",
    "patch_product": "patches become vectors by one matrix product instead of a convolution",
    "action_encoder_fold": "the action encoder's first layer is multiplied into its second",
    "prompt_cache": "prompt embeddings, image positions, rotations and masks are kept per prompt",
    "unpadded_mask": "a prompt without padding uses causal attention without a mask tensor",
}
"""Steps from the plain model to the restructured one: name -> what it does, in the order of the waterfall.

Three more steps of the same kind are missing because the plain model already takes them: the state token is computed
once per observation, all views go through the vision tower in one call, and neither pooling head nor vocabulary head
exists.
"""


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
            Empty: TensorRT-RTX's portable default (8.0 and newer).
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
class Gate:
    """The least agreement with eager fp32 that a compiled submodule must show.

    Attributes:
        cosine: Lowest cosine similarity of the flattened outputs; None means the precision's default.
        max_abs: Highest absolute difference; None means no bound.
        sqnr_db: Lowest signal-to-quantisation-noise ratio in decibels; None means the precision's default.
    """

    cosine: float | None = None
    max_abs: float | None = None
    sqnr_db: float | None = None


@dataclass(frozen=True)
class SubmodulePlan:
    """What one submodule does differently from the rest of the plan; None inherits."""

    backend: str | None = None
    precision: str | None = None
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
        iterations: Timed calls of each rival.
        warmup: Untimed calls before them.
        max_seconds: No further round of calls, timed or not, starts after this long; one timed round always runs.
    """

    timer: str = "cuda_event"
    iterations: int = 10
    warmup: int = 5
    max_seconds: float = 60.0


@dataclass(frozen=True)
class Plan:
    """A compile plan: which backend and precision each submodule gets, and what must hold afterwards.

    Attributes:
        optimisations: Names from `OPTIMISATIONS`; with none, the plain model is compiled instead of the restructured
            one. A file or a command line that asks for what only the plain model has gets none by default.
        loop: One of `LOOPS`.
        cuda_graph: One of `CUDA_GRAPH`.
        cuda_graph_lengths: Prompt lengths in tokens that are captured at the start besides the observation's own.
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
    optimisations: tuple[str, ...] = tuple(OPTIMISATIONS)
    loop: str = "submodules"
    cuda_graph: str = "none"
    cuda_graph_lengths: tuple[int, ...] = ()
    denoising_steps: int = 4
