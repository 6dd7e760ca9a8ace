"""A policy made ready for use: a plan carried out on it, checked against eager fp32, warmed up, and described."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.devices import side_stream
from ..common.progress import Steps
from ..compile.submodules import select
from ..engines.cache import open_cache
from ..errors import AccuracyError, PlanError
from ..measure.trial import Trial
from ..model.n1_5.fast import RequestGraphs
from ..plans.load import plan_to_mapping, plan_warnings, resolve
from ..plans.schema import AUTO, Plan
from ..policy.policy import ModelPolicy
from ..record import records
from ..record.environment import ROOT
from ..run.job import available, failures

WARM_CALLS = 2


@dataclass(frozen=True)
class Deployment:
    """A policy in service.

    Attributes:
        policy: Ready to answer; calls go through whatever serves each submodule.
        served_by: Submodule -> what runs it, in the words of a status page: ``torch_tensorrt fp16``,
            ``eager bf16``, or ``torch_tensorrt fp16, dry run: its graph on the CPU``.
        record: The start-up's record: build times, accuracy of every submodule and of the actions, what was skipped.
    """

    policy: ModelPolicy
    plan: Plan
    served_by: dict[str, str]
    record: dict[str, Any]


def deploy(
    policy: ModelPolicy,
    plan: Plan,
    steps: Steps,
    *,
    observation: Mapping[str, Any] | None = None,
    fn_name: str = "all",
    backend_chosen: bool = True,
    engine_dir: Path | None = None,
    engine_cache: str | None = None,
    seed: int = 0,
    command: str = "",
) -> Deployment:
    """Carry out a plan on a policy in fp32, in place, and refuse it when it is not accurate enough.

    Args:
        policy: In fp32, nothing compiled; its model is cast to the plan's precisions.
        observation: What shapes are tuned for and accuracy is checked on; the policy's `example` when None.
        fn_name: What is compiled, as in `submodules.select`; the rest stays in eager PyTorch at its precision.
        backend_chosen: The backend was named by the user, and its absence is an error; else eager takes its place.
        engine_cache: Folder of finished engines, or ``off``; None for the default, see `open_cache`.
    Raises: AccuracyError when a gate is missed, naming it; PlanError and BackendError as `run.run`.
    """
    names = select(fn_name, plan)
    if undecided := [name for name in names if resolve(plan, name).backend == AUTO]:
        raise PlanError(
            f"backend: {AUTO} ({', '.join(undecided)}) is decided by measuring, which takes too long at every start",
            fix="run run_groot_torchtrt.py --backend auto once, and use the plan that it writes",
        )
    plan, notes = available(plan, names, chosen=backend_chosen)
    device = policy.model.device
    policy.denoising_steps = plan.denoising_steps
    if observation is None:
        observation = policy.example()
    result = records.new_record(
        command,
        root=ROOT,
        device=str(device),
        plan=plan_to_mapping(plan),
        workload={"dataset": "an example observation"},
    )
    for what, why in [*notes, *(("plan", text) for text in plan_warnings(plan))]:
        records.skip(result, what, why)
    with side_stream(device):
        trial = Trial(policy, plan, observation, result, steps)
        trial.reference(seed)
        trial.compile(names, engine_dir, open_cache(engine_cache))
        trial.check_actions()
        trial.install()
        if found := failures(result):
            raise AccuracyError(
                "the compiled policy is not accurate enough to be used: " + "; ".join(found),
                known="the gates of the plan, per submodule and for the actions",
                fix="choose a more exact precision for what is named, or set its `gate` in the plan",
            )
        trial.capture()
        graphs = getattr(policy.model, "graphs", None)
        if plan.cuda_graph == "startup" and graphs is not None:
            records.skip(result, "cuda_graph", _replayed(graphs))
        steps.step("warming up")
        for _ in range(WARM_CALLS):
            policy.get_action(observation)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return Deployment(policy, plan, _served_by(result, policy, plan), result)


def _replayed(graphs: RequestGraphs) -> str:
    lengths = ", ".join(map(str, graphs.prompt_lengths))
    return (
        f"prompts of {lengths} tokens are replayed, others run kernel by kernel; cuda_graph: on_demand captures each "
        "length when it first comes"
    )


def _served_by(result: Mapping[str, Any], policy: ModelPolicy, plan: Plan) -> dict[str, str]:
    built = {entry["name"]: entry for entry in result["submodules"]}
    out = {}
    for name in select("all", plan):
        entry = built.get(name)
        if entry is None:
            out[name] = f"eager {_dtype(policy, name)}"
            continue
        out[name] = f"{entry['backend']} {entry['precision']}"
        if not entry["runs"]:
            out[name] += ", dry run: its graph on the CPU"
    return out


def _dtype(policy: ModelPolicy, name: str) -> str:
    short = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    found = str(policy.model.stage_dtypes[name]).removeprefix("torch.")
    return short.get(found, found)
