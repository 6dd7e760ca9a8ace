"""Torch-TensorRT 2.9 to 2.14, for TensorRT and for TensorRT-RTX.

With a GPU, a submodule becomes a MutableTorchTensorRTModule behind its shape check; an engine from the cache is run
directly, and nothing is exported. Without one, the same module runs as a dry run (export, lowering, partitioning, and
the partitioned graph in PyTorch); with TensorRT-RTX, which builds ahead of time, the engine of that very graph is then
built, or found in the cache, and not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import re
import sys
from pathlib import Path
from typing import Any

import torch

from ...common.install import install_extra
from ...common.paths import user_cache
from ...model.targets import Target
from ...plans.schema import BuildOptions
from ..base import Availability, BuildContext, Built, Capturable
from ..compute_capabilities import compute_capabilities, for_formats
from ..cpu_only import cpu_only
from ..engine_job import require
from ..guarded import first_line
from ..trt_log import compiler_log
from .job import TrtJob
from .settings import NEWEST, OLDEST, TENSORRT, TENSORRT_RTX, map_settings, release_tuple

_DISTRIBUTIONS = {TENSORRT: "torch-tensorrt", TENSORRT_RTX: "torch-tensorrt-rtx"}
_INSTALL = f"{install_extra('tensorrt')} (or {install_extra('rtx')} for TensorRT-RTX, also on a machine without a GPU)"


class TorchTensorRTBackend:
    """The published way to run GR00T N1.5: one TensorRT engine per submodule."""

    name = "torch_tensorrt"
    # TensorRT: changing an execution context's shapes leaves graphs captured from it undefined.
    capturable: Capturable = "one shape"

    def availability(self) -> Availability:
        """Imports torch_tensorrt only when one of its distributions is installed."""
        versions = {"torch": str(torch.__version__)}
        found = {flavour: v for flavour, name in _DISTRIBUTIONS.items() if (v := _distribution(name)) is not None}
        if not found:
            return Availability(False, f"Torch-TensorRT is not installed: {_INSTALL}", versions)
        for flavour, version in found.items():
            versions[_DISTRIBUTIONS[flavour].replace("-", "_")] = version
        caveats = []
        if len(found) > 1:
            caveats.append("torch-tensorrt and torch-tensorrt-rtx own the same import: uninstall one of them.")
        try:
            # Import-time complaints about features that this package does not use go to stdout as well.
            with compiler_log(debug=False), contextlib.redirect_stdout(io.StringIO()), cpu_only() as module:
                flavour = _flavour(module)
                release = release_tuple(module.__version__)
                versions[flavour] = str(sys.modules["tensorrt"].__version__)
        except Exception as e:  # its import runs checks of its own and raises bare Exception for a missing library
            return Availability(False, f"Torch-TensorRT is installed but cannot be imported: {first_line(e)}", versions)
        caveats += _caveats(release, flavour)
        return Availability(True, "", versions, tuple(caveats))

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Build one submodule: on a GPU to run, without one as a dry run and, with TensorRT-RTX, an engine file.

        Raises: BackendError naming the submodule and the phase; PlanError for an option that this release cannot
            honour; RecordError, before anything is built, when its `engine_dir` cannot be written.
        """
        available = self.availability()
        cuda = require(available, target, options, context.engine_dir)
        with compiler_log(options.debug) as log, cpu_only() as module:
            flavour = _flavour(module)
            options = for_formats(target, options, ahead_of_time=flavour == TENSORRT_RTX)
            settings = map_settings(
                options,
                release=release_tuple(module.__version__),
                fields=_field_names(),
                flavour=flavour,
                cuda=cuda,
                timing_cache_path=str(_cache_dir(available.versions) / "timing_cache.bin"),
            )
            what = {"target": target, "options": options, "cuda": cuda, "versions": available.versions, **vars(context)}
            job = TrtJob(torch_tensorrt=module, settings=settings, flavour=flavour, log=log, **what)
            targets = compute_capabilities(options.compute_capabilities)
            with _debugger(module, settings.debugger, target, context.engine_dir), _device(target), targets:
                return job.run()


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _flavour(module: Any) -> str:
    return TENSORRT_RTX if getattr(module.ENABLED_FEATURES, "tensorrt_rtx", False) else TENSORRT


def _field_names() -> frozenset[str]:
    from torch_tensorrt.dynamo._settings import CompilationSettings

    return frozenset(f.name for f in dataclasses.fields(CompilationSettings))


def _caveats(release: tuple[int, int], flavour: str) -> list[str]:
    out = []
    name = "Torch-TensorRT {}.{}".format(*release)
    if not OLDEST <= release <= NEWEST:
        out.append(f"{name} is outside the releases that were checked, {OLDEST} to {NEWEST}.")
    if release_tuple(torch.__version__) != release:
        out.append(f"{name} belongs to torch {release[0]}.{release[1]}, and torch {torch.__version__} is installed.")
    if flavour == TENSORRT_RTX:
        out.append("TensorRT-RTX is an experimental flavour of Torch-TensorRT.")
    if not torch.cuda.is_available():
        what = "engines are built and not run" if flavour == TENSORRT_RTX else "only a dry run is possible"
        out.append(f"No CUDA device: {what}.")
    return out


def _cache_dir(versions: dict[str, str]) -> Path:
    """A folder per GPU and set of versions: timings of one are misleading for another."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    key = "-".join([gpu, *(f"{name}-{version}" for name, version in sorted(versions.items()))])
    return user_cache() / re.sub(r"[^A-Za-z0-9._+-]+", "-", key)


def _debugger(module: Any, wanted: bool, target: Target, engine_dir: Path | None) -> Any:
    if not wanted:
        return contextlib.nullcontext()
    folder = (engine_dir or _cache_dir({})) / "debug" / target.name
    return module.dynamo.Debugger(log_level="debug", logging_dir=str(folder))


def _device(target: Target) -> Any:
    cuda = next((x.device for x in target.inputs if x.device.type == "cuda"), None)
    return torch.cuda.device(cuda) if cuda is not None else contextlib.nullcontext()
