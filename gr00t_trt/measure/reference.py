"""The reference: what eager fp32 makes of a request, and of every stage in it, before anything is cast or compiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.progress import Steps
from ..model.protocol import Model
from ..model.targets import Recording
from ..policy.policy import ModelPolicy
from ..record.result import Workload
from .accuracy import full_fp32
from .workloads import Request


@dataclass(frozen=True, eq=False)
class Reference:
    """What eager fp32 made of some requests, before anything was cast or compiled.

    Attributes:
        policy: In fp32, nothing compiled.
        base: The request that stages were recorded in, and that compiled submodules are tuned for.
        actions: Workload -> normalised actions [B, T, action_dim], on the host.
        recordings: Optimizations -> every call of every stage within the base request.
    """

    policy: ModelPolicy
    base: Request
    actions: Mapping[Workload, Tensor]
    recordings: Mapping[tuple[str, ...], Recording]


@torch.no_grad()
def take_reference(
    policy: ModelPolicy,
    base: Request,
    optimizations: Iterable[tuple[str, ...]],
    steps: Steps,
    *,
    further: Iterable[Request] = (),
) -> Reference:
    """Run requests in eager fp32, and keep what every stage was given and gave.

    Args:
        optimizations: Sets whose stages will be compiled; none is the plain model.
        further: Requests besides the base whose actions will be needed.
    """
    plain = policy.model
    steps.step("running eager fp32, the reference")
    actions: dict[Workload, Tensor] = {}
    for request in (base, *further):
        work = request.workload
        if work not in actions:
            if request is not base:
                size = f"{work.views} view, batch {work.batch}, {work.steps} steps"
                steps.step(f"eager fp32, the reference: {size}")
            actions[work] = reference_actions(plain, request)
    recordings = {names: reference_recording(plain, base, names, steps) for names in dict.fromkeys(optimizations)}
    return Reference(policy, base, actions, recordings)


def reference_actions(plain: Model, request: Request) -> Tensor:
    """Normalised actions [B, T, action_dim] of eager fp32, on the host."""
    plain.denoising_steps = request.workload.steps
    with full_fp32(), torch.no_grad():
        return plain.get_action(request.resident(plain), noise=request.noise)["action_pred"].cpu()


def reference_recording(plain: Model, base: Request, names: tuple[str, ...], steps: Steps) -> Recording:
    """Every call of every stage in eager fp32, of the model with the optimizations `names`."""
    if names:
        steps.step("restructuring the model and recording its stages")
    plain.denoising_steps = base.workload.steps
    with full_fp32():
        return plain.architecture.restructured(plain, names).record(base.inputs, base.noise)[0]
