"""The reference: what eager fp32 makes of a request, and of every stage in it, before anything is compiled.

A model that holds its weights in half precision is not held in fp32 for that: `as_stored` computes with the stored
weights, one after the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from ..common.products import own_products
from ..common.progress import Steps
from ..model.protocol import Model
from ..model.stored import as_stored
from ..model.targets import Recording
from ..policy.policy import ModelPolicy
from ..record.result import Workload
from .accuracy import full_fp32
from .workloads import Request


@dataclass(frozen=True, eq=False)
class Reference:
    """What eager fp32 made of some requests, before anything was compiled.

    Attributes:
        policy: In fp32 or as it was loaded, nothing compiled.
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
        policy: In fp32, or loaded in the precisions that it is to have.
        optimizations: Sets whose stages will be compiled; none is the plain model.
        further: Requests besides the base whose actions will be needed.
    """
    plain = policy.model
    wanted = dict.fromkeys(optimizations)
    recordings: dict[tuple[str, ...], Recording] = {}
    actions: dict[Workload, Tensor] = {}
    steps.step("running eager fp32, the reference")
    if () in wanted:  # the plain model's stages are recorded in the very request
        recordings[()], actions[base.workload] = _recorded(plain, base, ())
    for request in (base, *further):
        work = request.workload
        if work not in actions:
            if request is not base:
                size = f"{work.views} view, batch {work.batch}, {work.steps} steps"
                steps.step(f"eager fp32, the reference: {size}")
            actions[work] = reference_actions(plain, request)
    for names in wanted:
        if names not in recordings:
            recordings[names] = reference_recording(plain, base, names, steps)
    return Reference(policy, base, actions, recordings)


@torch.no_grad()
def take_requests(
    policy: ModelPolicy, base: Request, optimizations: Iterable[tuple[str, ...]], steps: Steps
) -> Reference:
    """What compilers need of a request, every stage's calls, in the precision that the policy has; no actions.

    For a start without a check: nothing may be held against it.
    """
    plain = policy.model
    plain.denoising_steps = base.workload.steps
    recordings = {}
    for names in dict.fromkeys(optimizations):
        steps.step("recording the stages, without a reference in fp32")
        recordings[names] = plain.architecture.restructured(plain, names).record(base.inputs, base.noise)[0]
    return Reference(policy, base, {}, recordings)


def reference_actions(plain: Model, request: Request) -> Tensor:
    """Normalised actions [B, T, action_dim] of eager fp32, on the host."""
    plain.denoising_steps = request.workload.steps
    with exact(plain):
        return plain.get_action(request.resident(plain), noise=request.noise)["action_pred"].cpu()


def reference_recording(plain: Model, base: Request, names: tuple[str, ...], steps: Steps) -> Recording:
    """Every call of every stage in eager fp32, of the model with the optimizations `names`."""
    if names:
        steps.step("restructuring the model and recording its stages")
    return _recorded(plain, base, names)[0]


def _recorded(plain: Model, base: Request, names: tuple[str, ...]) -> tuple[Recording, Tensor]:
    """Every call of every stage, and the actions, on the host, of the same request."""
    plain.denoising_steps = base.workload.steps
    model = plain.architecture.restructured(plain, names)
    with exact(plain):
        recording, actions = model.record(base.inputs, base.noise)
    return recording, actions.cpu()


@contextmanager
def exact(plain: Model) -> Iterator[None]:
    """Inside, `plain`, and what shares its weights, compute in fp32 with the stored weights."""
    with own_products(), full_fp32(), as_stored(cast(nn.Module, plain)), torch.no_grad():
        yield
