"""Another checkpoint of the same geometry put into a deployment that goes on answering, in seconds.

    swap = Swap(deployment, fresh, steps)    fresh: the new checkpoint's policy, loaded in the plan's precisions
    swap.prepare()                           beside the deployment: reference, engines; nothing of it is changed
    swapped = swap.commit()                  between two requests: weights, statistics, stages; all of it, or nothing

What runs the model's own weights, eager or by torch.compile, gets new values at the same addresses: nothing is compiled
again, and what was computed from weights is computed anew. A stage whose weights are the same keeps what was built of
it; every other one, an engine or a quantised stage, is built from the new weights. The same gates are asked as at a
start. Until `commit`, the new model takes its memory beside the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.devices import side_stream
from ..common.interface import Observation
from ..common.progress import Steps
from ..compile.capture import with_length
from ..engines.cache import open_cache
from ..errors import AccuracyError, PlanError
from ..measure.accuracy import compare, judge
from ..measure.harness import Harness
from ..measure.reference import Reference
from ..measure.results import Part, agreement_with
from ..measure.timers import drain
from ..measure.workloads import one_request
from ..model.protocol import Model
from ..model.stored import as_stored
from ..model.targets import Recording
from ..plans.resolve import Resolved
from ..policy.policy import ModelPolicy
from ..record.result import REQUEST, Agreement, Result, Workload
from .deploy import Deployment
from .same_kind import refuse_other_model, refuse_other_robot

READ_WEIGHTS = ("eager", "inductor")
"""Backends whose calls read the module's own weights each time."""

_STATISTICS = (
    "metadata", "config_name", "modality_config", "modality_transform", "prompter", "bracketed_instruction",
    "state_ranges",
)  # fmt: skip
"""What a policy has of its checkpoint beside the weights."""


@dataclass(frozen=True)
class Swapped:
    """What became of a deployment.

    Attributes:
        deployment: With the same policy object; its parts and its record tell of the new weights.
        seconds: Phase or built stage -> seconds, in their order; ``pause`` is how long requests had to wait.
        changed: Tensors with other values than before. unchanged: with the same.
        in_place: Stages that run the model's own weights. reused: Stages whose weights are the same, with what was
            built of them. rebuilt: Stages built from the new weights. from_cache: Those of them that an earlier build
            had left in the engine cache.
        agreement: Of the actions with eager fp32 of the new weights; None where that was not asked for.
    """

    deployment: Deployment
    seconds: Mapping[str, float]
    changed: int
    unchanged: int
    in_place: tuple[str, ...]
    reused: tuple[str, ...]
    rebuilt: tuple[str, ...]
    from_cache: tuple[str, ...]
    agreement: Agreement | None


