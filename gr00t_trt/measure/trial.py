"""One observation, followed through: eager fp32 as the reference, then every submodule built, checked and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from ..common.progress import Steps
from ..compile.build import Compiled, Model, compile_submodule, judge, set_precision
from ..compile.capture import UNCAPTURED, capture_requests, capturer_for
from ..compile.submodules import dimension_ranges, record
from ..engines.cache import EngineCache
from ..model import Gr00tN1d5
from ..model.n1_5 import fast
from ..plans.load import resolve_action_gate
from ..plans.schema import Plan
from ..policy.policy import ModelPolicy
from ..record import records
from . import accuracy
from .stages import REST, TOTAL, StageTimer
from .timers import Samples, drain, measure_alternating, verdict

Rival = tuple[Model, Mapping[str, Any]]
"""A model, and what its stages are to be while its requests are timed."""


class Trial:
    """Runs a plan on one observation and fills a record with what it finds.

    The order matters: `reference` wants the model in fp32, `compile` casts it in place and swaps submodules in, the
    rest measures what is there then.

    Args:
        policy: In fp32, nothing compiled.
        observation: What the dataset or a robot sent.
        result: The record to fill.
        steps: Told of each step.
    """

    def __init__(
        self, policy: ModelPolicy, plan: Plan, observation: Mapping[str, Any], result: dict[str, Any], steps: Steps
    ):
        self.policy, self.plan = policy, plan
        self.plain = policy.model
        self.model: Model = policy.model
        self.observation, self.result, self.steps = observation, result, steps
        self.device = policy.model.device
        self.eager = dict(self.plain.stages)
        self.compiled: dict[str, Compiled] = {}
        self._called = False

    def reference(self, seed: int) -> None:
        """Run the request in eager fp32 and keep what every stage was given and gave.

        Args:
            seed: Of the initial noise, which the candidates start from too.
        """
        self.steps.step("running eager fp32, the reference")
        self.inputs, self.batched = self.policy.preprocess(self.observation)
        plain = self.plain
        shape = (self.inputs["embodiment_id"].shape[0], plain.action_horizon, plain.config.action_head.action_dim)
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        self.noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device)
        with full_fp32():
            self.recording, self.actions = record(plain, self.inputs, self.noise)
        self.dims = dimension_ranges(plain.config, self.plan.ranges, self.recording)
        batch, length = self.recording["language_model"][0].inputs[0].shape[:2]
        self.result["workload"].update(
            views=self.recording["vision_model"][0].inputs[0].shape[0] // batch,
            batch_size=batch,
            sequence_length=length,
            denoising_steps=self.policy.denoising_steps,
            seed=seed,
            instruction=_instruction(self.observation),
        )
        if self.plan.optimisations:
            self._restructure()

    def _restructure(self) -> None:
        """Put the restructured model in the plain one's place; it shares the weights, and so the plain one stays."""
        self.steps.step("restructuring the model and recording its stages")
        self.model = fast.restructure(self.plain, optimisations=self.plan.optimisations)
        self.model.loop = self.plan.loop
        with full_fp32():
            self.recording, _ = fast.record(self.model, self.inputs, self.noise)
        if "unpadded_mask" in self.plan.optimisations:
            records.skip(
                self.result, "language_model_padded", "not compiled: batches with padding run it in eager PyTorch"
            )

    def compile(self, names: tuple[str, ...], engine_dir: Path | None = None, cache: EngineCache | None = None) -> None:
        """Cast the model to the planned precisions, then build, swap in and check each named submodule."""
        set_precision(self.model, self.plan)
        for number, name in enumerate(names, 1):

            def told(phase: str, prefix: str = f"{name} ({number} of {len(names)})") -> None:
                self.steps.step(f"{prefix}: {phase}")

            self._note(
                name,
                compile_submodule(
                    self.model,
                    name,
                    self.plan,
                    self.recording,
                    self.dims,
                    engine_dir=engine_dir,
                    progress=told,
                    cache=cache,
                ),
            )

    def adopt(self, name: str, done: Compiled, taken: Mapping[str, Samples]) -> None:
        """Take a submodule that was built, checked and timed elsewhere, instead of `compile` and `time_submodules`.

        Args:
            taken: Latencies of ``eager`` and ``compiled``, whichever there are.
        """
        self.model.stages[name] = done.built.call
        self._called = True
        self._note(name, done)
        _fill_latencies(self.result["submodules"][-1], taken)

    def _note(self, name: str, done: Compiled) -> None:
        self.compiled[name] = done
        self.result["submodules"].append(_submodule_entry(name, done))

    @property
    def runs(self) -> bool:
        """Whether everything that was built can run on this machine."""
        return all(done.built.runs for done in self.compiled.values())

    def install(self) -> None:
        """Leave the policy with the model that the plan asks for; else it keeps the plain one."""
        self._give_policy(self.model)

    def capture(self) -> None:
        """Capture the request as a graph, if the plan asks for it; requests of its shape are replayed from then on.

        Call it once everything is in place and compared; what cannot be captured is told in the record.
        """
        if self.plan.cuda_graph == "none":
            return
        self.steps.step("capturing the request as one CUDA graph")
        assert isinstance(self.model, fast.FastGr00tN1d5), "no plan may want a graph of the plain model"
        if not self.runs:
            records.skip(self.result, "cuda_graph", f"{UNCAPTURED}: what was built cannot run on this machine")
            return
        self.result["end_to_end"]["cuda_graph"] = capture_requests(
            self.model,
            self.plan,
            self.inputs,
            self.noise,
            backends={name: done.resolved.backend for name, done in self.compiled.items()},
            capturer=capturer_for(self.device),
            note=lambda why: records.skip(self.result, "cuda_graph", why),
        )

    @torch.no_grad()
    def check_actions(self) -> None:
        """Hold the actions of the whole request against eager fp32, normalised and in physical units."""
        self.steps.step("comparing the actions with eager fp32")
        start = time.perf_counter()
        candidate = self.actions_of(self.model, {})
        if self.runs and not self._called:
            self.result["end_to_end"]["first_call_ms"] = (time.perf_counter() - start) * 1e3
        gate = resolve_action_gate(self.plan)
        agreement, complaints = self.judge_actions(candidate)
        physical = accuracy.compare_each(
            self.policy.postprocess(candidate, batched=self.batched),
            self.policy.postprocess(self.actions, batched=self.batched),
        )
        self.result["accuracy"].update(
            normalised=agreement.to_dict(),
            per_key={key: each.to_dict() for key, each in physical.items()},
            gate=asdict(gate),
            passed=not complaints,
            failures=complaints,
        )

    @torch.no_grad()
    def actions_of(self, model: Model, table: Mapping[str, Any]) -> torch.Tensor:
        """Normalised actions of the request [B, T, action_dim], `model` calling the stages in `table` from now on."""
        model.stages.update(table)
        actions = model.get_action(self.inputs, noise=self.noise)["action_pred"]
        drain(self.device)
        return actions

    def judge_actions(self, candidate: torch.Tensor) -> tuple[accuracy.Agreement, list[str]]:
        """How normalised actions agree with eager fp32, and what the plan's gate holds against them."""
        agreement = accuracy.compare(candidate, self.actions)
        return agreement, judge("actions", agreement, resolve_action_gate(self.plan))

    def time_submodules(self) -> None:
        """Eager against compiled, in turn, on the recorded inputs and in the same precision.

        A submodule that was built and cannot run here has no rival, and its eager latency alone decides nothing: the
        split of the request tells it without further calls.
        """
        for entry in self.result["submodules"]:
            done = self.compiled[entry["name"]]
            if not done.built.runs:
                continue
            rivals: dict[str, Callable[..., torch.Tensor]] = {}
            if not self._offloaded(done):
                rivals["eager"] = done.target.module
            if done.resolved.backend != "eager":
                rivals["compiled"] = done.built.call
            self.steps.step(f"timing {entry['name']}: {' against '.join(rivals)}")
            taken = self.measure({name: bound(call, done.target.inputs) for name, call in rivals.items()})
            _fill_latencies(entry, taken)

    def time_requests(self) -> None:
        """The whole request, observation to actions, and where its time goes; eager and compiled in turn."""
        rivals: dict[str, Rival] = {}
        if not any(self._offloaded(done) for done in self.compiled.values()):
            rivals["eager"] = (self.plain, self.eager)
        else:
            records.skip(self.result, "eager latency", "cpu_offload moved the PyTorch weights off the GPU")
        changed = self.model is not self.plain or any(d.resolved.backend != "eager" for d in self.compiled.values())
        if self.runs and changed:
            rivals["compiled"] = (self.model, dict(self.model.stages))
        self.steps.step(f"timing the whole request: {' against '.join(rivals)}")
        # Reading the clock is nothing beside a request on a CPU, but events between its kernels delay a GPU: there
        # the split gets requests of its own.
        on_cpu = self.device.type == "cpu"
        taken, rows = self.measure_requests(rivals, split=on_cpu)
        only_restructured = all(done.resolved.backend == "eager" for done in self.compiled.values())
        _fill_latencies(self.result["end_to_end"], taken, "restructured" if only_restructured else "compiled")
        if not on_cpu:
            self.steps.step("timing the stages of a request")
            # A graph has no stages to time.
            with self.model.uncaptured() if isinstance(self.model, fast.FastGr00tN1d5) else nullcontext():
                _, rows = self.measure_requests(rivals, split=True)
        self.result["stages"] = _stage_entries(rows)

    def measure_requests(
        self, rivals: Mapping[str, Rival], *, split: bool = False
    ) -> tuple[dict[str, Samples], dict[str, list[dict[str, Any]]]]:
        """Latencies of whole requests by rival, in turn, and, where asked for, the rows of their stages."""
        before = dict(self.model.stages)
        calls: dict[str, Callable[[], object]] = {}
        timers: dict[str, StageTimer] = {}
        try:
            with ExitStack() as stack:
                for name, (model, original) in rivals.items():
                    table = dict(original)
                    if split:
                        timers[name] = StageTimer((self.policy.stages, table), self.device)
                        stack.enter_context(timers[name])
                    calls[name] = self._request(model, table, timers.get(name))
                taken = self.measure(calls)
        finally:
            self._give_policy(self.model)
            self.model.stages.update(before)
        return taken, {name: timer.rows(warmup=taken[name].warmup) for name, timer in timers.items()}

    def _request(self, model: Model, table: Mapping[str, Any], timer: StageTimer | None) -> Callable[[], object]:
        def call() -> object:
            self._give_policy(model)
            model.stages.update(table)
            with timer.request() if timer else nullcontext():
                return self.policy.get_action(self.observation, noise=self.noise)

        return call

    def _give_policy(self, model: Model) -> None:
        # The restructured model has the plain one's surface without being one.
        self.policy.model = cast(Gr00tN1d5, model)

    def _offloaded(self, done: Compiled) -> bool:
        return (
            done.resolved.build.cpu_offload and done.resolved.backend == "torch_tensorrt" and self.device.type == "cuda"
        )

    @torch.no_grad()
    def measure(self, fns: Mapping[str, Callable[[], object]]) -> dict[str, Samples]:
        """Latencies by name, taken in turn as the plan's benchmark options say."""
        options = self.plan.benchmark
        return measure_alternating(
            fns,
            timer=options.timer,
            warmup=options.warmup,
            iterations=options.iterations,
            max_seconds=options.max_seconds,
            device=self.device,
        )


