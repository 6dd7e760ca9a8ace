"""TensorRT by way of ONNX: export, parse, build. TensorRT proper and TensorRT-RTX.

On a GPU the engine runs. Without one TensorRT-RTX builds the same engine ahead of time, which is written and not run;
what is called then is the exported graph in ONNX Runtime, so that its numbers can be checked.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ..errors import BackendError, Gr00tError
from ..settings import BuildOptions
from . import onnx_export, onnxruntime, ready_made, trt_network
from .base import Availability, Built, Capturable, Coverage, EngineFile, Target
from .engine_files import prepare_engine_dir, write_engine
from .guarded import GuardedModule, build_failed, check_form, first_line
from .onnx_export import OnnxFile
from .onnx_interface import interface
from .trt_build import PORTABLE_TARGETS, SerializedEngine, check_this_gpu
from .trt_network import TensorRT, describe_engine
from .trt_runtime import EngineCall, deserialize
from .trt_settings import TENSORRT_RTX

_INSTALL = "pip install tensorrt on a machine with a GPU, or 'gr00t_trt[rtx]' for TensorRT-RTX on any"


class TensorRTBackend:
    """NVIDIA's published route: one engine per submodule, from an ONNX file."""

    name = "tensorrt"
    # Changing an execution context's shapes leaves graphs captured from it undefined.
    capturable: Capturable = "one shape"

    def availability(self) -> Availability:
        versions = {"torch": str(torch.__version__)}
        if reason := onnx_export.missing():
            return Availability(False, reason, versions)
        try:
            trt = trt_network.load_tensorrt()
        except ImportError as e:
            return Availability(False, f"TensorRT cannot be imported ({first_line(e)}): {_INSTALL}", versions)
        versions[trt.flavour] = trt.version
        if torch.cuda.is_available():
            return Availability(True, "", versions)
        if trt.flavour != TENSORRT_RTX:
            return Availability(False, f"TensorRT builds engines on a GPU only: {_INSTALL}", versions)
        caveat = "No CUDA device: engines are built and not run."
        if importlib.util.find_spec("onnxruntime") is None:
            caveat += " Nor is onnxruntime installed, so the exported graphs are not checked."
        return Availability(True, "", versions, (caveat,))

    def build(
        self, target: Target, options: BuildOptions, *, engine_dir: Path | None, progress: Callable[[str], None]
    ) -> Built:
        """Build one submodule, or take the ready-made engine of `options.trt_engine_path` where it fits.

        Raises: BackendError naming the submodule and the phase; PlanError for an option that this TensorRT cannot
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
        trt = trt_network.load_tensorrt(verbose=options.debug)
        trt_network.refuse_options(trt, options)
        if cuda:
            check_this_gpu(options.compute_capabilities)
        if engine_dir is not None:
            prepare_engine_dir(engine_dir)
        job = _Job(trt, target, options, engine_dir, available.versions, progress, cuda)
        return job.ready_made() or job.run()


@dataclasses.dataclass
class _Job:
    trt: TensorRT
    target: Target
    options: BuildOptions
    engine_dir: Path | None
    versions: dict[str, str]
    progress: Callable[[str], None]
    cuda: bool
    notes: list[str] = dataclasses.field(default_factory=list)
    phases: dict[str, float] = dataclasses.field(default_factory=dict)

    def run(self) -> Built:
        start = time.perf_counter()
        call: Callable[..., Any]
        layers: int | None
        with onnx_export.folder_for(None) as folder:
            file = onnx_export.export(self.target, folder, self.options, self.progress)
            self.phases["export"] = time.perf_counter() - start
            with self.phase(f"building the {self.trt.flavour} engine", "engine"):
                engine = trt_network.build_engine(self.trt, file, self.options)
            size = len(engine.plan)
            written = self.write(engine, file) if self.engine_dir is not None else None
            if self.cuda:
                call, layers = self.load(engine, file)
            else:
                del engine  # a gigabyte, and the session is about to need more
                call, layers = self.stand_in(file), None
        return Built(
            call=GuardedModule(self.target, call),
            runs=self.cuda,
            build_s=time.perf_counter() - start,
            phases_s=self.phases,
            coverage=Coverage(operators=file.nodes, converted=file.nodes, engines=1),
            engine=written,
            engine_bytes=size,
            layers_before=file.nodes,
            layers_after=layers,
            settings={"opset": onnx_export.OPSET, "strongly_typed": True, "flavour": self.trt.flavour},
            notes=tuple(self.notes),
        )

    def ready_made(self) -> Built | None:
        """The engine of the original route, or None and a note that says why not."""
        if self.options.trt_engine_path is None:
            return None
        start = time.perf_counter()
        form = interface(self.target)
        path, why = ready_made.engine_path(Path(self.options.trt_engine_path), form)
        if path is not None and not self.cuda:
            path, why = None, f"{path} can be read on a GPU only"
        if path is None:
            self.notes.append(f"No ready-made engine is used: {why}.")
            return None
        self.progress(f"loading {path}")
        try:
            plan = path.read_bytes()
            engine = deserialize(self.trt, plan, str(path))
            misfit = ready_made.misfit(form, *describe_engine(self.trt.module, engine))
            if misfit is None:
                call = EngineCall(self.trt, engine, form, self.target.inputs[0].device)
                check_form(self.target, call)
        except (BackendError, OSError) as e:
            misfit = first_line(e)
        if misfit is not None:
            self.notes.append(f"The ready-made engine {path} is not used: {misfit}.")
            return None
        return Built(
            call=GuardedModule(self.target, call),
            runs=True,
            build_s=time.perf_counter() - start,
            engine_bytes=len(plan),
            layers_after=engine.num_layers,
            notes=(f"The ready-made engine {path} is used; nothing was built.",),
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
            raise build_failed(self.target, what, e) from e
        self.phases[key] = time.perf_counter() - start

    def load(self, engine: SerializedEngine, file: OnnxFile) -> tuple[EngineCall, int]:
        """The engine on this GPU, and its layers."""
        with self.phase("running the engine at the recorded size", "warm"):
            loaded = deserialize(self.trt, engine.plan, self.target.name)
            call = EngineCall(self.trt, loaded, file.interface, self.target.inputs[0].device)
            check_form(self.target, call)
        return call, loaded.num_layers

    def stand_in(self, file: OnnxFile) -> Callable[..., Any]:
        """What is called where the engine cannot run."""
        targets = ", ".join(self.options.compute_capabilities) or PORTABLE_TARGETS
        self.notes.append(f"The engine was built without a GPU, for compute capability {targets}. It has not run.")
        why_not = onnxruntime.cannot_run(self.target)
        if importlib.util.find_spec("onnxruntime") is None:
            why_not = "onnxruntime is not installed"
        if why_not:
            self.notes.append(f"Numbers are of the eager module, not of the exported graph: {why_not}.")
            return self.target.module
        with self.phase("opening the exported graph in ONNX Runtime", "session"):
            session = onnxruntime.open_session(self.target, file, self.options)
            check_form(self.target, session)
        self.notes.append("Numbers are of the exported graph, run by ONNX Runtime on the CPU.")
        return session

    def write(self, engine: SerializedEngine, file: OnnxFile) -> EngineFile:
        assert self.engine_dir is not None
        with self.phase("writing the engine", "write"):
            description = {
                "inputs": engine.inputs,
                "outputs": engine.outputs,
                "compute_capabilities": self.options.compute_capabilities,
                "versions": self.versions,
                "options": dataclasses.asdict(self.options),
                "settings": {"route": "onnx", **file.metadata},
                "weights_sha256": file.metadata["weights_sha256"],
                "executed": self.cuda,
            }
            return write_engine(self.engine_dir, self.target.name, engine.plan, description=description)
