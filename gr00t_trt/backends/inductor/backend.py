"""torch.compile, one submodule at a time, compiled when it is built and not in the middle of a request."""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ...common.install import install
from ...errors import BackendError, PlanError
from ...model.targets import Target, tracing_example
from ...plans.schema import BuildOptions
from ...quantize.linear import formats_in
from ..base import Availability, BuildContext, Built, Capturable, describe
from ..compute_capabilities import refuse_older_gpu
from ..guarded import GuardedModule, build_failed, same_form
from ..onednn_int8 import on_this_cpu

MODES = ("default", "max-autotune-no-cudagraphs", "reduce-overhead", "max-autotune")
MOST_FORMS = 64
"""How often one stage may be compiled in a process: for each form that is compared, and for each checkpoint that takes
another's place. PyTorch gives up after eight."""
GRAPHED_MODES = ("reduce-overhead", "max-autotune")
"""torch.compile modes that replay a CUDA graph of their own per submodule; on a GPU only."""


class InductorBackend:
    """torch.compile with the plan's dynamic dimensions and nothing else dynamic.

    Args:
        mode: One of `MODES`.
        without: Of `REWRITINGS`, what is left out on a GPU.
    """

    name = "inductor"
    capturable: Capturable = "any shape"

    def __init__(self, mode: str = "default", *, without: Collection[str] = ()):
        if mode not in MODES:
            raise PlanError(f"inductor: mode {mode!r} is not available", known=MODES)
        self.mode, self._without = mode, without

    def availability(self) -> Availability:
        versions = {"torch": str(torch.__version__)}
        caveats: tuple[str, ...] = ()
        if torch.cuda.is_available():
            missing = "" if importlib.util.find_spec("triton") else f"inductor needs Triton: {install('triton')}"
        else:
            missing = _missing_cpp_compiler()
            caveats = ("No CUDA device: submodules are compiled to C++ for the CPU.",)
        return Availability(installed=not missing, reason=missing, versions=versions, caveats=caveats)

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Compile by warm calls at the recorded sizes and, where one is 1, at two as well.

        torch.compile treats the size 1 as a special case, so a range that contains 1 and more needs two graphs.
        Raises: BackendError without a compiler, when compiling fails, or when the result has another form.
        """
        available = self.availability()
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend eager")
        graphed = self.mode in GRAPHED_MODES
        if graphed and target.inputs[0].device.type != "cuda":
            raise BackendError(
                f"{target.name}: mode {self.mode} replays CUDA graphs, and there is no GPU", fix="use mode default"
            )
        refuse_older_gpu(target)
        target = on_this_cpu(target)
        start = time.perf_counter()
        on_gpu = target.inputs[0].device.type == "cuda"
        context.progress("compiling")
        compiled = _Announced(target.name, self.compiled(target.module, on_gpu=on_gpu), copies=graphed)
        call = GuardedModule(target, compiled)
        try:
            with torch._dynamo.config.patch(recompile_limit=MOST_FORMS):
                phases, actual = warm(target, call)
        except Exception as e:
            raise build_failed(target, "compiling with torch.compile", e, _compile_error(e)) from e
        with torch.no_grad():
            difference = same_form(target.module(*target.inputs), actual)
        if difference is not None:
            raise BackendError(f"{target.name}: the compiled submodule returns {difference}")
        compiled.announce = True
        return Built(
            call=call,
            runs=True,
            build_s=time.perf_counter() - start,
            phases_s=phases,
            settings={
                "backend": "inductor",
                "mode": self.mode,
                "fullgraph": True,
                "gpu_products": on_gpu,
                "dynamic": _dynamic_axes(target),
            },
            notes=_about_quantized(target, on_gpu=on_gpu),
        )

    def compiled(self, module: Callable[..., Any], *, on_gpu: bool) -> Callable[..., Any]:
        """A module or function, compiled at its first call."""
        if not on_gpu:
            return torch.compile(module, backend="inductor", mode=self.mode, fullgraph=True)
        from .products import GpuProducts

        # torch.compile takes a mode or options; a mode is a name for some of them.
        options = {**torch._inductor.list_mode_options(self.mode), "pre_grad_custom_pass": GpuProducts(self._without)}
        return torch.compile(module, backend="inductor", options=options, fullgraph=True)


def _about_quantized(target: Target, *, on_gpu: bool) -> tuple[str, ...]:
    """What a user should know of quantised products here, a sentence each."""
    return tuple(
        f"{form}: products in 8 bits by torch._scaled_mm; no GPU was measured yet, so that no table says for which "
        "sizes they are faster than bf16."
        if on_gpu and form == "fp8"
        else f"{form}: computed by its reference in PyTorch, between compiled kernels: for the accuracy, not the speed."
        for form in formats_in(target.module)
    )


class _Announced:
    """Runs without gradients, as at build time, and warns when a call compiled again.

    Args:
        copies: Results lie in a CUDA graph's own buffers, which its next replay overwrites: hand out copies.
    """

    def __init__(self, name: str, compiled: Callable[..., Any], *, copies: bool = False):
        self.name = name
        self.compiled = compiled
        self.copies = copies
        self.announce = False

    def __call__(self, *args: torch.Tensor) -> Any:
        before = _graphs_compiled()
        with torch.inference_mode(False), torch.no_grad():
            # A tensor made in inference mode fails the guards of a graph that was traced with a normal one.
            result = self.compiled(*(x.clone() if x.is_inference() else x for x in args))
            if self.copies:
                result = tree_map_only(torch.Tensor, torch.Tensor.clone, result)
        if self.announce and _graphs_compiled() != before:
            warnings.warn(
                f"{self.name}: torch.compile compiled again for {describe(args)}; this call's time is not a latency",
                RuntimeWarning,
                stacklevel=3,
            )
        return result


def _graphs_compiled() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def warm(target: Target, call: GuardedModule) -> tuple[dict[str, float], Any]:
    """Make the `warm_calls`. Returns: Seconds of each, and the result at the recorded size."""
    phases, results = {}, []
    for phase, inputs in warm_calls(target).items():
        start = time.perf_counter()
        results.append(call(*marked(target, inputs)))
        phases[phase] = time.perf_counter() - start
    return phases, results[0]


def warm_calls(target: Target) -> dict[str, tuple[torch.Tensor, ...]]:
    """The calls after which nothing is left to compile: phase -> inputs."""
    calls = {"recorded size": target.inputs}
    example = tracing_example(target.inputs, target.ranges)
    if any(a.shape != b.shape for a, b in zip(example, target.inputs, strict=True)):
        calls["size two"] = example
    return calls


def marked(target: Target, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """The inputs with the target's varying axes dynamic and all others static."""
    out = []
    for arg, ranges in zip(inputs, target.ranges, strict=True):
        arg = arg.detach()  # the mark belongs to the tensor object, and the recorded one is used elsewhere
        for axis, dim in ranges.items():
            if dim.static or arg.shape[axis] < 2:
                torch._dynamo.mark_static(arg, axis)
            else:
                torch._dynamo.mark_dynamic(arg, axis)
        out.append(arg)
    return tuple(out)


def _dynamic_axes(target: Target) -> dict[str, dict[int, str]]:
    axes = {
        name: {axis: f"{dim.name} {dim.minimum} to {dim.maximum}" for axis, dim in ranges.items() if not dim.static}
        for name, ranges in zip(target.argument_names, target.ranges, strict=True)
    }
    return {name: dims for name, dims in axes.items() if dims}


def _missing_cpp_compiler() -> str:
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        get_cpp_compiler()
    except Exception:
        return "inductor needs a C++ compiler on the CPU: install g++ or clang++, or name one in CXX"
    return ""


def _compile_error(error: BaseException) -> str | None:
    """torch.compile wraps the cause; a missing compiler deserves its own words."""
    if "InvalidCxxCompiler" in repr(error):
        return "no working C++ compiler was found; install g++ or clang++, or name one in CXX"
    if "TritonMissing" in repr(error):
        return f"Triton is missing; {install('triton')}"
    return None
