"""A policy from a bundle: files checked, weights read, stages put in place, one request held against the bundle's own.

Nothing is compiled, nothing is downloaded, and no model in fp32 is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import torch

from ...common.devices import choose_device, side_stream
from ...common.interface import Observation
from ...common.progress import Steps
from ...compile.capture import capture_requests
from ...measure.workloads import one_request
from ...plans.load import load_plan, plan_to_mapping
from ...plans.schema import Plan
from ...plans.submodules import graph_tolerance
from ...policy.policy import Gr00tPolicy
from ...record.environment import ROOT
from ...record.files import read_record
from ...record.schema import Record, new_record
from ..deploy import Deployment, warm_up
from .example import Example, held_against, read_example
from .machine import refuse_another
from .manifest import CALIBRATION, PLAN, RECORD, Manifest, read_manifest, verify
from .policy_files import read_policy
from .stages import Placing


@dataclass(frozen=True)
class Bundle:
    """A bundle's folder, whose files have not been checked yet."""

    folder: Path
    manifest: Manifest

    @cached_property
    def plan(self) -> Plan:
        """As it was carried out. Raises: PlanError."""
        found = load_plan(self.folder / PLAN)
        return found if found.calibration is None else replace(found, calibration=str(self.folder / CALIBRATION))


@dataclass(frozen=True)
class Started:
    """A policy that is ready, and what it was held against."""

    policy: Gr00tPolicy
    deployment: Deployment
    observation: Observation


def open_bundle(folder: Path) -> Bundle:
    """Read what a bundle says of itself. Raises: RecordError for a folder that is none, and one of another release."""
    return Bundle(folder, read_manifest(folder))


def start(bundle: Bundle, wanted: str | None, steps: Steps, *, command: str = "") -> Started:
    """Start a policy from a bundle.

    Args:
        wanted: The device; None for the first one of the bundle's kind.
    Raises: PlanError for another machine, device or version than it was made with, saying what differs; RecordError for
        a file that is missing or altered, naming it; AccuracyError where its example is answered otherwise.
    """
    manifest, folder = bundle.manifest, bundle.folder
    device = choose_device(wanted if wanted is not None or manifest.device == "cuda" else manifest.device)
    refuse_another(manifest, device, folder)
    verify(folder, manifest, steps)
    plan, example = bundle.plan, read_example(folder)
    record = _record(bundle, device, plan, command)
    steps.step("reading the weights of the bundle")
    policy = read_policy(folder, manifest.policy, plan, device)
    if device.type == "cpu":
        torch.set_float32_matmul_precision(manifest.products)
    with side_stream(device), torch.no_grad():
        backends = _put_in_place(bundle, policy, plan, example, steps)
        steps.step("asking for the bundle's example")
        held = held_against(policy, example, graph_tolerance(plan), folder)
        _capture(policy, plan, example, backends, record, steps)
        if manifest.stages or device.type == "cuda":
            warm_up(policy, example.observation, steps)
    equal = "to the bit" if held.equal else f"but for {held.difference:.2g} of the largest action"
    record.skip("bundle", f"nothing was built; its example is answered as when it was made, {equal}")
    return Started(policy, Deployment(policy, dict(manifest.backends), record), example.observation)


def _put_in_place(bundle: Bundle, policy: Gr00tPolicy, plan: Plan, example: Example, steps: Steps) -> dict[str, str]:
    """The policy's model as the plan has it, its stages those of the bundle; stage -> backend of those."""
    manifest, plain = bundle.manifest, policy.model
    model = plain.architecture.restructured(plain, plan.optimizations) if plan.optimizations else plain
    model.loop, model.denoising_steps = plan.loop, plan.denoising_steps
    model.action_horizon = plain.action_horizon
    policy.model = model
    request = replace(one_request(policy, example.observation, 0), noise=example.noise.to(model.device))
    model.stages.update(Placing(bundle.folder, manifest, policy, plan, request, steps.step).calls())
    return {stage.name: stage.backend for stage in manifest.stages}


def _capture(
    policy: Gr00tPolicy, plan: Plan, example: Example, backends: dict[str, str], record: Record, steps: Steps
) -> None:
    """Graphs of whole requests, which no file can hold. What cannot be captured is told in the record."""
    if plan.cuda_graph == "none":
        return
    steps.step("capturing the request as one CUDA graph")
    inputs, _ = policy.preprocess(example.observation)
    noise, note = example.noise.to(policy.model.device), partial(record.skip, "cuda_graph")
    record.cuda_graph = capture_requests(policy.model, plan, inputs, noise, backends=backends, note=note)


def _record(bundle: Bundle, device: torch.device, plan: Plan, command: str) -> Record:
    """This start's record: what was built, and how accurate it is, is what the bundle's record says."""
    made = read_record(bundle.folder / RECORD)
    record = new_record(command, root=ROOT, device=str(device), plan=plan_to_mapping(plan), inputs=made.inputs)
    record.results = [replace(r, build=r.build and replace(r.build, from_cache=True)) for r in made.results]
    record.skipped = list(made.skipped)
    return record