class Swap:
    """New weights for a deployment.

    Args:
        fresh: A policy of the new checkpoint, on the deployment's device, loaded in the plan's precisions or in fp32,
            nothing compiled. It is used up.
        observation: What accuracy is checked on and shapes are tuned for; the policy's example when None.
        engine_cache: As for `deploy`.
        check: False asks no gate, as for `deploy`.
    Raises: CheckpointError for a checkpoint of another geometry, robot or tokenizer; PlanError for a deployment that
        cannot be changed.
    """

    def __init__(
        self,
        deployment: Deployment,
        fresh: ModelPolicy,
        steps: Steps,
        *,
        observation: Observation | None = None,
        engine_cache: str | None = None,
        seed: int = 0,
        check: bool = True,
    ):
        self._resolved = changeable(deployment)
        self._deployment, self._fresh, self._steps = deployment, fresh, steps
        self._engine_cache, self._check = engine_cache, check
        policy = deployment.policy
        refuse_other_model(fresh.model.config, policy.model.config)
        refuse_other_robot(fresh, policy)
        fresh.denoising_steps = policy.denoising_steps
        self._request = one_request(fresh, fresh.example() if observation is None else observation, seed)
        self._optimizations = self._resolved.plan.optimizations if deployment.parts else ()
        self._seconds: dict[str, float] = {}
        self._new: dict[str, Tensor] = {}
        self._rebuilt: dict[str, Part] = {}
        self._in_place: list[str] = []
        self._reused: list[str] = []

    @torch.no_grad()
    def prepare(self) -> None:
        """Everything that takes long. The deployment may answer meanwhile, in another thread, with its old weights.

        Raises: AccuracyError for a stage that misses its gate; BackendError, PlanError and others as `deploy`.
        """
        live, device = self._deployment.policy.model, self._fresh.model.device
        with side_stream(device):
            self._harness = self._make_harness()
            with self._phase("comparing weights"):
                before = _parameters(live)
                new = _parameters(self._fresh.model)
                self._new = {name: value for name, value in new.items() if not _equal(value, before[name])}
            for name, part in self._deployment.parts.items():
                if part.resolved.quantization is None and part.resolved.backend in READ_WEIGHTS:
                    self._in_place.append(name)
                elif self._same(name, part):
                    self._reused.append(name)
                else:
                    self._rebuild(name)
            drain(device)
        self._refuse([failure for part in self._rebuilt.values() for failure in part.failures])

    @torch.no_grad()
    def commit(self) -> Swapped:
        """Change the deployment. Nothing else may use its policy meanwhile.

        Raises: AccuracyError where the actions, or a stage that runs the model's own weights, miss their gates; as it
            was before is how the deployment then is again, and likewise after any other error.
        """
        start = time.perf_counter()
        policy = self._deployment.policy
        model = policy.model
        try:
            with _restored_on_error(policy, self._new):
                _write(model, self._new)
                model.stages.update({name: part.built.call for name, part in self._rebuilt.items()})
                vars(policy).update(_statistics_of(self._fresh))
                model.accept_weights()
                agreements = self._verified()
        finally:
            self._capture()
        drain(model.device)
        self._seconds["pause"] = time.perf_counter() - start
        return self._swapped(agreements)

    def _make_harness(self) -> Harness:
        """A harness of the new model, with its reference in eager fp32."""
        base, plain = self._request, self._fresh.model
        actions: dict[Workload, Tensor] = {}
        recordings: dict[tuple[str, ...], Recording] = {}
        # With its stored weights, in fp32 as this process computes it: unlike at a start, no setting of the whole
        # process is changed, since the deployment is answering.
        exact = as_stored(cast(nn.Module, plain)) if self._check else nullcontext()
        with self._phase("reference" if self._check else "recording"), exact:
            if self._check:
                resident = base.resident(plain)
                actions[base.workload] = plain.get_action(resident, noise=base.noise)["action_pred"].cpu()
            if self._deployment.parts:
                twin = plain.architecture.restructured(plain, self._optimizations)
                recordings[self._optimizations] = twin.record(base.inputs, base.noise)[0]
        return Harness(Reference(self._fresh, base, actions, recordings), self._resolved.plan, self._steps)

    def _same(self, name: str, part: Part) -> bool:
        """Whether what was built of a stage is what would be built of the new one."""
        if part.resolved.quantization is not None:
            return not self._new  # its scales depend on the weights before it as well
        old = self._deployment.policy.model.eager_stage(name).state_dict()
        new = self._harness.model(self._optimizations).eager_stage(name).state_dict()
        return all(_equal(value, old[key]) for key, value in new.items())

    def _rebuild(self, name: str) -> None:
        cache, own = open_cache(self._engine_cache), self._resolved[name]
        with self._phase(name):
            part = self._harness.build(name, own, self._optimizations, cache=cache)
            if part.built.runs and part.built.engine is not None and not part.built.from_cache:
                # What a compiler hands out may hold on to the module that it compiled; an engine from a file does not.
                again = self._harness.build(name, own, self._optimizations, cache=cache)
                part = replace(again, built=replace(again.built, from_cache=False, build_s=part.built.build_s))
        self._rebuilt[name] = part if self._check else replace(part, failures=())

    def _verified(self) -> dict[str, Agreement]:
        """Stage, or `REQUEST`, -> agreement of the changed deployment with eager fp32. Raises: AccuracyError."""
        model, base = self._deployment.policy.model, self._request
        actions = model.get_action(base.resident(model), noise=base.noise)["action_pred"]
        if not self._check:
            return {}
        found: dict[str, Agreement] = {}
        failures: list[str] = []
        for name in self._in_place:
            part, calls = self._deployment.parts[name], self._harness.recording(self._optimizations)[name]
            found[name] = agreement_with(part.built.call, calls, model.argument_dtypes(name), model.device)
            failures += judge(name, found[name], part.resolved.gate)
        found[REQUEST] = compare(actions.cpu(), self._harness.expected(base))
        failures += judge("actions", found[REQUEST], self._harness.action_gate)
        self._refuse(failures)
        return found

    def _refuse(self, failures: list[str]) -> None:
        if failures:
            raise AccuracyError(
                "the new weights are not accurate enough in this deployment: " + "; ".join(failures),
                known="the gates of the plan, per submodule and for the actions",
                fix="start a server of them with a more exact precision; this one goes on with the old weights",
            )

    def _capture(self) -> None:
        """Have the graphs that the plan asks for captured again: those of other weights have been given up."""
        model, base = self._deployment.policy.model, self._request
        if model.graphs is not None:
            for length in (*self._resolved.plan.cuda_graph_lengths, base.length):
                model.get_action(with_length(base.inputs, length, model.config), noise=base.noise)

    def _swapped(self, agreements: Mapping[str, Agreement]) -> Swapped:
        deployment = self._deployment
        parts = {**deployment.parts, **self._rebuilt}
        results = [self._told(result, agreements) for result in deployment.record.results]
        return Swapped(
            replace(deployment, parts=parts, record=replace(deployment.record, results=results)),
            self._seconds,
            len(self._new),
            len(_parameters(deployment.policy.model)) - len(self._new),
            tuple(self._in_place),
            tuple(self._reused),
            tuple(self._rebuilt),
            tuple(name for name, part in self._rebuilt.items() if part.built.from_cache),
            agreements.get(REQUEST),
        )

    def _told(self, result: Result, agreements: Mapping[str, Agreement]) -> Result:
        """A result of the start's record, now of the new weights."""
        part = self._rebuilt.get(result.subject)
        if part is not None:
            return self._harness.part_result(part)
        return replace(result, accuracy=agreements.get(result.subject, result.accuracy))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        self._steps.step(name)
        start = time.perf_counter()
        yield
        self._seconds[name] = time.perf_counter() - start


