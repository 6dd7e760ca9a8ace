"""Deployment: compile a policy as a plan says, check it against eager fp32, warm it up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ..common.devices import side_stream
from ..common.interface import Observation
from ..common.progress import Steps
from ..compile.capture import UNCAPTURED, capture_requests
from ..engines.cache import open_cache
from ..errors import AccuracyError
from ..measure.harness import Harness, build_all
from ..measure.reference import take_reference
from ..measure.results import Variant, candidate_of
from ..measure.workloads import one_request
from ..plans.load import plan_to_mapping
from ..plans.precisions import precision_of
from ..plans.resolve import Resolved, decided
from ..plans.submodules import select
from ..policy.policy import ModelPolicy
from ..record.environment import ROOT
from ..record.result import Status
from ..record.schema import Inputs, Record, new_record

WARM_CALLS = 2


@dataclass(frozen=True)
class Deployment:
    """A compiled and checked policy.

    Attributes:
        policy: Ready to answer; calls go through whatever serves each submodule.
        backends: Submodule -> what runs it, in the words of a status page: ``torch_tensorrt fp16``, ``eager bf16``,
            or ``torch_tensorrt fp16, dry run: its graph on the CPU``.
        record: The start-up's record: build times, accuracy of every submodule and of the actions, what was skipped.
    """

    policy: ModelPolicy
    backends: dict[str, str]
    record: Record


def deploy(
    policy: ModelPolicy,
    resolved: Resolved,
    steps: Steps,
    *,
    observation: Observation | None = None,
    engine_cache: str | None = None,
    seed: int = 0,
    command: str = "",
) -> Deployment:
    """Carry out a plan on a policy in fp32, in place, and refuse it when it is not accurate enough.

    What a start must know is looked at once, on one request; nothing is timed.

    Args:
        policy: In fp32, nothing compiled; its model is cast to the plan's precisions.
        resolved: For the policy's device; what it does not compile stays in eager PyTorch at its precision.
        observation: What shapes are tuned for and accuracy is checked on; the policy's `example` when None.
        engine_cache: Folder of finished engines, or ``off``; None for the default, see `open_cache`.
    Raises: AccuracyError when a gate is missed, naming it; PlanError for a plan that is not decided yet.
    """
    plan, device = decided(resolved).plan, policy.model.device
    policy.denoising_steps = plan.denoising_steps
    about = "an example observation" if observation is None else "the observation that was given"
    record = new_record(
        command, root=ROOT, device=str(device), plan=plan_to_mapping(plan), inputs=Inputs(dataset=about)
    )
    record.skip_all(resolved.notes)
    with side_stream(device):
        request = one_request(policy, policy.example() if observation is None else observation, seed)
        harness = Harness(take_reference(policy, request, [plan.optimizations], steps), plan, steps)
        record.inputs = replace(request.described(seed), dataset=about)
        parts = build_all(harness, resolved, open_cache(engine_cache))
        variant = harness.variant(candidate_of(resolved, parts), parts)
        steps.step("comparing the actions with eager fp32")
        checked = harness.check(variant, request)
        record.results = [harness.part_result(part) for part in parts.values()]
        record.results.append(harness.request_result(variant.candidate.backend, variant, checked))
        note_padding(variant, record)
        policy.model = variant.model
        if record.failures:
            raise AccuracyError(
                "the compiled policy is not accurate enough to be used: " + "; ".join(record.failures),
                known="the gates of the plan, per submodule and for the actions",
                fix="choose a more exact precision for what is named, or set its `gate` in the plan",
            )
        capture(harness, resolved, variant, record)
        graphs: Any = variant.model.graphs
        if plan.cuda_graph == "startup" and graphs is not None:
            replayed = f"prompts of {', '.join(map(str, graphs.prompt_lengths))} tokens are replayed"
            captures = "cuda_graph: on_demand captures each length when it first comes"
            record.skip("cuda_graph", f"{replayed}, others run kernel by kernel; {captures}")
        steps.step("warming up")
        for _ in range(WARM_CALLS):
            policy.get_action(request.observation)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Deployment(policy, _backends(record, policy, resolved), record)


def note_padding(variant: Variant, record: Record) -> None:
    """Say which stage of the restructured model stays in PyTorch."""
    if "language_model_padded" in variant.model.stages:
        record.skip("language_model_padded", "not compiled: batches with padding run it in eager PyTorch")


def capture(harness: Harness, resolved: Resolved, variant: Variant, record: Record) -> Variant:
    """The variant with its requests replayed as CUDA graphs, if the plan asks for it and the machine can.

    What cannot be captured is told in the record.
    """
    plan, base = resolved.plan, harness.reference.base
    if plan.cuda_graph == "none":
        return variant
    harness.steps.step("capturing the request as one CUDA graph")
    if not variant.runs:
        record.skip("cuda_graph", f"{UNCAPTURED}: what was built cannot run on this machine")
        return variant
    harness.install(variant, base.workload)
    backends = {name: part.resolved.backend for name, part in variant.parts.items()}
    note = partial(record.skip, "cuda_graph")
    record.cuda_graph = capture_requests(variant.model, plan, base.inputs, base.noise, backends=backends, note=note)
    return harness.captured(variant)


def _backends(record: Record, policy: ModelPolicy, resolved: Resolved) -> dict[str, str]:
    built = {result.subject: result for result in record.submodules}
    out = {}
    for name in select("all", resolved.plan):
        result = built.get(name)
        if result is None:
            out[name] = f"eager {precision_of(policy.model.stage_dtypes[name])}"
            continue
        out[name] = f"{result.candidate.backend} {result.candidate.precision}"
        if result.status is Status.BUILT_NOT_RUN:
            out[name] += ", dry run: its graph on the CPU"
    return out
