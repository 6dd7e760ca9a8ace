"""BuildOptions -> the keyword arguments of one Torch-TensorRT release, 2.9 to 2.14.

Torch-TensorRT ignores keywords that it does not know, so a removed or misspelt setting would be lost in silence.
Here every keyword is looked up in the fields of the installed `CompilationSettings` first; what a release cannot do
is an error when it would change results and a note when it would not.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from ...errors import BackendError, PlanError
from ...plans.schema import BuildOptions
from ..compute_capabilities import refuse_other_gpus

OLDEST, NEWEST = (2, 9), (2, 14)
TENSORRT, TENSORRT_RTX = "tensorrt", "tensorrt_rtx"


@dataclass(frozen=True)
class TrtSettings:
    """What to hand to MutableTorchTensorRTModule.

    Attributes:
        compile: Keyword arguments that are fields of the release's CompilationSettings.
        module: Keyword arguments of MutableTorchTensorRTModule's own constructor.
        debugger: Wrap the build in `torch_tensorrt.dynamo.Debugger`; no release of this range has a debug setting.
        notes: What this release does instead of what was asked.
    """

    compile: dict[str, Any]
    module: dict[str, bool]
    debugger: bool
    notes: tuple[str, ...]


def release_tuple(version: str) -> tuple[int, int]:
    """``"2.13.0+cu130"`` -> ``(2, 13)``. Raises: BackendError for anything that does not start so."""
    try:
        major, minor = version.split(".")[:2]
        return int(major), int(minor)
    except ValueError as e:
        raise BackendError(f"torch_tensorrt: version {version!r} is not of the form 2.13.0") from e


def map_settings(
    options: BuildOptions,
    *,
    release: tuple[int, int],
    fields: Set[str],
    flavour: str,
    cuda: bool,
    timing_cache_path: str,
) -> TrtSettings:
    """Map our options to one release's settings; depends on nothing but its arguments.

    Args:
        release: Major and minor of torch_tensorrt.
        fields: Field names of the installed CompilationSettings.
        flavour: ``tensorrt`` or ``tensorrt_rtx``.
        cuda: A CUDA device is present; without one the build is a dry run.
        timing_cache_path: Where TensorRT keeps its timings between builds; unused by TensorRT-RTX.
    Raises: PlanError for an option that this release or flavour cannot honour without changing results;
        BackendError when a setting that results depend on is missing from the release.
    """
    settings = _Settings(options, release, fields)
    need, notes = settings.need, settings.notes
    need("min_block_size", 1)
    need("truncate_double", True)
    need("require_full_compilation", options.require_full_compilation)
    need("use_fp32_acc", options.use_fp32_acc)
    need("disable_tf32", options.disable_tf32)
    if not cuda:
        need("dryrun", True)
    if options.optimization_level is not None:
        if not 0 <= options.optimization_level <= 5:
            raise PlanError(f"optimization_level: {options.optimization_level} is outside 0 to 5")
        need("optimization_level", options.optimization_level)
    settings.typing()
    settings.attention()
    settings.runtime()
    if options.cpu_offload:
        if cuda:
            need("offload_module_to_cpu", True)
        else:
            notes.append("cpu_offload: without a GPU the weights are on the CPU already.")
    if flavour == TENSORRT:
        need("timing_cache_path", timing_cache_path)
        refuse_other_gpus(options)
    debugger = options.debug
    if options.debug and "debug" in fields:
        settings.compile["debug"], debugger = True, False
    module = {"strict": False, "prefer_deferred_runtime_asserts_over_guards": True, "immutable_weights": False}
    return TrtSettings(compile=settings.compile, module=module, debugger=debugger, notes=tuple(notes))


class _Settings:
    """Collects the settings of one release, and the notes for the user."""

    def __init__(self, options: BuildOptions, release: tuple[int, int], fields: Set[str]):
        self.options, self.release, self.fields = options, release, fields
        self.name = "Torch-TensorRT {}.{}".format(*release)
        self.compile: dict[str, Any] = {}
        self.notes: list[str] = []

    def need(self, key: str, value: Any) -> None:
        if key not in self.fields:
            raise BackendError(
                f"{self.name} has no setting {key!r}, on which this build depends",
                known=f"releases {OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}",
                fix="install one of these releases, or choose --backend inductor",
            )
        self.compile[key] = value

    def typing(self) -> None:
        # enabled_precisions is never passed: 2.10 to 2.12 refuse it beside explicit typing and 2.13 ignores it.
        known, name = "use_explicit_typing" in self.fields, self.name
        if self.options.use_explicit_typing:
            if self.release < (2, 10):
                if not known:
                    fix = "install Torch-TensorRT 2.10 or newer"
                    raise BackendError(f"{name} cannot keep the graph's dtypes", fix=fix)
                self.compile["use_explicit_typing"] = True
            return
        if not known:
            raise PlanError(
                f"use_explicit_typing: false is impossible with {name}: its TensorRT types every layer explicitly",
                known="weak typing exists up to Torch-TensorRT 2.12",
                fix="drop the setting; the plan's precision casts the submodule instead",
            )
        self.compile["use_explicit_typing"] = False
        self.notes.append(
            "use_explicit_typing is off: TensorRT may compute layers in another precision than the graph's."
        )

    def attention(self) -> None:
        name = self.name
        if "attn_bias_is_causal" in self.fields:
            # The default reads every attention bias as a causal mask, wrong for vision, padding and diffusion.
            self.compile["attn_bias_is_causal"] = False
        elif self.release >= (2, 11):
            self.notes.append(
                f"{name} has no attn_bias_is_causal: compare masked attention with eager before trusting it."
            )
        if "decompose_attention" in self.fields:
            self.compile["decompose_attention"] = self.options.decompose_attention
        elif not self.options.decompose_attention:
            self.notes.append(f"decompose_attention: {name} always lowers attention to matmul, softmax, matmul.")

    def runtime(self) -> None:
        if "use_python_runtime" in self.fields:
            self.compile["use_python_runtime"] = not self.options.use_cpp_runtime
        elif self.options.use_cpp_runtime:
            self.notes.append(
                f"use_cpp_runtime: {self.name} has one runtime and takes its C++ library whenever that is installed."
            )
