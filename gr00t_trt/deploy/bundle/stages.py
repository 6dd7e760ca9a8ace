"""The stages of a bundle: built for it, and put in place of the model's own again without building anything.

package     torch.compile's kernels in files of the bundle (`package`)
engine      a TensorRT engine of the bundle, loaded on its GPU
traced      an engine that no GPU was there to run: its graph, which stands in for it, is traced again in PyTorch
quantized   linear layers in 8 or 4 bits, in PyTorch; the calibration lies in the bundle
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...backends.base import BuildContext
from ...backends.guarded import GuardedModule
from ...backends.onnx.interface import interface
from ...backends.trt_runtime import TrtRunner
from ...engines.cache import Cached, EngineCache
from ...engines.files import engine_paths, load, verify
from ...engines.key import Key
from ...engines.manifest import EngineFile
from ...errors import BackendError, PlanError, RecordError
from ...measure.harness import Harness
from ...measure.results import Part
from ...measure.workloads import Request
from ...model.targets import Call as RecordedCall
from ...model.targets import DimRange, Recording, Target
from ...plans.backends import get_backend
from ...plans.resolve import Resolved
from ...plans.schema import Plan
from ...plans.submodules import resolve_submodule
from ...policy.policy import Gr00tPolicy
from ...quantize.layers import quantized_target
from .manifest import COMPILED, ENGINES, Argument, Dimension, Manifest, Stage
from .package import PackageBackend, load_packages

BUNDLED = ("eager", "inductor", "torch_tensorrt", "tensorrt")
PACKAGE, ENGINE, TRACED, QUANTIZED = "package", "engine", "traced", "quantized"

Call = Callable[..., Tensor]


class StageBuilder:
    """In `build_all`'s place: everything that is built lands in the bundle's folder, and is called from there.

    Attributes:
        parts: What was built, by stage.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.parts: dict[str, Part] = {}

    def __call__(self, harness: Harness, resolved: Resolved, cache: EngineCache | None) -> dict[str, Part]:
        names, optimizations = resolved.names, resolved.plan.optimizations
        for number, name in enumerate(names, 1):
            own, label = resolved[name], f"{name} ({number} of {len(names)})"
            backend = PackageBackend(self._folder / COMPILED) if own.backend == "inductor" else None
            folder = self._folder / ENGINES if own.backend not in ("inductor", "eager") else None
            self.parts[name] = harness.build(
                name, own, optimizations, backend=backend, engine_dir=folder, cache=cache, label=label
            )
        return self.parts

    def stages(self) -> tuple[Stage, ...]:
        """What has to be done at a start. Raises: BackendError for an engine that was not written."""
        return tuple(stage for part in self.parts.values() if (stage := _stage(part)) is not None)

    def dimensions(self) -> dict[str, Dimension]:
        ranges = [dim for part in self.parts.values() for own in part.target.ranges for dim in own.values()]
        return {dim.name: Dimension(dim.minimum, dim.optimum, dim.maximum) for dim in ranges}


def refuse_unbundled(resolved: Resolved) -> None:
    """Raises: PlanError for what no bundle can hold, before anything is built."""
    for name in resolved.names:
        used = resolved[name].backend
        if used not in BUNDLED:
            raise PlanError(f"backend {used} ({name}): a bundle cannot hold what it builds", known=BUNDLED)
    if resolved.plan.build.trt_engine_path is not None:
        raise PlanError(
            "build.trt_engine_path: a bundle holds the engines that it was built with, not others' ready-made ones",
            fix="leave it out: they are built here",
        )


def _stage(part: Part) -> Stage | None:
    """None for the model's own module."""
    name, resolved = part.target.name, part.resolved
    inputs = part.target.inputs
    arguments = tuple(Argument(str(x.dtype).removeprefix("torch."), tuple(x.shape)) for x in inputs)
    if resolved.backend == "eager":
        return Stage(name, QUANTIZED, "eager", arguments) if resolved.quantization is not None else None
    if resolved.backend == "inductor":
        return Stage(name, PACKAGE, resolved.backend, arguments)
    if part.built.runs and part.built.engine is None:
        raise BackendError(
            f"{name}: {resolved.backend} wrote no engine that a bundle could hold", known="; ".join(part.built.notes)
        )
    return Stage(name, ENGINE if part.built.runs else TRACED, resolved.backend, arguments)


