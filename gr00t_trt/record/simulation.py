"""What a simulation found: every episode, the success of every policy, pairs of policies on equal scenes. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .samples import Samples
from .success import Rate, mcnemar, share


@dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        episode: Its number, which its video has, too.
        seed: Of its scene, and of the policy's noise in it.
        environment: Which of the environments side by side played it.
        success: Of the last row of any chunk that was executed, as the original counts; None for a lost episode.
        success_any_row: Of any row at all: of an object that touched the goal and left it again, too.
        steps: Low-level ones; `queries`: questions to the policy, `latency_ms`: their median.
        lost: Why there is no result: the simulator ended, say.
    """

    episode: int
    seed: int
    environment: int = 0
    instruction: str | None = None
    success: bool | None = None
    success_any_row: bool | None = None
    steps: int = 0
    queries: int = 0
    latency_ms: float | None = None
    lost: str | None = None

    @property
    def outcome(self) -> str:
        """For tables: success, failure, lost."""
        if self.success is None:
            return "lost"
        return "success" if self.success else "failure, success in between" if self.success_any_row else "failure"


@dataclass(frozen=True)
class Played:
    """One policy in one environment.

    Attributes:
        name: What to call the policy: ``eager fp32``, ``server localhost:5555``, ``scripted``.
        policy: Model, device and what serves each submodule.
        latency_ms: Of all queries; None where nothing was asked.
    """

    name: str
    environment: str
    policy: Any = None
    episodes: list[Episode] = field(default_factory=list)
    latency_ms: Samples | None = None

    @property
    def finished(self) -> list[Episode]:
        return [one for one in self.episodes if one.success is not None]

    @property
    def lost(self) -> list[Episode]:
        return [one for one in self.episodes if one.success is None]

    @property
    def rate(self) -> Rate:
        """Of the episodes that were finished."""
        return Rate(sum(bool(one.success) for one in self.finished), len(self.finished))

    @property
    def rate_any_row(self) -> Rate:
        return Rate(sum(bool(one.success_any_row) for one in self.finished), len(self.finished))

    @property
    def sentence(self) -> str:
        """``success rate: 31 of 50, 62 % (48–74 %)``, and what else has to be said with it."""
        text = f"success rate: {self.rate.text}"
        if self.rate_any_row.successes != self.rate.successes:
            text += f"; by any row of a chunk {self.rate_any_row.text}"
        if self.lost:
            text += f"; {len(self.lost)} lost and not counted"
        return text


@dataclass(frozen=True)
class Pairs:
    """Two policies in the same episodes: the same scenes, and the same noise.

    Attributes:
        both, only_first, only_second, neither: Episodes by who succeeded; lost ones count nowhere.
    """

    first: str
    second: str
    both: int = 0
    only_first: int = 0
    only_second: int = 0
    neither: int = 0

    @classmethod
    def over(cls, first: Sequence[Played], second: Sequence[Played]) -> Pairs:
        """Episodes are paired by environment, number and seed; those that either policy lost are left out.

        Args:
            first, second: What either policy played, at least one each.
        """
        ended = {(p.environment, e.episode, e.seed): bool(e.success) for p in second for e in p.finished}
        seen = [(bool(e.success), ended.get((p.environment, e.episode, e.seed))) for p in first for e in p.finished]
        counts = [seen.count(pair) for pair in ((True, True), (True, False), (False, True), (False, False))]
        return cls(first[0].name, second[0].name, *counts)

    @property
    def count(self) -> int:
        return self.both + self.only_first + self.only_second + self.neither

    @property
    def p_value(self) -> float:
        """Of McNemar's exact test."""
        return mcnemar(self.only_first, self.only_second)

    @property
    def differing(self) -> Rate:
        """Episodes that ended differently."""
        return Rate(self.only_first + self.only_second, self.count)

    @property
    def verdict(self) -> str:
        """One sentence, which never calls policies equal because no difference was seen."""
        if not self.count:
            return f"{self.second} against {self.first}: no pair of finished episodes"
        ahead, behind = (self.first, self.second) if self.only_first > self.only_second else (self.second, self.first)
        if self.p_value < 0.05:
            return f"{ahead} succeeds more often than {behind}: p = {p_text(self.p_value)}, McNemar's exact test"
        seen = f"{self.differing.successes} of {self.count} pairs ended differently (95 %: {self.differing.span})"
        return f"{self.second} against {self.first}: no difference shown; {seen}"


