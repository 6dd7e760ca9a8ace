"""The main job: what the command line asks for, made ready, carried out, and written into one record."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..backends import get_backend
from ..common.devices import choose_device, side_stream
from ..common.progress import Steps, progress
from ..compile.submodules import select
from ..data import LeRobotDataset, data_config, embodiment_index, read_metadata, synthetic_dataset, validate_observation
from ..engines.cache import open_cache
from ..engines.files import prepare_engine_dir
from ..errors import BackendError, DatasetError, PlanError
from ..measure.comparison import Comparison
from ..measure.stages import PeakMemory
from ..measure.timers import resolve_timer
from ..measure.trial import Trial
from ..model import resolve_checkpoint
from ..plans.load import plan_to_mapping, plan_warnings, resolve
from ..plans.schema import AUTO, BACKENDS, Plan
from ..policy.policy import Gr00tPolicy, load_policy
from ..record import records
from ..record.environment import ROOT

WRITERS = ("torch_tensorrt", "tensorrt", "onnxruntime")
"""The backends that leave engines, or ONNX files, in `--engine_dir`."""

Note = tuple[str, str]
"""What it is about, and what the user should know of it."""


@dataclass(frozen=True)
class Job:
    """What the command line asks for besides the plan; `cli.parser` explains each.

    Attributes:
        dataset_path: None takes the policy's example observation instead of a recorded one.
        compare: Backends to compare, eager first; the plan's own backends then count for nothing.
    """

    model_path: str = "nvidia/GR00T-N1.5-3B"
    dataset_path: str | None = "./demo_data/robot_sim.PickNPlace"
    data_config: str = "fourier_gr1_arms_only"
    embodiment_tag: str = "gr1"
    episode: int = 0
    step: int = 0
    frame_lookup: str = "index"
    tokenizer: str | None = None
    bracketed_instruction: bool = False
    seed: int = 0
    device: str | None = None
    fn_name: str = "all"
    backend_chosen: bool = False
    compare: tuple[str, ...] = ()
    engine_dir: Path | None = None
    engine_cache: str | None = None
    plan_path: Path | None = None
    command: str = ""
    notes: tuple[Note, ...] = ()


def run(job: Job, plan: Plan, console: Console) -> dict[str, Any]:
    """Do the main job and return its record.

    Raises: Gr00tError for anything that cannot work; engines that were finished before it stay, whole.
    """
    began = time.monotonic()
    names = select(job.fn_name, plan)
    embodiment_index(job.embodiment_tag)
    device = choose_device(job.device)
    candidates = to_compare(plan, names, job.compare)
    if candidates and plan.build.cpu_offload:
        raise PlanError(
            "build.cpu_offload: backends are compared with PyTorch, whose weights it would move away",
            fix="leave it out, and add it to the plan that wins",
        )
    notes = list(job.notes)
    if job.compare:
        own = {name: replace(settings, backend=None) for name, settings in plan.submodules.items()}
        plan = replace(plan, backend=AUTO, submodules=own)
        if plan.cuda_graph != "none":
            notes.append(("cuda_graph", "not used: a comparison calls each backend's submodules one by one"))
            plan = replace(plan, cuda_graph="none", cuda_graph_lengths=())
    settled = tuple(name for name in names if name not in candidates or len(candidates[name]) == 1)
    plan, found = available(plan, settled, chosen=job.backend_chosen)
    notes += [*found, *(("plan", text) for text in plan_warnings(plan))]
    timer, timer_note = resolve_timer(plan.benchmark.timer, device)
    if timer_note:
        notes.append((f"--benchmark {plan.benchmark.timer}", timer_note))
        plan = replace(plan, benchmark=replace(plan.benchmark, timer=timer))
    engine_dir = job.engine_dir
    used = {backend for name in names for backend in candidates.get(name, (resolve(plan, name).backend,))}
    if engine_dir is not None and not used & set(WRITERS):
        why = f"nothing is written: only the {', '.join(WRITERS)} backends write files"
        notes.append((f"--engine_dir {engine_dir}", why))
        engine_dir = None
    if engine_dir is not None:
        prepare_engine_dir(engine_dir)

    with PeakMemory(device) as memory, progress(console) as steps, side_stream(device):
        policy, observation = load(job, plan, device, steps)
        result = records.new_record(
            job.command,
            root=ROOT,
            device=str(device),
            plan={**plan_to_mapping(plan), **({"backend": None} if job.compare else {})},
            plan_path=job.plan_path,
            model={"path": job.model_path, "config": asdict(policy.model.config)},
            workload={"dataset": subject(job)},
        )
        for what, why in notes:
            records.skip(result, what, why)
        trial = Trial(policy, plan, observation, result, steps)
        trial.reference(job.seed)
        if candidates:
            kept = None if job.compare else open_cache(job.engine_cache)
            comparison = Comparison(trial, candidates, engine_dir, cache=kept, only_running=not job.compare)
            comparison.compare_submodules()
            if job.compare:
                comparison.compare_requests({backend: dict.fromkeys(names, backend) for backend in job.compare})
            else:
                comparison.hand_over(comparison.choose())
        else:
            trial.compile(names, engine_dir, open_cache(job.engine_cache))
        if not job.compare:
            trial.check_actions()
            trial.capture()
            if not candidates:
                trial.time_submodules()
            trial.time_requests()
    result["peak_memory"] = memory.to_dict()
    result["wall_s"] = time.monotonic() - began
    result["exit_reason"] = "gate failed" if failures(result) else "done"
    return result


def load(job: Job, plan: Plan, device: torch.device, steps: Steps) -> tuple[Gr00tPolicy, dict[str, Any]]:
    """The job's policy, in fp32, and the observation that the rest is done with.

    Raises: Gr00tError for anything missing; what is small is found before the weights are read.
    """
    steps.step(f"reading the observation: {subject(job)}")
    recorded = None
    if job.dataset_path is not None:
        dataset = open_dataset(job)
        recorded = dataset, recorded_step(dataset, job.episode, job.step)
    steps.step(f"loading the model: {job.model_path}")
    folder = resolve_checkpoint(job.model_path)
    metadata = None
    if recorded is not None:
        dataset, observation = recorded
        metadata = dataset.metadata(job.embodiment_tag) if folder is None else read_metadata(folder, job.embodiment_tag)
        # The policy checks it too, but only once it has its weights, which takes a while.
        validate_observation(observation, dataset.modality_config, metadata)
    policy = load_policy(
        folder or job.model_path,  # the hub is asked once
        data_config=job.data_config,
        embodiment_tag=job.embodiment_tag,
        metadata=metadata,
        tokenizer=job.tokenizer,
        denoising_steps=plan.denoising_steps,
        bracketed_instruction=job.bracketed_instruction,
        device=device,
    )
    return policy, policy.example() if recorded is None else recorded[1]


def subject(job: Job) -> str:
    """Which observation a job is about, in a few words."""
    if job.dataset_path is None:
        return "an example observation"
    return f"{Path(job.dataset_path).name}, episode {job.episode}, step {job.step}"


def failures(result: Mapping[str, Any]) -> list[str]:
    """Everything that a gate holds against a finished run; each line names the submodule, or the actions.

    Of a comparison alone that is every backend's; where a choice was made from it, only the chosen count.
    """
    if not result["submodules"]:
        return [f"{entry['backend']}: {failure}" for entry in result["comparison"] for failure in entry["failures"]]
    return [f for entry in result["submodules"] for f in entry["failures"]] + list(result["accuracy"]["failures"])


def to_compare(plan: Plan, names: tuple[str, ...], compare: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Compile target -> the backends to try on it; empty where there is nothing to compare.

    Args:
        names: The compile targets. compare: The backends of `Job.compare`; without them `auto` in the plan asks for
            all, and a submodule that has a backend of its own gets that one alone.
    """
    if compare:
        return dict.fromkeys(names, compare)
    own = {name: resolve(plan, name).backend for name in names}
    if AUTO not in own.values():
        return {}
    return {name: BACKENDS if backend == AUTO else (backend,) for name, backend in own.items()}


