"""The forms of one model that are measured against each other; they share its weights."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..backends import get_backend
from ..backends.base import Built
from ..backends.guarded import first_line
from ..backends.inductor.backend import InductorBackend
from ..compile.build import Model, agreement_with, set_precision
from ..compile.submodules import dimension_ranges, record, select, target
from ..errors import BackendError
from ..model.n1_5 import fast
from ..model.n1_5.fast import FastGr00tN1d5
from ..model.n1_5.inputs import IDS
from ..model.targets import Recording, Target
from ..plans.schema import BuildOptions, Plan, Ranges
from ..policy.policy import Gr00tPolicy
from . import accuracy
from .graphs import Graphs
from .rows import PLAIN, Candidate, Workload
from .trial import full_fp32
from .workloads import Requests


@dataclass(frozen=True)
class Part:
    """One submodule that was built: what it was made of, and how it agrees with eager fp32."""

    target: Target
    built: Built
    agreement: accuracy.Agreement


@dataclass(frozen=True)
class Form:
    """A candidate that can be called.

    Attributes:
        model: Whose `stages` must hold `table` during a call.
        parts: Submodule -> what was built; empty for eager PyTorch.
        build_s: Seconds that building took.
        graphs: What replays requests as one CUDA graph; None for a form without.
    """

    model: Model
    table: Mapping[str, Callable[..., Tensor]]
    parts: Mapping[str, Part] = field(default_factory=dict)
    build_s: float = 0.0
    graphs: Graphs | None = None


class Forms:
    """Makes candidates from one policy, keeps them while rows need them, and knows the reference.

    Args:
        policy: In fp32, nothing compiled; cast here, in place, after the references were taken.
        precision: What all forms compute in.
        workloads: Of all rows.
        told: Called with a phrase at each longer step.
    """

    def __init__(
        self,
        policy: Gr00tPolicy,
        requests: Requests,
        precision: str,
        workloads: list[Workload],
        told: Callable[[str], None],
    ):
        self.policy, self.requests, self.precision, self._told = policy, requests, precision, told
        self.plain = policy.model
        self._eager = dict(self.plain.stages)
        self._made: dict[Candidate, Form] = {}
        self._failed: dict[Candidate, str] = {}
        self._references: dict[Workload, Tensor] = {}
        self._recordings: dict[bool, Recording] = {}
        if precision != "fp32":
            # In fp32 the weights stay what they are, and what is needed can be worked out when it is.
            for work in workloads:
                self._told(f"eager fp32, the reference: {work.views} view, batch {work.batch}, {work.steps} steps")
                self.reference(work)
            for restructured in (False, True):
                self.recording(restructured)
            set_precision(self.plain, Plan(precision=precision))

    @torch.no_grad()
    def reference(self, work: Workload) -> Tensor:
        """Actions of the plain model in eager fp32, on the host."""
        if work not in self._references:
            with full_fp32():
                self._references[work] = self.actions(Form(self.plain, self._eager), work).cpu()
        return self._references[work]

    def recording(self, restructured: bool) -> Recording:
        """What each stage is given and gives in eager fp32, in the smallest request."""
        if restructured not in self._recordings:
            inputs, noise = self.requests.inputs(Workload()), self.requests.noise(Workload())
            self.plain.denoising_steps = Workload().steps
            with full_fp32():
                if restructured:
                    made = fast.record(fast.restructure(self.plain), inputs, noise)[0]
                else:
                    made = record(self.plain, inputs, noise)[0]
            self._recordings[restructured] = made
        return self._recordings[restructured]

    def actions(self, form: Form, work: Workload) -> Tensor:
        """Normalised actions [B, T, 32] of one call, by the way that `model_call` times."""
        return self.model_call(form, work)()

    def model_call(self, form: Form, work: Workload) -> Callable[[], Tensor]:
        """A call with everything resident on the device: inputs to normalised actions."""
        inputs = self.requests.resident(work, lookups_on_host=isinstance(form.model, FastGr00tN1d5))
        noise = self.requests.noise(work)
        self._install(form, work)
        if form.graphs is not None:
            form.graphs.capture(work, inputs, noise)

        def call() -> Tensor:
            self._install(form, work)
            return form.model.get_action(inputs, noise=noise)["action_pred"]

        return call

    def request_call(self, form: Form, work: Workload) -> Callable[[], Any]:
        """A call from an observation in numpy to actions in numpy."""
        observation, noise = self.requests.observation(work), self.requests.noise(work)
        if form.graphs is not None:
            self.model_call(form, work)  # captures a request of this shape

        def call() -> Any:
            self._install(form, work)
            self.policy.model = form.model  # type: ignore[assignment]
            return self.policy.get_action(observation, noise=noise)

        return call

    def _install(self, form: Form, work: Workload) -> None:
        if form.model.denoising_steps != work.steps:
            form.model.denoising_steps = work.steps
        form.model.stages.update(form.table)
        if isinstance(form.model, FastGr00tN1d5):
            form.model.graphs = None if form.graphs is None else form.graphs.answer

    def has(self, candidate: Candidate) -> bool:
        """Whether nothing has to be compiled for it any more."""
        return candidate in self._made or replace(candidate, graph=False) in self._made

    @property
    def plain_form(self) -> Form:
        """The plain model in eager PyTorch, which everything is held against."""
        return self.get(PLAIN)

    def get(self, candidate: Candidate) -> Form:
        """The candidate, built on first use. Raises: BackendError when it cannot be, or could not before."""
        if candidate in self._failed:
            raise BackendError(f"could not be built: {self._failed[candidate]}")
        if candidate not in self._made:
            try:
                self._made[candidate] = self._make(candidate)
            except Exception as error:
                self._failed[candidate] = first_line(error)
                raise
        return self._made[candidate]

    def _make(self, candidate: Candidate) -> Form:
        if candidate.graph:
            form = self.get(replace(candidate, graph=False))
            assert isinstance(form.model, FastGr00tN1d5), "no row wants a graph of the plain model"
            return replace(form, graphs=Graphs(form.model, candidate.backend))
        if candidate.optimisations:
            model: Model = fast.restructure(self.plain, optimisations=candidate.optimisations)
            model.loop = candidate.loop
            table = dict(model.stages)
        else:
            model, table = self.plain, dict(self._eager)
        if candidate.backend == "eager":
            return Form(model, table)
        plan = self._plan(candidate)
        recording = self.recording(bool(candidate.optimisations))
        dims = dimension_ranges(self.plain.config, plan.ranges, recording)
        backend = (
            InductorBackend(candidate.mode or "default")
            if candidate.backend == "inductor"
            else get_backend(candidate.backend)
        )
        found = backend.availability()
        if not found.installed:
            raise BackendError(f"{candidate.backend}: {found.reason}")
        parts = {}
        for name in select("all", plan):
            self._told(f"{candidate.backend} {candidate.mode or ''}: building {name}")
            if isinstance(model, FastGr00tN1d5):
                wanted = fast.target(model, name, recording, dims)
            else:
                wanted = target(model, name, recording, dims)
            built = backend.build(wanted, BuildOptions(), engine_dir=None, progress=lambda _: None)
            if not built.runs:
                raise BackendError(f"{name}: {candidate.backend} engines cannot run on this machine")
            agreement = agreement_with(built.call, recording[name], model.argument_dtypes(name), model.device)
            parts[name] = Part(wanted, built, agreement)
            table[name] = built.call
        return Form(model, table, parts, sum(part.built.build_s for part in parts.values()))

    def _plan(self, candidate: Candidate) -> Plan:
        plan = Plan(
            backend=candidate.backend,
            precision=self.precision,
            optimisations=candidate.optimisations,
            loop=candidate.loop,
        )
        if candidate.dynamic:
            return plan
        length = self.requests.inputs(Workload())[IDS].shape[1]
        return replace(plan, ranges=Ranges(batch=(1, 1), views=(1, 1), length=(length, length)))

    def keep_only(self, candidates: set[Candidate]) -> None:
        """Let go of every form that no row needs any more, and of the GPU memory that failed builds hold."""
        candidates = candidates | {replace(candidate, graph=False) for candidate in candidates}
        self._made = {candidate: form for candidate, form in self._made.items() if candidate in candidates}
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def restore(self) -> None:
        """Give policy and model back as they came, but for the precision."""
        self.policy.model = self.plain
        self.plain.stages.update(self._eager)
