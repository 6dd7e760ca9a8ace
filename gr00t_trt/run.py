"""The main job: one observation through eager fp32, every submodule built, checked, timed, and one record of it all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import accuracy, records
from .backends import get_backend
from .backends.engine_files import prepare_engine_dir
from .benchmark import Samples, measure_alternating, resolve_timer, verdict
from .compile import Compiled, compile_submodule, judge, set_precision
from .data import LeRobotDataset, data_config, synthetic_dataset
from .errors import BackendError, PlanError
from .model import resolve_checkpoint
from .plans import plan_to_mapping, plan_warnings, resolve, resolve_action_gate
from .policy import Gr00tPolicy, load_policy
from .progress import Steps, progress
from .settings import Plan
from .stages import PeakMemory, StageTimer
from .submodules import dimension_ranges, record, select

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Job:
    """What the command line asks for besides the plan; see `cli.parser` for the meaning of each."""

    model_path: str = "nvidia/GR00T-N1.5-3B"
    dataset_path: str = "./demo_data/robot_sim.PickNPlace"
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
    engine_dir: Path | None = None
    plan_path: Path | None = None
    command: str = ""
    notes: tuple[str, ...] = ()


def run(job: Job, plan: Plan, console: Console) -> dict[str, Any]:
    """Do the main job and return its record.

    Raises: Gr00tError for anything that cannot work; nothing has been written then but finished engines.
    """
    began = time.monotonic()
    names = select(job.fn_name, joint_backbone=plan.joint_backbone)
    device = choose_device(job.device)
    plan, missing = available(plan, names, chosen=job.backend_chosen)
    notes = [*job.notes, *missing, *plan_warnings(plan)]
    if job.engine_dir is not None:
        prepare_engine_dir(job.engine_dir)
    timer, timer_note = resolve_timer(plan.benchmark.timer, device)
    plan = replace(plan, benchmark=replace(plan.benchmark, timer=timer))
    if timer_note:
        notes.append(timer_note)

    with PeakMemory(device) as memory, progress(console) as steps:
        steps.step(f"reading the observation: {job.dataset_path}")
        dataset = open_dataset(job)
        observation = dataset.step(job.episode, job.step)
        steps.step(f"loading the model: {job.model_path}")
        policy = load_policy(
            job.model_path,
            data_config=job.data_config,
            embodiment_tag=job.embodiment_tag,
            metadata=None if resolve_checkpoint(job.model_path) else dataset.metadata(job.embodiment_tag),
            tokenizer=job.tokenizer,
            denoising_steps=plan.denoising_steps,
            bracketed_instruction=job.bracketed_instruction,
            device=device,
        )
        result = records.new_record(
            job.command,
            root=ROOT,
            device=str(device),
            plan=plan_to_mapping(plan),
            plan_path=job.plan_path,
            model={"path": job.model_path, "config": asdict(policy.model.config)},
        )
        for note in notes:
            records.skip(result, "as asked for", note)
        work = _Work(policy, plan, observation, result, steps, device)
        work.reference(job.seed)
        result["workload"] = work.workload(job)
        set_precision(policy.model, plan)
        compiled = work.compile(names, job.engine_dir)
        work.check_actions(compiled)
        work.time_submodules(compiled)
        work.time_requests(compiled)
    result["peak_memory"] = memory.to_dict()
    result["wall_s"] = time.monotonic() - began
    result["exit_reason"] = "gate failed" if failures(result) else "done"
    return result


def failures(result: Mapping[str, Any]) -> list[str]:
    """Everything that a gate holds against a finished run; each line names the submodule, or the actions."""
    return [f for entry in result["submodules"] for f in entry["failures"]] + result["accuracy"]["failures"]


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, or the first GPU, or the CPU. Raises: PlanError for one that is not there."""
    if wanted is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise PlanError(f"--device: {wanted!r} is not a device", known="cpu, cuda, cuda:0, cuda:1, ...") from None
    if device.type not in ("cpu", "cuda"):
        raise PlanError(f"--device: {wanted!r} is not supported", known="cpu, cuda, cuda:0, cuda:1, ...")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA devices" if count else "no CUDA device"
        raise PlanError(f"--device: {wanted!r}, but PyTorch sees {found} here", fix="leave --device out, or use cpu")
    return torch.device("cuda:0") if wanted == "cuda" else device


