"""One submodule through Torch-TensorRT: its engine built or loaded from the cache."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...engines.cache import Cached, Slot
from ...engines.manifest import Binding
from ...engines.serialized_engine import SerializedEngine
from ...errors import BackendError
from ...quantize.linear import formats_in
from ..base import Built
from ..engine_job import EngineJob, Made
from ..guarded import GuardedModule
from ..trt_layers import engine_layers
from . import engine as trt_build
from . import partition as trt_partition
from .settings import TENSORRT, TrtSettings

if TYPE_CHECKING:
    from ..trt_runtime import TrtRunner


@dataclasses.dataclass(kw_only=True)
class TrtJob(EngineJob):
    """An engine by Torch-TensorRT; `run` builds it, inside `cpu_only` and with the compiler's log captured."""

    route: ClassVar[str] = "torch_tensorrt"

    torch_tensorrt: Any
    settings: TrtSettings
    flavour: str
    log: Any

    def run(self) -> Built:
        start = time.perf_counter()
        self.arguments = {**self.settings.module, **self.settings.compile}
        self.notes += self.settings.notes
        built = self.on_gpu() if self.cuda else self.without_gpu()
        return self.finished(built, start, self.arguments)

    def on_gpu(self) -> Built:
        slot = self.slot()
        with slot.reserved():
            found = slot.find(read=True)
            if found is not None and (built := self.loaded(found)) is not None:
                return built
            if formats_in(self.target.module):
                return self.frozen(slot)
            with self.phase("exporting and building the engine", "build"):
                part = self.partition()
            self.check_complete(part)
            call = GuardedModule(self.target, part.module)
            with self.phase("running the engine at the recorded size", "warm"):
                self.warm(call, part)
            engine = self.existing_engine(part)
            made = Made(None, None, part.layers) if engine is None else self.written(slot, engine, part)
        after = engine_layers(module for _, module in part.engines())
        return Built(call, True, 0.0, coverage=part.coverage, layers_after=after, **made._asdict())

    def frozen(self, slot: Slot) -> Built:
        """An engine whose weights cannot be replaced, run as one from the cache is.

        The mutable module builds refittable ones, and nobody has seen constants of 8 and 4 bits survive a refit.
        """
        with self.phase("exporting and partitioning", "partition"):
            part = self.partition(dryrun=True)
        self.check_complete(part)
        if part.coverage.engines != 1 or part.coverage.unsupported:
            raise self.not_complete(f"{self.target.name}: quantised layers run in one engine or in none")
        with self.phase(f"building the {self.flavour} engine", "engine"):
            engine = trt_build.build_engine(self.torch_tensorrt, self.target, part)
        made = self.written(slot, engine, part)
        with self.phase("loading the engine", "load"):
            runner = self.runner(engine.plan, engine.inputs, engine.outputs)
        call = self.warmed(runner, engine.arguments)
        after = runner.engine.num_layers
        return Built(call, True, 0.0, coverage=part.coverage, layers_after=after, **made._asdict())

    def without_gpu(self) -> Built:
        """A dry run, always: its graph is what the submodule's accuracy is checked on. Only the engine is kept."""
        with self.phase("exporting and partitioning", "partition"):
            part = self.partition()
        self.check_complete(part)
        built = Built(GuardedModule(self.target, part.module), False, 0.0, coverage=part.coverage)
        if self.flavour == TENSORRT:
            self.notes.append("Dry run: TensorRT builds engines on a GPU only; TensorRT-RTX also without one.")
            return built
        if part.coverage.engines != 1 or part.coverage.unsupported:
            self.notes.append("No engine was built: the submodule does not fit into exactly one.")
            return built
        slot, graph = self.slot(), trt_partition.graph_hash(part)
        with slot.reserved():
            found = slot.find()
            if found is not None and found.manifest.graph_sha256 != graph:
                self.notes.append("The engine in the cache is of another graph than this one, and was built again.")
                found = None
            if found is None:
                with self.phase("building the TensorRT-RTX engine", "engine"):
                    engine = trt_build.build_engine(self.torch_tensorrt, self.target, part)
                made = self.written(slot, engine, part, graph)
            else:
                made = self.taken(found)
            built = dataclasses.replace(built, **made._asdict())
        self.note_unrun()
        return built

    def key_settings(self) -> Mapping[str, object]:
        return {name: value for name, value in self.arguments.items() if name != "timing_cache_path"}

    def compiler_error(self) -> str | None:
        return self.log.first_error()

    def loaded(self, found: Cached) -> Built | None:
        """An engine from the cache, run once; None, and a note, where it cannot be."""
        try:
            with self.phase("loading the engine from the cache", "load"):
                assert found.plan is not None
                runner = self.runner(found.plan, found.manifest.inputs, found.manifest.outputs)
            call = self.warmed(runner, found.manifest.arguments)
        except BackendError as e:
            self.notes.append(f"The engine in the cache was built again: {str(e).splitlines()[0]}.")
            return None
        if self.options.cpu_offload:
            self.target.module.to("cpu")
        after, coverage = runner.engine.num_layers, found.manifest.coverage
        return Built(call, True, 0.0, coverage=coverage, layers_after=after, **self.taken(found)._asdict())

    def runner(self, plan: bytes, inputs: Sequence[Binding], outputs: Sequence[Binding]) -> TrtRunner:
        from ..trt_runtime import TrtRunner

        names = [each.name for each in inputs], [each.name for each in outputs]
        return TrtRunner(plan, *names, self.target.inputs[0].device)

    def warmed(self, runner: TrtRunner, arguments: Sequence[int]) -> GuardedModule:
        """Calls an engine, which takes these of the submodule's arguments; run once."""
        call = GuardedModule(self.target, lambda *args: runner(*(args[index] for index in arguments)))
        with self.phase("running the engine at the recorded size", "warm"), torch.no_grad():
            call(*self.target.inputs)
            torch.cuda.synchronize()
        return call

    def partition(self, *, dryrun: bool | None = None) -> trt_partition.Partition:
        """Compiled; only traced and partitioned for a dry run, which it is without a GPU."""
        dry = not self.cuda if dryrun is None else dryrun
        arguments = {**self.arguments, "dryrun": True} if dry else self.arguments
        try:
            return trt_partition.partition(self.torch_tensorrt, self.target, arguments, dryrun=dry)
        except AssertionError as e:
            if "require_full_compilation" not in str(e):
                raise
            # The compiler says that something is left over and not what; a tolerant dry run names it.
            arguments = {**self.arguments, "require_full_compilation": False, "dryrun": True}
            part = trt_partition.partition(self.torch_tensorrt, self.target, arguments, dryrun=True)
            raise self.not_complete(trt_partition.incomplete(self.target, part.coverage) or str(e)) from e

    def not_complete(self, why: str) -> BackendError:
        return BackendError(
            why,
            known="require_full_compilation is on: a submodule must become exactly one engine",
            fix="set `require_full_compilation: false`, or give this submodule `backend: eager` in the plan",
        )

    def check_complete(self, part: trt_partition.Partition) -> None:
        why = trt_partition.incomplete(self.target, part.coverage)
        if why is not None and self.options.require_full_compilation:
            raise self.not_complete(why)
        if why is not None:
            self.notes.append(why)

    def warm(self, call: GuardedModule, part: trt_partition.Partition) -> None:
        with torch.no_grad():
            call(*self.target.inputs)
        torch.cuda.synchronize()
        if part.module.gm is not part.graph:
            raise BackendError(f"{self.target.name}: the recorded size made the compiler build again")

    def existing_engine(self, part: trt_partition.Partition) -> SerializedEngine | None:
        if part.coverage.engines != 1:
            return None
        engine = trt_build.built_engine(self.target, part)
        if engine is None and (self.engine_dir is not None or self.cache is not None):
            self.notes.append("The engine was not written: this release keeps no serialised copy of it.")
        return engine

    def written(
        self, slot: Slot, engine: SerializedEngine, part: trt_partition.Partition, graph: str | None = None
    ) -> Made:
        """As `made`, with the settings that this engine was built with."""
        frozen = not self.cuda or formats_in(self.target.module)  # built from a dry run's graph
        settings = {**self.arguments, **(trt_build.AHEAD_OF_TIME if frozen else {})}
        return self.made(slot, engine, settings, part.coverage, graph)
