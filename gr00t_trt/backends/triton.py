"""A stage on the Triton kernels that were written for it; torch.compile for what has none."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ..common.install import install
from ..errors import BackendError
from ..model.targets import Target
from ..plans.schema import ARCHITECTURE, BuildOptions
from .base import Availability, BuildContext, Built, Capturable
from .guarded import GuardedModule, build_failed, check_form
from .inductor.backend import InductorBackend, marked, warm_calls

LEAST_CAPABILITY = (8, 0)
"""Matrix units that multiply bf16."""


class TritonBackend:
    """Kernels of the model's own, launched one by one: of use in a captured request, where a launch costs nothing."""

    name = "triton"
    capturable: Capturable = "any shape"

    def availability(self) -> Availability:
        if not importlib.util.find_spec("triton"):
            return Availability(False, f"Triton is not installed: {install('triton')}")
        versions = {"triton": importlib.metadata.version("triton"), "torch": str(torch.__version__)}
        if not torch.cuda.is_available():
            return Availability(False, "its kernels need a CUDA GPU", versions)
        capability = torch.cuda.get_device_capability()
        if capability < LEAST_CAPABILITY:
            least, own = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, capability))
            return Availability(False, f"its kernels need compute capability {least}, and this GPU has {own}", versions)
        return Availability(True, versions=versions)

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Compile the stage's kernels by warm calls; a stage without any is compiled by torch.compile, and says so.

        Raises: BackendError without Triton or a GPU, when compiling fails, or when the result has another form.
        """
        available = self.availability()
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend inductor")
        compiler = InductorBackend()
        module = ARCHITECTURE.with_kernels(target.module, partial(compiler.compiled, on_gpu=True))
        if module is None:
            built = compiler.build(target, options, context)
            return replace(built, notes=(*built.notes, f"{target.name} has no kernels of its own: torch.compile."))
        start = time.perf_counter()
        context.progress("compiling its Triton kernels")
        call = GuardedModule(target, _without_gradients(module))
        phases: dict[str, float] = {}
        try:
            for phase, inputs in warm_calls(target).items():
                phase_start = time.perf_counter()
                call(*marked(target, inputs))
                phases[phase] = time.perf_counter() - phase_start
        except Exception as error:
            raise build_failed(target, "compiling its Triton kernels", error) from error
        check_form(target, call)
        settings = {"backend": self.name, "kernels": ARCHITECTURE.kernels}
        return Built(call, True, time.perf_counter() - start, phases_s=phases, settings=settings)


def _without_gradients(module: torch.nn.Module) -> Callable[..., Any]:
    def call(*args: torch.Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return module(*(x.clone() if x.is_inference() else x for x in args))

    return call
