"""One submodule through ONNX to TensorRT: its engine ready-made, loaded from the cache, or built."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...engines.cache import Slot
from ...engines.manifest import Coverage
from ...engines.serialized_engine import SerializedEngine
from ...errors import BackendError
from ..base import Built
from ..engine_job import EngineJob, Made
from ..guarded import GuardedModule, check_form, first_line
from ..onnx import backend as onnxruntime
from ..onnx import export as onnx_export
from ..onnx.export import OnnxFile
from ..onnx.interface import interface
from ..trt_runtime import TrtRunner
from . import network as trt_network
from . import ready_made
from .network import TensorRT, describe_engine


@dataclasses.dataclass(kw_only=True)
class OnnxJob(EngineJob):
    """An engine by way of an ONNX file; `run` builds it."""

    route: ClassVar[str] = "tensorrt"

    trt: TensorRT

    def run(self) -> Built:
        start = time.perf_counter()
        self.settings = {
            "opset": onnx_export.OPSET,
            "flavour": self.trt.flavour,
            **{name: getattr(self.options, name) for name in ("use_fp32_acc", "disable_tf32", "optimization_level")},
        }
        self.form = interface(self.target)
        built = self.ready_made()
        if built is None:
            slot = self.slot()
            with slot.reserved():
                built = self.on_gpu(slot) if self.cuda else self.without_gpu(slot)
        guarded = dataclasses.replace(built, call=GuardedModule(self.target, built.call))
        return self.finished(guarded, start, self.settings)

    def on_gpu(self, slot: Slot) -> Built:
        found = slot.find(read=True)
        if found is not None:
            told = len(self.notes)
            try:
                assert found.plan is not None
                runner = self.runner(found.plan)
                return self.running(runner, found.manifest.coverage, self.taken(found))
            except BackendError as e:
                del self.notes[told:]  # it is not from the cache after all
                self.notes.append(f"The engine in the cache was built again: {first_line(e)}.")
        with onnx_export.folder_for(None) as folder:
            file, engine = self.built(folder)
        made = self.made(slot, engine, self.settings, _coverage(file))
        return self.running(self.runner(engine.plan), _coverage(file), made)

    def without_gpu(self, slot: Slot) -> Built:
        """The file is exported always: it is what the submodule's accuracy is checked on. Only the engine is kept."""
        found = slot.find()
        with onnx_export.folder_for(None) as folder:
            if found is None:
                file, engine = self.built(folder)
                made = self.made(slot, engine, self.settings, _coverage(file))
                del engine  # a gigabyte, and the session is about to need more
            else:
                file, made = self.exported(folder), self.taken(found)
            self.note_unrun()
            call = self.stand_in(file)
        return Built(call, False, 0.0, coverage=_coverage(file), **made._asdict())

    def exported(self, folder: Path) -> OnnxFile:
        start = time.perf_counter()
        file = onnx_export.export(self.target, folder, self.options, self.progress)
        self.phases["export"] = time.perf_counter() - start
        return file

    def built(self, folder: Path) -> tuple[OnnxFile, SerializedEngine]:
        file = self.exported(folder)
        with self.phase(f"building the {self.trt.flavour} engine", "engine"):
            return file, trt_network.build_engine(self.trt, file, self.options)

    def runner(self, plan: bytes) -> TrtRunner:
        with self.phase("loading the engine", "load"):
            device = self.target.inputs[0].device
            return TrtRunner(plan, self.form.target.argument_names, (self.form.output,), device, trt=self.trt)

    def running(self, runner: TrtRunner, coverage: Coverage | None, made: Made) -> Built:
        """What is on the GPU, run once. Raises: BackendError when its result has another form than the eager one."""

        def call(*args: torch.Tensor) -> torch.Tensor:
            return runner(*self.form.arguments(args))

        with self.phase("running the engine at the recorded size", "warm"):
            check_form(self.target, call)
        after = runner.engine.num_layers
        return Built(call, True, 0.0, coverage=coverage, layers_after=after, **made._asdict())

    def stand_in(self, file: OnnxFile) -> Callable[..., Any]:
        """What is called where the engine cannot run."""
        why_not = onnxruntime.cannot_run(self.target)
        if importlib.util.find_spec("onnxruntime") is None:
            why_not = "onnxruntime is not installed"
        if why_not:
            self.notes.append(f"Numbers are of the eager module, not of the exported graph: {why_not}.")
            return self.target.module
        with self.phase("opening the exported graph in ONNX Runtime", "session"):
            session = onnxruntime.open_session(self.target, file, self.options)
            check_form(self.target, session)
        self.notes += ["Numbers are of the exported graph, run by ONNX Runtime on the CPU.", *session.notes]
        return session

    def ready_made(self) -> Built | None:
        """The engine of the original route, or None and a note that says why not."""
        if self.options.trt_engine_path is None:
            return None
        path, why = ready_made.engine_path(Path(self.options.trt_engine_path), self.form)
        if path is not None and not self.cuda:
            path, why = None, f"{path} can be read on a GPU only"
        if path is None:
            self.notes.append(f"No ready-made engine is used: {why}.")
            return None
        try:
            plan = path.read_bytes()
            runner = self.runner(plan)
            misfit = ready_made.misfit(self.form, *describe_engine(self.trt.module, runner.engine))
            if misfit is None:
                built = self.running(runner, None, Made(None, len(plan), None))
                self.notes.append(f"The ready-made engine {path} is used; nothing was built.")
                return built
        except (BackendError, OSError) as e:
            misfit = first_line(e)
        self.notes.append(f"The ready-made engine {path} is not used: {misfit}.")
        return None

    def key_settings(self) -> Mapping[str, object]:
        return self.settings


def _coverage(file: OnnxFile) -> Coverage:
    # The parser takes a file whole or not at all.
    return Coverage(operators=file.nodes, converted=file.nodes, engines=1)