def available(plan: Plan, names: tuple[str, ...], *, chosen: bool) -> tuple[Plan, list[str]]:
    """The plan with what this machine can do, and what users must know about it.

    Args:
        chosen: The user named the backend, on the command line or in a plan, and gets it or an error. Only the
            default gives way to eager, and says so.
    Raises: BackendError for a chosen backend that is not installed.
    """
    notes: list[str] = []
    resolved = {name: resolve(plan, name).backend for name in names}
    for backend in dict.fromkeys(resolved.values()):
        found = get_backend(backend).availability()
        if found.installed:
            notes.extend(found.caveats)
        elif backend == plan.backend and not chosen:
            plan = replace(plan, backend="eager", build=replace(plan.build, cpu_offload=False))
            notes.append(f"{backend} is not available here, so nothing was compiled with it: {found.reason}")
        else:
            users = ", ".join(name for name, used in resolved.items() if used == backend)
            raise BackendError(f"backend {backend} ({users}) is not available here: {found.reason}")
    return plan, notes


def open_dataset(job: Job) -> LeRobotDataset:
    """The dataset of the job; `synthetic` is generated once and kept in the user's cache."""
    config = data_config(job.data_config)
    path = synthetic_dataset(data_config=job.data_config) if job.dataset_path == "synthetic" else Path(job.dataset_path)
    return LeRobotDataset(path, config.modality_config(), frame_lookup=job.frame_lookup)


class _Work:
    """One run in progress: the policy, its eager fp32 reference, and the record being filled."""

    def __init__(
        self,
        policy: Gr00tPolicy,
        plan: Plan,
        observation: Mapping[str, Any],
        result: dict[str, Any],
        steps: Steps,
        device: torch.device,
    ):
        self.policy, self.plan, self.observation = policy, plan, observation
        self.result, self.steps, self.device = result, steps, device

    def reference(self, seed: int) -> None:
        """Record every stage of the request in eager fp32, TF32 off."""
        self.steps.step("running eager fp32, the reference")
        self.inputs, self.batched = self.policy.preprocess(self.observation)
        model = self.policy.model
        generator = torch.Generator().manual_seed(seed)
        batch = self.inputs["embodiment_id"].shape[0]
        self.noise = torch.randn(batch, model.action_horizon, model.config.action_head.action_dim, generator=generator)
        self.noise = self.noise.to(self.device)
        with full_fp32():
            self.recording, self.actions = record(model, self.inputs, self.noise)
        self.dims = dimension_ranges(model.config, self.plan.ranges, self.recording)

    def workload(self, job: Job) -> dict[str, Any]:
        batch, length = self.recording["language_model"][0].inputs[0].shape[:2]
        return {
            "views": self.recording["vision_model"][0].inputs[0].shape[0] // batch,
            "batch_size": batch,
            "sequence_length": length,
            "denoising_steps": self.policy.denoising_steps,
            "seed": job.seed,
            "dataset": f"{Path(job.dataset_path).name}, episode {job.episode}, step {job.step}",
            "instruction": _instruction(self.observation),
        }

    def compile(self, names: tuple[str, ...], engine_dir: Path | None) -> dict[str, Compiled]:
        out = {}
        for number, name in enumerate(names, 1):
            prefix = f"{name} ({number} of {len(names)})"
            out[name] = done = compile_submodule(
                self.policy.model,
                name,
                self.plan,
                self.recording,
                self.dims,
                engine_dir=engine_dir,
                progress=lambda phase, prefix=prefix: self.steps.step(f"{prefix}: {phase}"),
            )
            self.result["submodules"].append(_submodule_entry(name, done))
        return out

    def check_actions(self, compiled: Mapping[str, Compiled]) -> None:
        """Hold the actions of a whole request against eager fp32, normalised and in physical units."""
        self.steps.step("comparing the actions with eager fp32")
        start = time.perf_counter()
        candidate = self.policy.model.get_action(self.inputs, noise=self.noise)["action_pred"]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if all(c.built.runs for c in compiled.values()):
            self.result["end_to_end"]["first_call_ms"] = (time.perf_counter() - start) * 1e3
        gate = resolve_action_gate(self.plan)
        agreement = accuracy.compare(candidate, self.actions)
        complaints = judge("actions", agreement, gate)
        physical = accuracy.compare_each(
            self.policy.postprocess(candidate, batched=self.batched),
            self.policy.postprocess(self.actions, batched=self.batched),
        )
        self.result["accuracy"].update(
            normalised=agreement.to_dict(),
            per_key={key: a.to_dict() for key, a in physical.items()},
            gate=asdict(gate),
            passed=not complaints,
            failures=complaints,
        )

    def time_submodules(self, compiled: Mapping[str, Compiled]) -> None:
        """Eager against compiled, in turn, on the recorded inputs."""
        offloaded = self.plan.build.cpu_offload and self.device.type == "cuda"
        for entry in self.result["submodules"]:
            done = compiled[entry["name"]]
            rivals: dict[str, Callable[..., torch.Tensor]] = {}
            if not (offloaded and done.resolved.backend == "torch_tensorrt"):
                rivals["eager"] = done.target.module
            if done.built.runs and done.resolved.backend != "eager":
                rivals["compiled"] = done.built.call
            self.steps.step(f"timing {entry['name']}: {' against '.join(rivals)}")
            taken = self._measure({n: _bound(call, done.target.inputs) for n, call in rivals.items()})
            _fill_latencies(entry, taken)
        if offloaded:
            records.skip(self.result, "eager latency", "cpu_offload moved the PyTorch weights off the GPU")

    def time_requests(self, compiled: Mapping[str, Compiled]) -> None:
        """The whole request from observation to actions, and where its time goes; eager and compiled in turn."""
        model = self.policy.model
        tables = {"compiled": dict(model.stages)}
        if not self.plan.build.cpu_offload or self.device.type != "cuda":
            model.reset_stages()
            tables["eager"] = dict(model.stages)
        if not any(c.resolved.backend != "eager" for c in compiled.values()) or not all(
            c.built.runs for c in compiled.values()
        ):
            del tables["compiled"]
        self.steps.step(f"timing the whole request: {' against '.join(reversed(tables))}")

        def request(table: Mapping[str, Any]) -> Callable[[], object]:
            def call() -> object:
                model.stages.update(table)
                return self.policy.get_action(self.observation, noise=self.noise)

            return call

        taken = self._measure({name: request(tables[name]) for name in ("eager", "compiled") if name in tables})
        _fill_latencies(self.result["end_to_end"], taken)
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        for name, table in tables.items():
            model.stages.update(table)
            with StageTimer((self.policy.stages, model.stages), self.device) as timer:
                for _ in range(len(taken[name].samples)):
                    with timer.request():
                        self.policy.get_action(self.observation, noise=self.noise)
            for row in timer.rows():
                rows.setdefault(row["stage"], {})[name] = row
        for stage, by_name in rows.items():
            first = next(iter(by_name.values()))
            self.result["stages"].append(
                records.stage_entry(
                    stage,
                    within=first["within"],
                    calls_per_request=first["calls_per_request"],
                    latency_ms=_latency(by_name.get("compiled")),
                    eager_latency_ms=_latency(by_name.get("eager")),
                )
            )

    def _measure(self, fns: Mapping[str, Callable[[], object]]) -> dict[str, Samples]:
        if not fns:
            return {}
        options = self.plan.benchmark
        with torch.inference_mode():
            return measure_alternating(
                fns,
                timer=options.timer,
                warmup=options.warmup,
                iterations=options.iterations,
                max_seconds=options.max_seconds,
                device=self.device,
            )