def short(environment: str) -> str:
    """An environment as tables call it: ``PnPCupToDrawerClose``, ``CuttingboardToPan``, ``SO101PickPlace-v0``."""
    name = environment.rpartition("/")[2].partition("_GR1")[0]
    return name.removeprefix("PosttrainPnPNovelFrom").removesuffix("SplitA")


def p_text(value: float) -> str:
    """A p-value with two digits."""
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


@dataclass(frozen=True)
class Published:
    """What others measured in the same tasks; shares from 0 to 1, None where they did not say.

    Attributes:
        tasks: Environment -> share of its episodes that succeeded.
        episodes: Of each task.
    """

    model: str
    source: str
    mean: float | None = None
    tasks: Mapping[str, float] = field(default_factory=dict)
    episodes: int | None = None


@dataclass(frozen=True)
class Simulation:
    """What a simulation found.

    Attributes:
        n_envs: Environments side by side. max_episode_steps: Low-level steps after which an episode has failed.
        jolts: How probable it was in each step that the arm was pushed.
        played: Each policy in each environment, in the order in which they played.
        video_dir, dataset: Where videos and recorded episodes went.
        simulator: Versions of the simulator's packages, and what draws its pictures.
        suite: Name of the tasks that were played together, such as ``gr1_24``.
        tasks: How many these are; of those that could not be played, nothing is in `played`.
        published: What others measured in them.
        as_recorded: Of a replay, how many episodes ended as they were recorded.
    """

    n_envs: int = 1
    n_action_steps: int = 1
    max_episode_steps: int = 0
    jolts: float = 0.0
    played: list[Played] = field(default_factory=list)
    video_dir: str | None = None
    dataset: str | None = None
    simulator: Mapping[str, str | None] = field(default_factory=dict)
    suite: str | None = None
    tasks: int = 0
    published: list[Published] = field(default_factory=list)
    as_recorded: int | None = None

    @property
    def names(self) -> list[str]:
        """The policies, in the order in which they played."""
        return list(dict.fromkeys(one.name for one in self.played))

    @property
    def environments(self) -> list[str]:
        return list(dict.fromkeys(one.environment for one in self.played))

    def of(self, name: str) -> list[Played]:
        """What one policy played."""
        return [one for one in self.played if one.name == name]

    @property
    def pairs(self) -> list[Pairs]:
        """Every further policy against the first one, over all environments."""
        first, *others = self.names or [""]
        return [Pairs.over(self.of(first), self.of(name)) for name in others]

    def mean(self, name: str) -> float | None:
        """The mean of a policy's rates over all tasks of the suite, as benchmarks give it; None where one has none."""
        rates = [one.rate.rate for one in self.of(name)]
        known = [rate for rate in rates if rate is not None]
        return sum(known) / len(known) if known and len(known) == max(self.tasks, len(rates)) else None

    def pooled(self, name: str) -> Rate:
        """All of a policy's finished episodes."""
        rates = [one.rate for one in self.of(name)]
        return Rate(sum(rate.successes for rate in rates), sum(rate.trials for rate in rates))

    def latency(self, name: str) -> Samples | None:
        """Of all questions to a policy; None where none was timed."""
        known = [one.latency_ms for one in self.of(name) if one.latency_ms is not None]
        samples = tuple(ms for own in known for ms in own.samples)
        return replace(known[0], samples=samples) if known else None

    @property
    def sentences(self) -> list[str]:
        """What may be quoted: each policy's rate with its interval, and what the pairs show."""
        out = []
        for name in self.names:
            about = f"{name}: " if len(self.names) > 1 else ""
            told = [self._mean_sentence(name)] if self.suite else [one.sentence for one in self.of(name)]
            out += [f"{about}{text}" for text in told]
        if self.as_recorded is not None:
            out.append(f"as recorded: {self.as_recorded} of {sum(len(one.episodes) for one in self.played)}")
        return [*out, *(pair.verdict for pair in self.pairs)]

    def _mean_sentence(self, name: str) -> str:
        mean, finished = self.mean(name), sum(bool(one.finished) for one in self.of(name))
        told = f"unknown, for only {finished} have a finished episode" if mean is None else share(mean)
        return f"mean success rate of {self.tasks} tasks: {told}; all episodes: {self.pooled(name).text}"