def available(plan: Plan, names: tuple[str, ...], *, chosen: bool) -> tuple[Plan, list[Note]]:
    """The plan with what this machine can do, and what users must know about it.

    Args:
        chosen: The user named the backend, on the command line or in a plan, and gets it or an error. Only the
            default gives way to eager, and says so.
    Raises: BackendError for a chosen backend that is not installed; PlanError for a folder of ready-made engines that
        is not there.
    """
    if plan.build.trt_engine_path is not None and not Path(plan.build.trt_engine_path).is_dir():
        raise PlanError(
            f"trt_engine_path: {plan.build.trt_engine_path}: no such folder",
            fix="name the folder that build_engine.sh wrote to, gr00t_engine by default",
        )
    notes: list[Note] = []
    resolved = {name: resolve(plan, name).backend for name in names}
    for backend in dict.fromkeys(resolved.values()):
        found = get_backend(backend).availability()
        if found.installed:
            notes += [(backend, caveat) for caveat in found.caveats]
        elif backend == plan.backend and not chosen:
            plan = replace(plan, backend="eager", build=replace(plan.build, cpu_offload=False))
            notes.append((backend, f"not available here, so nothing was compiled with it: {found.reason}"))
        else:
            users = ", ".join(name for name, used in resolved.items() if used == backend)
            raise BackendError(f"backend {backend} ({users}) is not available here: {found.reason}")
    return plan, notes


def recorded_step(dataset: LeRobotDataset, episode: int, step: int) -> dict[str, Any]:
    """One row of a dataset as an observation. Raises: DatasetError for a row that the episode does not have."""
    length = next((e.length for e in dataset.episodes if e.index == episode), None)
    if length and step >= length:
        raise DatasetError(f"--step: episode {episode} has no row {step}", known=f"0 to {length - 1}")
    return dataset.step(episode, step)


def open_dataset(job: Job) -> LeRobotDataset:
    """The dataset of a job that has one; `synthetic` is generated once and reused."""
    assert job.dataset_path is not None
    config = data_config(job.data_config)
    path = synthetic_dataset(data_config=job.data_config) if job.dataset_path == "synthetic" else Path(job.dataset_path)
    return LeRobotDataset(path, config.modality_config(), frame_lookup=job.frame_lookup)