def swap(deployment: Deployment, load: Callable[[], ModelPolicy], steps: Steps, **settings: Any) -> Swapped:
    """Put another checkpoint into a deployment that nobody asks meanwhile.

    Args:
        load: Gives the new checkpoint's policy, as `Swap` takes it.
        settings: As for `Swap`.
    Raises: as `Swap`, its `prepare` and its `commit`.
    """
    start = time.perf_counter()
    changeable(deployment)
    fresh = load()
    loaded = time.perf_counter() - start
    made = Swap(deployment, fresh, steps, **settings)
    made.prepare()
    with side_stream(deployment.policy.model.device):
        swapped = made.commit()
    return replace(swapped, seconds={"loading": loaded, **swapped.seconds})


def changeable(deployment: Deployment) -> Resolved:
    """The plan of a deployment that can be given other weights. Raises: PlanError."""
    if deployment.resolved is None:
        raise PlanError(
            "this deployment cannot be given other weights: nothing was built here",
            known="a deployment that was compiled from a checkpoint",
            fix="make it anew of the new checkpoint, and start from that",
        )
    return deployment.resolved


def _statistics_of(policy: ModelPolicy) -> dict[str, object]:
    return {name: value for name, value in vars(policy).items() if name in _STATISTICS}


def _parameters(model: Model) -> dict[str, nn.Parameter]:
    """By the checkpoint's names, plain or restructured."""
    return dict(cast(nn.Module, model).named_parameters())


def _equal(new: Tensor, old: Tensor) -> bool:
    return torch.equal(new, old.to(new.device))


def _write(model: Model, values: Mapping[str, Tensor]) -> None:
    """Give parameters other values where they lie: graphs and compiled stages know their addresses."""
    parameters = _parameters(model)
    for name, value in values.items():
        parameters[name].copy_(value)


@contextmanager
def _restored_on_error(policy: ModelPolicy, names: Iterable[str]) -> Iterator[None]:
    """After an error inside, the policy is as it was; `names`: of the parameters that may be changed."""
    model, parameters = policy.model, _parameters(policy.model)
    values = {name: parameters[name].detach().clone() for name in names}
    stages, statistics = dict(model.stages), _statistics_of(policy)
    try:
        yield
    except BaseException:
        _write(model, values)
        model.stages.update(stages)
        vars(policy).update(statistics)
        model.accept_weights()
        raise
