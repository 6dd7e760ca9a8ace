"""A stage on the Triton kernels that were written for it; torch.compile around them, and for what has none."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch

from ..common.install import install
from ..errors import BackendError, PlanError
from ..model.targets import Target
from ..plans.schema import ARCHITECTURE, BuildOptions
from .base import Availability, BuildContext, Built, Capturable
from .guarded import GuardedModule, build_failed, check_form
from .inductor.backend import InductorBackend, warm

MODES = ("default", "chain")
"""Who multiplies in ViT and LLM: torch.compile, around the kernels of attention; or kernels too, all in a chain."""

LEAST_CAPABILITY = (8, 0)
"""Matrix units that multiply bf16."""


class TritonBackend:
    """Kernels of the model's own, launched one by one: of use in a captured request, where a launch costs nothing.

    Of some stages they are all, of others a part; those are compiled by torch.compile, which calls the kernels.
    """

    name = "triton"
    capturable: Capturable = "any shape"

    def __init__(self, mode: str = "default"):
        if mode not in MODES:
            raise PlanError(f"triton: mode {mode!r} is not available", known=MODES)
        self.mode = mode

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
        """Compile the stage by warm calls; one without kernels is compiled by torch.compile alone, and says so.

        Raises: BackendError without Triton or a GPU, when compiling fails, or when the result has another form.
        """
        available = self.availability()
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend inductor")
        module = ARCHITECTURE.with_kernels(target.module, chained=self.mode == "chain")
        if module is None:
            built = InductorBackend().build(target, options, context)
            return replace(built, notes=(*built.notes, f"{target.name} has no kernels of its own: torch.compile."))
        if module.wants_compiler:
            built = InductorBackend().build(replace(target, module=module), options, context)
            check_form(target, built.call)
            return replace(built, settings={**built.settings, **self._settings()})
        return self._launched(target, module, context)

    def _launched(self, target: Target, module: torch.nn.Module, context: BuildContext) -> Built:
        """A stage that is nothing but kernels."""
        start = time.perf_counter()
        context.progress("compiling its Triton kernels")
        call = GuardedModule(target, _without_gradients(module))
        try:
            phases, _ = warm(target, call)
        except Exception as error:
            raise build_failed(target, "compiling its Triton kernels", error) from error
        check_form(target, call)
        return Built(call, True, time.perf_counter() - start, phases_s=phases, settings=self._settings())

    def _settings(self) -> dict[str, str]:
        return {"backend": self.name, "mode": self.mode, "kernels": ARCHITECTURE.kernels}


def _without_gradients(module: torch.nn.Module) -> Callable[..., Any]:
    def call(*args: torch.Tensor) -> Any:
        device = args[0].device
        here = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with here, torch.inference_mode(False), torch.no_grad():
            return module(*(x.clone() if x.is_inference() else x for x in args))

    return call