@contextmanager
def full_fp32() -> Iterator[None]:
    """No TF32 in products and convolutions: the reference must be better than anything held against it."""
    product, convolution = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = product, convolution


def _stage_entries(rows: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    by_stage: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in rows.items():
        for row in own:
            by_stage.setdefault(row["stage"], {})[name] = row
    for last in (REST, TOTAL):
        by_stage[last] = by_stage.pop(last)
    entries = []
    for stage, by_name in by_stage.items():
        known = {
            field: by_name[name]["latency_ms"].to_dict() if name in by_name else None
            for name, field in (("eager", "eager_latency_ms"), ("compiled", "latency_ms"))
        }
        # The restructured model has no backbone stage around its towers: where both models have a stage, its place
        # is the compiled one's, whose shares are shown.
        one = by_name.get("compiled") or by_name["eager"]
        entries.append(
            records.stage_entry(stage, within=one["within"], calls_per_request=one["calls_per_request"], **known)
        )
    return entries


def _instruction(observation: Mapping[str, Any]) -> str | None:
    texts = next((value for key, value in observation.items() if key.startswith("annotation.")), None)
    return None if texts is None else texts if isinstance(texts, str) else str(texts[0])


def bound(call: Callable[..., object], inputs: tuple[torch.Tensor, ...]) -> Callable[[], object]:
    """A submodule's call on given inputs, to be timed."""
    return lambda: call(*inputs)


def _fill_latencies(entry: dict[str, Any], taken: Mapping[str, Samples], candidate: str = "compiled") -> None:
    if "eager" in taken:
        entry["eager_latency_ms"] = taken["eager"].to_dict()
    if "compiled" in taken:
        entry["latency_ms"] = taken["compiled"].to_dict()
    if len(taken) == 2:
        entry["verdict"] = verdict(taken["eager"], taken["compiled"], names=("eager", candidate)).to_dict()


def _submodule_entry(name: str, done: Compiled) -> dict[str, Any]:
    shapes = {}
    arguments = zip(done.target.argument_names, done.target.inputs, done.target.ranges, strict=True)
    for argument, tensor, ranges in arguments:
        shapes[argument] = {
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "shape": list(tensor.shape),
            "ranges": {str(axis): f"{dim.name} {dim.minimum} to {dim.maximum}" for axis, dim in ranges.items()},
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
