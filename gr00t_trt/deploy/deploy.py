"""Deployment: compile a policy as a plan says, check it against eager fp32, warm it up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import nn

from ..common.devices import side_stream
from ..common.interface import Observation
from ..common.products import prefer_onednn, speed
from ..common.progress import Steps
from ..compile.build import torch_dtype
from ..compile.capture import UNCAPTURED, capture_requests
from ..engines.cache import EngineCache, open_cache
from ..errors import AccuracyError
from ..measure.harness import Harness, build_all
from ..measure.kept_reference import KeptActions, kept_actions
from ..measure.reference import take_reference, take_requests
from ..measure.results import Part, Variant
from ..measure.timers import drain
from ..measure.workloads import Request, one_request
from ..model.stored import forget
from ..plans.load import plan_to_mapping
from ..plans.precisions import Gate, precision_of
from ..plans.resolve import Resolved, decided
from ..plans.schema import ARCHITECTURE, SUBMODULES, Plan
from ..plans.submodules import resolve_submodule, select
from ..policy.policy import ModelPolicy
from ..quantize.layers import refuse_unfit
from ..record.environment import ROOT
from ..record.result import Candidate, Result, Status
from ..record.schema import Inputs, Record, new_record

WARM_CALLS = 2

UNCHECKED = "not compared with eager fp32"

Builder = Callable[[Harness, Resolved, EngineCache | None], dict[str, Part]]
"""Builds every compile target and holds it against the reference, as `measure.harness.build_all`."""


@dataclass(frozen=True)
class Deployment:
    """A compiled and checked policy.

    Attributes:
        policy: Ready to answer; calls go through whatever serves each submodule.
        backends: Submodule -> what runs it, in the words of a status page: ``torch_tensorrt fp16``, ``eager bf16``,
            or ``torch_tensorrt fp16, dry run: its graph on the CPU``.
        record: The start-up's record: build times, accuracy of every submodule and of the actions, what was skipped.
        resolved: The plan that was carried out; None where nothing was built here, so that nothing can be replaced.
        parts: Compile target -> what was built of it.
        compared_ms: What the request took that was compared with fp32, by the model alone; None where a first call is
            slower than those that follow.
    """

    policy: ModelPolicy
    backends: dict[str, str]
    record: Record
    resolved: Resolved | None = None
    parts: Mapping[str, Part] = field(default_factory=dict, repr=False)
    compared_ms: float | None = None


def deploy(
    policy: ModelPolicy,
    resolved: Resolved,
    steps: Steps,
    *,
    observation: Observation | None = None,
    engine_cache: str | None = None,
    seed: int = 0,
    command: str = "",
    check: bool = True,
    build: Builder = build_all,
) -> Deployment:
    """Carry out a plan on a policy, in place, and refuse it when it is not accurate enough.

    What a start must know is looked at once, on one request; nothing is timed. Stages that stay in eager PyTorch are
    held against fp32 by themselves only where the plan gives them a gate; the actions always are.

    Args:
        policy: In fp32, or loaded in the plan's precisions, which takes no more memory than they do; nothing compiled.
            What is not in them yet is cast.
        resolved: For the policy's device; what it does not compile stays in eager PyTorch at its precision.
        observation: What shapes are tuned for and accuracy is checked on; the policy's `example` when None.
        engine_cache: Folder of finished engines, or ``off``; None for the default, see `open_cache`.
        check: False leaves the comparison with fp32 out, for a quick start, and says so: accuracies are None, and no
            gate is asked.
        build: What builds the compile targets, for whoever keeps what is built.
    Raises: AccuracyError when a gate is missed, naming it; PlanError for a plan that is not decided yet.
    """
    plan, device = decided(resolved).plan, policy.model.device
    refuse_unfit(resolved)
    policy.denoising_steps = plan.denoising_steps
    about = "an example observation" if observation is None else "the observation that was given"
    inputs = Inputs(dataset=about)
    record = new_record(command, root=ROOT, device=str(device), plan=plan_to_mapping(plan), inputs=inputs)
    record.skip_all(resolved.notes)
    with side_stream(device):
        request = one_request(policy, policy.example() if observation is None else observation, seed)
        built = replace(resolved, names=_built(resolved))
        kept = _kept(policy, request, built) if check else None
        take = take_reference if check and kept is None else take_requests
        harness = Harness(take(policy, request, [plan.optimizations] if built.names else [], steps), plan, steps)
        choose_products(harness, record)
        record.inputs = replace(request.described(seed), dataset=about)
        parts = build(harness, built, open_cache(engine_cache))
        variant = harness.variant(_candidate(resolved), parts)
        record.results = [_told(harness.part_result(part), check) for part in parts.values()]
        whole = _whole(harness, variant, check, kept, record)
        record.results.append(whole)
        note_padding(variant, record)
        policy.model = variant.model
        _refuse_inaccurate(record)
        capture(harness, resolved, variant, record)
        _note_lengths(variant, plan, record)
        # On a CPU, PyTorch as it is has nothing left to get ready once it has been called.
        warm = check and not parts and device.type == "cpu"
        if not warm:
            warm_up(policy, request.observation, steps)
    forget(cast(nn.Module, harness.plain))
    compared_ms = whole.first_call_ms if warm else None
    return Deployment(policy, _backends(record, policy, resolved), record, resolved, parts, compared_ms)


def _kept(policy: ModelPolicy, request: Request, built: Resolved) -> KeptActions | None:
    """Where the reference's actions are kept.

    Only where new ones can be taken if they turn out wrong: of a model that no plan has cast, with nothing recorded.
    """
    return None if built.names or not _as_planned(policy, built.plan) else kept_actions(policy.model, request)


def _built(resolved: Resolved) -> tuple[str, ...]:
    """What is built or has a gate of its own: a stage in eager PyTorch is only cast, and the actions tell of it."""
    own = resolved.plan.submodules

    def gated(name: str) -> bool:
        parts = (name, *ARCHITECTURE.parts_of(name))
        return resolved.plan.gate != Gate() or any(part in own and own[part].gate is not None for part in parts)

    return tuple(name for name in resolved.names if resolved[name].backend != "eager" or gated(name))


def choose_products(harness: Harness, record: Record) -> None:
    """Give what is computed in fp32 on a CPU to the library that is faster on it, in this whole process."""
    in_fp32 = torch.float32 in harness.plain.stage_dtypes.values()
    if harness.device.type == "cpu" and in_fp32 and prefer_onednn():
        record.skip(
            "fp32 products", f"PyTorch's own choice is not used: oneDNN is faster here, in ms: {speed().said()}"
        )


def _refuse_inaccurate(record: Record) -> None:
    if record.failures:
        raise AccuracyError(
            "the compiled policy is not accurate enough to be used: " + "; ".join(record.failures),
            known="the gates of the plan, per submodule and for the actions",
            fix="choose a more exact precision for what is named, or set its `gate` in the plan",
        )


def _candidate(resolved: Resolved) -> Candidate:
    """What the plan comes to; its backend is ``mixed`` where it has several."""
    plan, used = resolved.plan, {resolved[name].backend for name in resolved.names}
    return Candidate(used.pop() if len(used) == 1 else "mixed", plan.precision, plan.optimizations, plan.loop)


def _told(result: Result, check: bool) -> Result:
    """The result, without an accuracy where it is not one with fp32."""
    if check:
        return result
    return replace(result, accuracy=None, gate=None, passed=None, failures=(), why=UNCHECKED)


def _whole(harness: Harness, variant: Variant, check: bool, kept: KeptActions | None, record: Record) -> Result:
    """What became of the whole request, held against the reference unless the start is to be quick."""
    name, base = variant.candidate.backend, harness.reference.base
    if not check:
        record.skip("accuracy", f"{UNCHECKED}: the start was told to leave that out")
        return _told(harness.request_result(name, variant, None), check)
    found = kept.read() if kept else None
    if found is not None:
        harness.give(base, found)
    elif kept:
        harness.steps.step("running eager fp32, the reference")
        kept.write(harness.expected(base))
    harness.steps.step("comparing the actions with eager fp32")
    checked = harness.check(variant, base)
    if kept and found is not None:
        if checked.failures:
            harness.give(base, None)
            kept.write(harness.expected(base))
            checked = harness.check(variant, base)
        else:
            record.skip("reference", f"eager fp32 was not run again: its actions were kept, {kept.path}")
    return harness.request_result(name, variant, checked)


def _as_planned(policy: ModelPolicy, plan: Plan) -> bool:
    """Whether the model was loaded in the plan's precisions."""
    wanted = {name: torch_dtype(resolve_submodule(plan, name).precision) for name in SUBMODULES}
    model = policy.model
    return model.dtype == torch_dtype(plan.precision) and wanted.items() <= model.stage_dtypes.items()


def warm_up(policy: ModelPolicy, observation: Observation, steps: Steps) -> None:
    """Let a policy answer, for what only its first calls get ready."""
    steps.step("warming up")
    for _ in range(WARM_CALLS):
        policy.get_action(observation)
    drain(policy.model.device)


def _note_lengths(variant: Variant, plan: Plan, record: Record) -> None:
    """Say which prompts are replayed where graphs are captured at the start alone."""
    graphs: Any = variant.model.graphs
    if plan.cuda_graph == "startup" and graphs is not None:
        replayed = f"prompts of {', '.join(map(str, graphs.prompt_lengths))} tokens are replayed"
        captures = "cuda_graph: on_demand captures each length when it first comes"
        record.skip("cuda_graph", f"{replayed}, others run kernel by kernel; {captures}")


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