def _bound(call: Callable[..., object], inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    return lambda: call(*inputs)


def _latency(row: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return row["latency_ms"].to_dict() if row else None


def _instruction(observation: Mapping[str, Any]) -> str | None:
    texts = next((value for key, value in observation.items() if key.startswith("annotation.")), None)
    return None if texts is None else texts if isinstance(texts, str) else str(texts[0])


@contextmanager
def full_fp32() -> Iterator[None]:
    """No TF32 in products and convolutions: the reference must be better than anything held against it."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [b.allow_tf32 for b in backends]
    try:
        for b in backends:
            b.allow_tf32 = False
        yield
    finally:
        for b, value in zip(backends, before, strict=True):
            b.allow_tf32 = value


def _fill_latencies(entry: dict[str, Any], taken: Mapping[str, Samples]) -> None:
    if "eager" in taken:
        entry["eager_latency_ms"] = taken["eager"].to_dict()
    if "compiled" in taken:
        entry["latency_ms"] = taken["compiled"].to_dict()
    if len(taken) == 2:
        entry["verdict"] = verdict(taken["eager"], taken["compiled"]).to_dict()


def _submodule_entry(name: str, done: Compiled) -> dict[str, Any]:
    shapes = {}
    for argument, tensor, ranges in zip(
        done.target.argument_names, done.target.inputs, done.target.ranges, strict=True
    ):
        spans = {axis: f"{d.name} {d.minimum}..{d.maximum}" for axis, d in ranges.items()}
        shapes[argument] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "ranges": {str(axis): span for axis, span in spans.items()},
        }
    return records.submodule_entry(
        name,
        done.resolved.backend,
        done.resolved.precision,
        shapes=shapes,
        accuracy=done.agreement.to_dict(),
        gate=asdict(done.resolved.gate),
        passed=not done.failures,
        failures=done.failures,
        **records.built_fields(done.built),
    )
