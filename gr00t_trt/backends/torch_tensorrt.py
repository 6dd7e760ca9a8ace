"""Torch-TensorRT 2.9 to 2.14, for TensorRT and for TensorRT-RTX.

With a GPU, a submodule becomes a MutableTorchTensorRTModule behind its shape check. Without one, the same module
runs as a dry run (export, lowering, partitioning, and the partitioned graph in PyTorch); with TensorRT-RTX, which
builds ahead of time, the engine of that very graph is then built and written, and not run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib.metadata
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import BackendError, Gr00tError
from ..settings import BuildOptions
from . import trt_build
from .base import Availability, Built, Capturable, EngineFile, Target
from .cpu_only import cpu_only
from .engine_files import prepare_engine_dir, weights_hash, write_engine
from .guarded import GuardedModule, build_failed, first_line
from .trt_log import compiler_log
from .trt_settings import NEWEST, OLDEST, TENSORRT, TENSORRT_RTX, TrtSettings, map_settings, release_tuple

_DISTRIBUTIONS = {TENSORRT: "torch-tensorrt", TENSORRT_RTX: "torch-tensorrt-rtx"}
_INSTALL = 'pip install "gr00t_trt[tensorrt]" (or "gr00t_trt[rtx]" for TensorRT-RTX, also on a machine without a GPU)'


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
            with _quiet(), cpu_only() as module:
                flavour = _flavour(module)
                release = release_tuple(module.__version__)
                versions[flavour] = str(sys.modules["tensorrt"].__version__)
        except Exception as e:  # its import runs checks of its own and raises bare Exception for a missing library
            return Availability(False, f"Torch-TensorRT is installed but cannot be imported: {first_line(e)}", versions)
        caveats += _caveats(release, flavour)
        return Availability(True, "", versions, tuple(caveats))

    def build(
        self, target: Target, options: BuildOptions, *, engine_dir: Path | None, progress: Callable[[str], None]
    ) -> Built:
        """Build one submodule: on a GPU to run, without one as a dry run and, with TensorRT-RTX, an engine file.

        Raises: BackendError naming the submodule and the phase; PlanError for an option that this release cannot
            honour; RecordError, before anything is built, when `engine_dir` cannot be written.
        """
        available = self.availability()
        if not available.installed:
            raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend inductor")
        cuda = torch.cuda.is_available()
        if cuda and any(x.device.type != "cuda" for x in target.inputs):
            raise BackendError(
                f"{target.name}: its inputs are on the CPU and engines run on the GPU", fix="load the model on cuda"
            )
        if cuda:
            trt_build.check_this_gpu(options.compute_capabilities)
        if engine_dir is not None:
            prepare_engine_dir(engine_dir)
        with compiler_log(options.debug) as log, cpu_only() as module:
            flavour = _flavour(module)
            settings = map_settings(
                options,
                release=release_tuple(module.__version__),
                fields=_field_names(),
                flavour=flavour,
                cuda=cuda,
                timing_cache_path=str(_cache_dir(available.versions) / "timing_cache.bin"),
            )
            job = _Job(module, target, options, settings, flavour, cuda, engine_dir, available.versions, progress, log)
            targets = trt_build.compute_capabilities(options.compute_capabilities)
            with _debugger(module, settings.debugger, target, engine_dir), _device(target), targets:
                return job.run()


@dataclasses.dataclass
class _Job:
    torch_tensorrt: Any
    target: Target
    options: BuildOptions
    settings: TrtSettings
    flavour: str
    cuda: bool
    engine_dir: Path | None
    versions: dict[str, str]
    progress: Callable[[str], None]
    log: Any
    notes: list[str] = dataclasses.field(default_factory=list)
    phases: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self) -> Built:
        start = time.perf_counter()
        arguments = {**self.settings.module, **self.settings.compile}
        self.notes += self.settings.notes
        what = "exporting and building the engine" if self.cuda else "exporting and partitioning"
        with self.phase(what, "build" if self.cuda else "partition"):
            part = self.partition(arguments)
        self.check_complete(part)
        call = GuardedModule(self.target, part.module)
        engine = None
        if self.cuda:
            with self.phase("running the engine at the recorded size", "warm"):
                self.warm(call, part)
            engine = self.existing_engine(part)
        elif self.flavour == TENSORRT:
            self.notes.append("Dry run: TensorRT builds engines on a GPU only; TensorRT-RTX also without one.")
        elif part.coverage.engines != 1 or part.coverage.unsupported:
            self.notes.append("No engine was built: the submodule does not fit into exactly one.")
        else:
            with self.phase("building the TensorRT-RTX engine", "engine"):
                engine = trt_build.build_engine(self.torch_tensorrt, self.target, part)
            targets = ", ".join(self.options.compute_capabilities) or trt_build.PORTABLE_TARGETS
            self.notes.append(f"The engine was built without a GPU, for compute capability {targets}. It has not run.")
        size, file = (len(engine.plan) if engine is not None else None), None
        if engine is not None and self.engine_dir is not None:
            with self.phase("writing the engine", "write"):
                file = self.write(engine, arguments)
        del engine
        gc.collect()
        return Built(
            call=call,
            runs=self.cuda,
            build_s=time.perf_counter() - start,
            phases_s=self.phases,
            coverage=part.coverage,
            engine=file,
            engine_bytes=size,
            settings=arguments,
            notes=tuple(self.notes),
        )

    @contextmanager
    def phase(self, what: str, key: str) -> Iterator[None]:
        self.progress(what)
        start = time.perf_counter()
        try:
            yield
        except Gr00tError:
            raise
        except Exception as e:
            raise build_failed(self.target, what, e, self.log.first_error()) from e
        self.phases[key] = time.perf_counter() - start

    def partition(self, arguments: dict[str, Any]) -> trt_build.Partition:
        try:
            return trt_build.partition(self.torch_tensorrt, self.target, arguments, dryrun=not self.cuda)
        except AssertionError as e:
            if "require_full_compilation" not in str(e):
                raise
            # The compiler says that something is left over and not what; a tolerant dry run names it.
            arguments = {**arguments, "require_full_compilation": False, "dryrun": True}
            part = trt_build.partition(self.torch_tensorrt, self.target, arguments, dryrun=True)
            raise self.not_complete(trt_build.incomplete(self.target, part.coverage) or str(e)) from e

    def not_complete(self, why: str) -> BackendError:
        return BackendError(
            why,
            known="require_full_compilation is on: a submodule must become exactly one engine",
            fix="set `require_full_compilation: false`, or give this submodule `backend: eager` in the plan",
        )

    def check_complete(self, part: trt_build.Partition) -> None:
        why = trt_build.incomplete(self.target, part.coverage)
        if why is not None and self.options.require_full_compilation:
            raise self.not_complete(why)
        if why is not None:
            self.notes.append(why)

    def warm(self, call: GuardedModule, part: trt_build.Partition) -> None:
        with torch.no_grad():
            call(*self.target.inputs)
        torch.cuda.synchronize()
        if part.module.gm is not part.graph:
            raise BackendError(f"{self.target.name}: the recorded size made the compiler build again")

    def existing_engine(self, part: trt_build.Partition) -> trt_build.SerializedEngine | None:
        if part.coverage.engines != 1:
            return None
        engine = trt_build.built_engine(self.target, part)
        if engine is None and self.engine_dir is not None:
            self.notes.append("The engine was not written: this release keeps no serialised copy of it.")
        return engine

    def write(self, engine: trt_build.SerializedEngine, arguments: dict[str, Any]) -> EngineFile:
        assert self.engine_dir is not None
        description = {
            "inputs": engine.inputs,
            "outputs": engine.outputs,
            "compute_capabilities": self.options.compute_capabilities,
            "versions": self.versions,
            "options": dataclasses.asdict(self.options),
            "settings": arguments if self.cuda else {**arguments, **trt_build.AHEAD_OF_TIME},
            "weights_sha256": weights_hash(self.target.module),
            "executed": self.cuda,
        }
        return write_engine(self.engine_dir, self.target.name, engine.plan, description=description)


def _distribution(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    # Import-time complaints about features that this package does not use go to stdout as well.
    with compiler_log(debug=False), contextlib.redirect_stdout(io.StringIO()):
        yield


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
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no-gpu"
    key = "-".join([gpu, *(f"{name}-{version}" for name, version in sorted(versions.items()))])
    return root / "gr00t_trt" / re.sub(r"[^A-Za-z0-9._+-]+", "-", key)


def _debugger(module: Any, wanted: bool, target: Target, engine_dir: Path | None) -> Any:
    if not wanted:
        return contextlib.nullcontext()
    folder = (engine_dir or _cache_dir({})) / "debug" / target.name
    return module.dynamo.Debugger(log_level="debug", logging_dir=str(folder))


def _device(target: Target) -> Any:
    cuda = next((x.device for x in target.inputs if x.device.type == "cuda"), None)
    return torch.cuda.device(cuda) if cuda is not None else contextlib.nullcontext()
