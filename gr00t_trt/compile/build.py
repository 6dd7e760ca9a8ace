"""A plan carried out on a model: precision set, submodules built, swapped in, and compared with eager fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..backends import get_backend
from ..backends.base import Built
from ..engines.cache import EngineCache
from ..measure import accuracy
from ..model import Gr00tN1d5
from ..model.n1_5 import fast
from ..model.n1_5.fast import FastGr00tN1d5
from ..model.targets import Call, DimRange, Recording, Target, cast_inputs
from ..plans.load import ResolvedSubmodule, resolve
from ..plans.schema import SUBMODULES, Gate, Plan
from .submodules import target

Model = Gr00tN1d5 | FastGr00tN1d5

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Compiled:
    """One submodule after compilation.

    Attributes:
        agreement: Its worst agreement with eager fp32 over every call of the recorded request.
        failures: What the gate holds against it, in plain words; empty when it passes.
    """

    target: Target
    resolved: ResolvedSubmodule
    built: Built
    agreement: accuracy.Agreement
    failures: list[str]


def set_precision(model: Model, plan: Plan) -> None:
    """Cast every submodule to its planned dtype, and what lies between them to the plan's own.

    In place, tensor by tensor: a model in fp32 becomes smaller and is never held twice.
    """
    model.cast_glue(DTYPES[plan.precision])
    for name in SUBMODULES:
        model.cast_stage(name, DTYPES[resolve(plan, name).precision])
    if plan.joint_backbone and isinstance(model, Gr00tN1d5):
        # One graph has one dtype, connector and embedding table included.
        model.cast_stage("eagle_backbone", DTYPES[resolve(plan, "eagle_backbone").precision])


def compile_submodule(
    model: Model,
    name: str,
    plan: Plan,
    recording: Recording,
    dims: Mapping[str, DimRange],
    *,
    engine_dir: Path | None,
    progress: Callable[[str], None],
    cache: EngineCache | None = None,
) -> Compiled:
    """`build_submodule` as the plan has it, put into `model.stages`."""
    done = build_submodule(
        model, name, resolve(plan, name), recording, dims, engine_dir=engine_dir, progress=progress, cache=cache
    )
    model.stages[name] = done.built.call
    return done


def build_submodule(
    model: Model,
    name: str,
    resolved: ResolvedSubmodule,
    recording: Recording,
    dims: Mapping[str, DimRange],
    *,
    engine_dir: Path | None,
    progress: Callable[[str], None],
    cache: EngineCache | None = None,
) -> Compiled:
    """Build one submodule and hold it against the eager fp32 recording; the model is left as it is.

    Raises: BackendError, PlanError or RecordError from the backend.
    """
    wanted = target_of(model, name, recording, dims)
    backend = get_backend(resolved.backend)
    built = backend.build(wanted, resolved.build, engine_dir=engine_dir, progress=progress, cache=cache)
    progress("comparing with eager fp32")
    agreement = agreement_with(built.call, recording[name], model.argument_dtypes(name), model.device)
    return Compiled(wanted, resolved, built, agreement, judge(name, agreement, resolved.gate))


def target_of(model: Model, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
    """One submodule of either model with its recorded inputs, ready for a backend."""
    if isinstance(model, FastGr00tN1d5):
        return fast.target(model, name, recording, dims)
    return target(model, name, recording, dims)


def judge(name: str, agreement: accuracy.Agreement, gate: Gate) -> list[str]:
    """The gate's complaints, each naming the submodule."""
    return [f"{name}: {failure}" for failure in accuracy.check(agreement, gate)]


@torch.no_grad()
def agreement_with(
    call: Callable[..., torch.Tensor], calls: Sequence[Call], dtypes: Sequence[torch.dtype], device: torch.device
) -> accuracy.Agreement:
    """The worst agreement of `call` with recorded fp32 calls, given the same inputs.

    Args:
        dtypes, device: What each floating input is cast to and where all go, as in a request.
    """
    # Copies: a backend may hand out the same buffer for every call.
    outputs = [call(*cast_inputs(recorded, dtypes, device)).clone() for recorded in calls]
    return accuracy.compare(outputs, [recorded.output for recorded in calls])
