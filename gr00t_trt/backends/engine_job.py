"""The part of building an engine that both routes share: phases, cache, file."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from ..common.allocator import return_freed
from ..engines.cache import Cached, EngineCache, Slot
from ..engines.files import place_engine, prepare_engine_dir, write_engine
from ..engines.key import Key, engine_key, target_gpu, weights_hash
from ..engines.manifest import Coverage, Description, EngineFile
from ..engines.serialized_engine import SerializedEngine
from ..errors import BackendError
from ..model.targets import Target
from ..plans.backends import Availability
from ..plans.schema import BuildOptions
from .base import Built
from .compute_capabilities import PORTABLE_TARGETS, check_this_gpu
from .guarded import blamed


def require(available: Availability, target: Target, options: BuildOptions, engine_dir: Path | None) -> bool:
    """Refuse what cannot be built here, before anything is; returns whether there is a GPU to run the engine.

    Raises: BackendError, or RecordError when `engine_dir` cannot be written.
    """
    if not available.installed:
        raise BackendError(f"{target.name}: {available.reason}", fix="or choose --backend inductor")
    cuda = torch.cuda.is_available()
    if cuda and any(x.device.type != "cuda" for x in target.inputs):
        raise BackendError(
            f"{target.name}: its inputs are on the CPU and engines run on the GPU", fix="load the model on cuda"
        )
    if cuda:
        check_this_gpu(options.compute_capabilities)
    if engine_dir is not None:
        prepare_engine_dir(engine_dir)
    return cuda


class Made(NamedTuple):
    """What is told of an engine, new or from the cache: fields of `Built`."""

    engine: EngineFile | None
    engine_bytes: int | None
    layers_before: int | None
    from_cache: bool = False


@dataclasses.dataclass(kw_only=True)
class EngineJob:
    """One build by either route; `TrtJob` and `OnnxJob` add what their route needs.

    Attributes:
        route: Name of the backend, which is part of the engine's key.
        cuda: The engine runs here; else it is built ahead of time, and what is called is the exported graph.
        notes, phases: What the user is told, and seconds by phase; filled as the job goes on.
    """

    route: ClassVar[str]
    target: Target
    options: BuildOptions
    cuda: bool
    engine_dir: Path | None
    cache: EngineCache | None
    versions: dict[str, str]
    progress: Callable[[str], None]
    notes: list[str] = dataclasses.field(default_factory=list)
    phases: dict[str, float] = dataclasses.field(default_factory=dict)

    def key_settings(self) -> Mapping[str, object]:
        """The settings that make another engine when they change."""
        raise NotImplementedError

    def compiler_error(self) -> str | None:
        """What the compiler's own log says of a failure; None where the exception says it all."""
        return None

    def slot(self) -> Slot:
        """The engine's place in the cache; one that keeps nothing where there is no cache, or a build is wanted."""
        cache = self.cache
        if cache is not None and self.options.debug:
            self.notes.append("debug: the engine cache was not used, so that there is a build to look at.")
            cache = None
        if cache is None:
            return Slot(None, self.key, self.progress, self.notes)
        with self.phase("looking for the engine in the cache", "key"):
            return Slot(cache, self.key, self.progress, self.notes)

    def key(self) -> Key:
        return engine_key(
            self.target,
            route=self.route,
            settings=self.key_settings(),
            gpu=target_gpu(self.options.compute_capabilities, self.target.inputs[0].device),
            versions=self.versions,
        )

    def taken(self, found: Cached) -> Made:
        """What is told of an engine from the cache."""
        self.notes.append("The engine is from the cache: an earlier run built it.")
        return Made(self.place(found.file), found.file.bytes, found.manifest.layers, from_cache=True)

    def made(
        self,
        slot: Slot,
        engine: SerializedEngine,
        settings: dict[str, Any],
        coverage: Coverage,
        graph_sha256: str | None = None,
    ) -> Made:
        """What is told of a new engine, which is written where it is wanted: see `Description`."""
        if slot.key is None and self.engine_dir is None:
            return Made(None, len(engine.plan), engine.layers)
        with self.phase("writing the engine", "write"):
            description = Description(
                inputs=engine.inputs,
                outputs=engine.outputs,
                arguments=engine.arguments,
                layers=engine.layers,
                compute_capabilities=self.options.compute_capabilities,
                versions=self.versions,
                options=dataclasses.asdict(self.options),
                settings=settings,
                weights_sha256=slot.key["weights_sha256"] if slot.key else weights_hash(self.target.module),
                executed=self.cuda,
                coverage=coverage,
                graph_sha256=graph_sha256,
            )
            # Into the cache and from there into `engine_dir`; straight into that where there is no cache.
            kept = slot.keep(engine.plan, description)
            if kept is not None:
                file: EngineFile | None = self.place(kept)
            elif self.engine_dir is not None:
                file = write_engine(self.engine_dir, self.target.name, engine.plan, description=description)
            else:
                file = None
        return Made(file, len(engine.plan), engine.layers)

    def finished(self, built: Built, start: float, settings: dict[str, Any]) -> Built:
        """What was built, with everything that was noted and timed since `start`; the compiler's memory is returned."""
        return_freed()
        return dataclasses.replace(
            built,
            build_s=time.perf_counter() - start,
            phases_s=self.phases,
            settings=settings,
            notes=tuple(self.notes),
        )

    def note_unrun(self) -> None:
        targets = ", ".join(self.options.compute_capabilities) or PORTABLE_TARGETS
        self.notes.append(f"The engine was built without a GPU, for compute capability {targets}. It has not run.")

    def place(self, cached: EngineFile) -> EngineFile:
        return cached if self.engine_dir is None else place_engine(cached, self.engine_dir, self.target.name)

    @contextmanager
    def phase(self, what: str, key: str) -> Iterator[None]:
        """Tell of a phase, take its time, and blame it for what goes wrong. Raises: BackendError."""
        self.progress(what)
        start = time.perf_counter()
        with blamed(self.target, what, self.compiler_error):
            yield
        self.phases[key] = time.perf_counter() - start
