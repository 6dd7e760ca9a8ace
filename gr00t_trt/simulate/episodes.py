"""Episodes played to their end by an actor, several side by side: which succeeded, in how many steps."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ..common.interface import Observation, refuse_non_finite
from ..errors import ObservationError
from ..record.simulation import Episode
from .actors import Actor, Question
from .step import Lost, Step
from .vector import Vector
from .watched import Watch

if TYPE_CHECKING:
    from .recording import Recorder

Job = tuple[int, int]
"""Number and seed of an episode."""


@dataclass
class _Running:
    """The episode that an environment is in."""

    job: Job
    observation: Observation
    instruction: str
    latencies: list[float] = field(default_factory=list)
    queries: int = 0


class Session:
    """Plays episodes in the environments of a vector. Each is given the next one as soon as it is free.

    All of them are played to their end, so that it does not matter which ones are quick.

    Args:
        actor: Who is asked; None lets the environments' own expert act.
        n_action_steps: How many rows of each answer are executed.
        advance: Told how many of how many episodes are over.
        keeper, watch: Told of everything that happens.

    Attributes:
        latencies: Milliseconds of every question, in the order in which they were asked.
        apart: Whether instructions differed at some time, and were asked about one after another.
    """

    def __init__(
        self,
        vector: Vector,
        actor: Actor | None,
        *,
        n_action_steps: int,
        advance: Callable[[int, int], None] = lambda done, total: None,
        keeper: Recorder | None = None,
        watch: Watch | None = None,
    ):
        self._vector, self._actor, self._rows = vector, actor, n_action_steps
        self._advance, self._keeper, self._watch = advance, keeper, watch
        self._running: dict[int, _Running] = {}
        self._over: list[Episode] = []
        self.latencies: list[float] = []
        self.apart = False

    def play(self, jobs: Iterable[Job]) -> list[Episode]:
        """Play episodes, and return what became of them, in the order of their numbers.

        Raises: PlanError, ObservationError where the environment cannot be played at all, or policy and environment
            do not fit; what the policy raises passes through. A simulator that ends loses its episode and no other.
        """
        waiting = deque(jobs)
        self._total = len(waiting)
        self._start(range(self._vector.count), waiting)
        while self._running:
            moved = self._vector.step(self._actions())
            self._start([i for i, result in moved.items() if not self._goes_on(i, result)], waiting)
        return sorted(self._over, key=lambda episode: episode.episode)

    def _goes_on(self, environment: int, result: Step | Lost) -> bool:
        """Take in what became of a step; False for the end of an episode."""
        own = self._running[environment]
        if isinstance(result, Step):
            if self._keeper is not None:
                self._keeper.add(environment, result)
            if self._watch is not None and self._actor is None:
                self._watch.acted(environment, own.observation, result.actions)
            own.observation = result.observation
            if not result.over:
                return True
        del self._running[environment]
        self._add(environment, own, result)
        return False

    def _start(self, free: Iterable[int], waiting: deque[Job]) -> None:
        """Give each free environment an episode, and another one while those are lost before their first step."""
        jobs = {i: waiting.popleft() for i in free if waiting}
        while jobs:
            again = []
            for i, result in self._vector.reset(jobs).items():
                if isinstance(result, Lost):
                    self._add(i, _Running(jobs[i], {}, ""), result)
                    again.append(i)
                else:
                    self._running[i] = _Running(jobs[i], result.observation, result.instruction)
            jobs = {i: waiting.popleft() for i in again if waiting}

    def _actions(self) -> dict[int, Mapping[str, np.ndarray] | None]:
        """What each environment that is in an episode is to do."""
        if self._watch is not None:
            self._watch.next_round()
        if self._actor is None:
            return dict.fromkeys(self._running)
        actions: dict[int, Mapping[str, np.ndarray] | None] = {}
        for group in self._groups(self._actor):
            actions.update(self._ask(self._actor, group))
        return actions

    def _groups(self, actor: Actor) -> list[list[int]]:
        """Environments that are asked about together: those with the same instruction.

        Of different lengths, the shorter one would be padded, and padding changes what the model answers.
        """
        if not actor.together:
            return [[i] for i in self._running]
        groups: dict[str, list[int]] = {}
        for i, own in self._running.items():
            groups.setdefault(own.instruction, []).append(i)
        self.apart |= len(groups) > 1
        return list(groups.values())

    def _ask(self, actor: Actor, group: Sequence[int]) -> dict[int, Mapping[str, np.ndarray]]:
        running = [self._running[i] for i in group]
        observation = batch([own.observation for own in running])
        questions = [Question(*own.job, own.queries) for own in running]
        began = time.perf_counter()
        answer = actor.answer(observation, questions)
        latency_ms = (time.perf_counter() - began) * 1e3
        refuse_non_finite(answer, "the policy")
        if self._watch is not None:
            self._watch.answered(group, observation, answer, latency_ms)
        if actor.timed:
            self.latencies.append(latency_ms)
        for own in running:
            own.queries += 1
            own.latencies += [latency_ms] if actor.timed else []
        rows = fitted(answer, self._vector.parts, len(group), self._rows)
        return {i: {key: value[place] for key, value in rows.items()} for place, i in enumerate(group)}

    def _add(self, environment: int, own: _Running, end: Step | Lost) -> None:
        latency = statistics.median(own.latencies) if own.latencies else None
        episode = Episode(*own.job, environment, own.instruction or None, queries=own.queries, latency_ms=latency)
        if isinstance(end, Lost):
            episode = replace(episode, lost=end.reason)
        else:
            success, any_row = end.success, end.success_any_row
            episode = replace(episode, success=success, success_any_row=any_row, steps=end.steps)
        self._over.append(episode)
        if self._keeper is not None:
            self._keeper.ended(environment, episode)
        self._advance(len(self._over), self._total)


def batch(observations: Sequence[Observation]) -> Observation:
    """Observations of several environments as one: arrays with a leading axis, texts as a list."""
    values = {key: [own[key] for own in observations] for key in observations[0]}
    return {key: own if isinstance(own[0], str) else np.stack(own) for key, own in values.items()}


def fitted(
    answer: Mapping[str, np.ndarray], parts: Mapping[str, int], samples: int, rows: int
) -> dict[str, np.ndarray]:
    """The parts that the environment wants, cut to the rows that are executed.

    Args:
        parts: Key -> how many numbers a row of it has.
    Returns: ``action.<part>`` [samples, rows, D].
    Raises: ObservationError for a part that is missing or of another shape.
    """
    missing = [key for key in parts if key not in answer]
    if missing:
        known = f"the environment wants {', '.join(parts)}; the policy gives {', '.join(answer)}"
        fix = "use the data config of this robot, with --data_config"
        raise ObservationError(f"the policy gives no {', '.join(missing)}", known=known, fix=fix)
    out = {}
    for key, width in parts.items():
        value = np.asarray(answer[key])
        if value.ndim != 3 or value.shape[0] != samples or value.shape[1] < rows or value.shape[2] != width:
            fix = "lower --n_action_steps to the policy's chunk, or use another data config"
            known = f"({samples}, {rows} or more, {width})"
            raise ObservationError(f"{key} has shape {value.shape}", known=known, fix=fix)
        out[key] = value[:, :rows]
    return out