@dataclass(frozen=True, eq=False)
class Placing:
    """Puts the stages of a bundle into a model.

    Attributes:
        folder: The bundle's, whose files have been checked.
        policy: In PyTorch, with the weights of the bundle; its `model` is the one that the plan makes of it.
        request: Whose stages are traced where an engine cannot run.
        progress: Told of each stage.
    """

    folder: Path
    manifest: Manifest
    policy: Gr00tPolicy
    plan: Plan
    request: Request
    progress: Callable[[str], None]

    def calls(self) -> dict[str, Call]:
        """Stage -> what runs it; nothing is compiled.

        Raises: RecordError, BackendError for a file that cannot be loaded, naming it.
        """
        recording: Recording = {}
        if any(stage.kind == TRACED for stage in self.manifest.stages):
            recording, _ = self.policy.model.record(self.request.inputs, self.request.noise)
        return {stage.name: self._call(stage, recording) for stage in self.manifest.stages}

    def _call(self, stage: Stage, recording: Recording) -> Call:
        self.progress(f"{stage.name}: loading")
        target = self._target(stage, recording)
        if stage.kind == PACKAGE:
            return load_packages(target, self.folder / COMPILED)
        if stage.kind == ENGINE:
            call = engine_call(self.folder / ENGINES, stage.backend, target)
            if self.plan.build.cpu_offload:
                target.module.to("cpu")
            return call
        return self._traced(stage, target) if stage.kind == TRACED else target.module

    def _target(self, stage: Stage, recording: Recording) -> Target:
        """As the stage was built; where it is not traced, nobody reads the values of its inputs."""
        model = self.policy.model
        dims = {n: DimRange(n, own.minimum, own.optimum, own.maximum) for n, own in self.manifest.dimensions.items()}
        if stage.kind != TRACED:
            empty = tuple(torch.empty(a.shape, dtype=getattr(torch, a.dtype)) for a in stage.arguments)
            recording = {stage.name: (RecordedCall(empty, torch.empty(0)),)}
        target = model.target(stage.name, recording, dims)
        if stage.kind == ENGINE:
            return target
        return quantized_target(target, model, resolve_submodule(self.plan, stage.name), self.policy)[0]

    def _traced(self, stage: Stage, target: Target) -> Call:
        """The graph of an engine that cannot run here."""
        told, carried = self.progress, _Carried(self.folder / ENGINES)
        context = BuildContext(None, lambda phase: told(f"{stage.name}: {phase}"), carried)
        built = get_backend(stage.backend).build(target, resolve_submodule(self.plan, stage.name).build, context)
        if built.engine_bytes is not None and not built.from_cache:
            raise BackendError(
                f"{stage.name}: the bundle's engine is not the one that this graph makes", known="; ".join(built.notes)
            )
        return built.call


def engine_call(folder: Path, backend: str, target: Target) -> GuardedModule:
    """An engine by either route, ready to be called on its GPU. Raises: RecordError, BackendError."""
    path, _ = engine_paths(folder, target.name)
    manifest, plan = load(path)
    device = target.inputs[0].device
    if backend == "tensorrt":
        form = interface(target)
        runner = TrtRunner(plan, form.target.argument_names, (form.output,), device)
        return GuardedModule(target, lambda *args: runner(*form.arguments(args)))
    names = [each.name for each in manifest.inputs], [each.name for each in manifest.outputs]
    runner = TrtRunner(plan, *names, device)
    return GuardedModule(target, lambda *args: runner(*(args[index] for index in manifest.arguments)))


class _Carried(EngineCache):
    """A bundle's engines, whose machine and versions have been checked. Nothing is ever put into it."""

    def get(self, key: Key, *, read: bool = False) -> Cached | None:
        path, manifest_path = engine_paths(self.folder, str(key["submodule"]))
        manifest = verify(path)
        if manifest.weights_sha256 != key["weights_sha256"]:
            raise RecordError(f"{path}: it was built from other weights than the bundle's")
        return Cached(EngineFile(path, manifest_path, manifest.bytes), manifest)
