"""What a simulation does: policies opened one after another, each played in each environment; recordings replayed."""

from __future__ import annotations

import argparse
import gc
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.install import install
from ..common.interface import ModalityConfig
from ..common.progress import Steps
from ..errors import ObservationError, PlanError, UsageError
from ..evaluate.about import About, record_of
from ..evaluate.policies import ServedPolicy, open_policy
from ..evaluate.timeline import Timeline
from ..record.samples import Samples
from ..record.schema import Inputs, Record
from ..record.simulation import Played, Simulation, short
from ..serve.api_token import redacted
from .actors import Actor, RecordedActions, served_actor
from .candidates import Candidate, named
from .defaults import DEFAULT_ENV, OURS
from .environments import Settings, find
from .episodes import Job, Session
from .so101 import MODALITIES, NAMES
from .suite import PUBLISHED, environments
from .vector import Vector
from .watched import Watch

if TYPE_CHECKING:
    from .recording import Recorder

SCRIPTED, REPLAYED = "scripted", "replayed"
NONE_FINISHED = "no episode was finished: there is no success rate"


@dataclass
class _Job:
    """A simulation under way, and what it has found so far."""

    args: argparse.Namespace
    steps: Steps
    found: list[Played] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    about: list[About] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    dataset: str | None = None

    def note(self, what: str, why: str) -> None:
        self.notes.append((what, why))

    def vector(
        self, name: str, env_id: str, config: Mapping[str, ModalityConfig], episodes: int, *, keep_frames: bool = False
    ) -> Vector:
        """Environments side by side, no more than there are episodes; `name` is who will act in them."""
        args = self.args
        count = min(args.n_envs, episodes)
        if count < args.n_envs:
            self.note(f"--n_envs {args.n_envs}", f"{count} are enough for {episodes} episodes")
        self.steps.step(f"making {count} x {env_id}")
        # Plain lists, which another process can be sent.
        seen = {kind: ModalityConfig(list(own.delta_indices), list(own.modality_keys)) for kind, own in config.items()}
        rows, limit, videos = args.n_action_steps, args.max_episode_steps, self._video_dir(name, env_id)
        return Vector(Settings(env_id, seen, rows, limit, videos, keep_frames, args.jolts), count)

    def _video_dir(self, name: str, env_id: str) -> Path | None:
        """Where videos go; several policies and tasks have a folder each, since their videos have the same names."""
        args = self.args
        if args.video_dir is None:
            return None
        apart = ([name] if args.compare else []) + ([short(env_id)] if args.suite else [])
        return Path(args.video_dir, *(re.sub(r"[^A-Za-z0-9.]+", "-", part).strip("-") for part in apart))

    def play(self, name: str, about: About, env_id: str, session: Session, jobs: Sequence[Job]) -> Played:
        """Play episodes, and put them into the record."""
        self.steps.step(f"playing {len(jobs)} episodes: {name}, {short(env_id)}")
        episodes = session.play(jobs)
        samples = Samples(tuple(session.latencies), device=about.where) if session.latencies else None
        played = Played(name, env_id, about.facts, episodes, samples)
        self.found.append(played)
        if session.apart:
            self.note(
                "instructions", "those that differ were asked one after another: padding would change the actions"
            )
        return played

    def record(self, command: Sequence[str], **more: Any) -> Record:
        args = self.args
        inputs = Inputs(batch_size=args.n_envs, seed=args.seed, dataset=self.found[0].environment)
        record = record_of(args, ["simulate", *redacted(command)], self.about, inputs=inputs)
        record.skip_all(self.notes)
        record.simulation = Simulation(
            n_envs=args.n_envs,
            n_action_steps=args.n_action_steps,
            max_episode_steps=args.max_episode_steps,
            jolts=args.jolts,
            played=self.found,
            video_dir=args.video_dir,
            dataset=self.dataset,
            simulator=self.facts,
            **more,
        )
        return record


def run_simulation(
    args: argparse.Namespace, argv: Sequence[str], chosen: Sequence[Candidate], timeline: Timeline | None, steps: Steps
) -> tuple[Record, str | None]:
    """Play what the flags say.

    Args:
        chosen: The policies; none for the environment's own expert.
    Returns: The record, and why the run has failed, or None.
    Raises: Gr00tError for what cannot be played at all.
    """
    job = _Job(args, steps)
    where = environments(args.suite) if args.suite else (str(args.env_name),)
    find(where[0])  # before a model is loaded
    if args.save_dataset is not None:
        _recording("--save_dataset")
    for name, actor, about in _actors(job, chosen):
        job.about.append(about)
        for env_id in where:
            _play(job, name, actor, about, env_id, timeline)
    suite = {"suite": args.suite, "tasks": len(where), "published": list(PUBLISHED[args.suite])} if args.suite else {}
    return job.record(argv, **suite), _failed(job)


def _failed(job: _Job) -> str | None:
    """Why the run has failed; None for one that did what it was told."""
    if not any(one.finished for one in job.found):
        return NONE_FINISHED
    if job.args.save_dataset is not None and job.dataset is None:
        return f"{job.args.save_dataset}: not written, for there is no episode to keep"
    return None


def _actors(job: _Job, chosen: Sequence[Candidate]) -> Iterator[tuple[str, Actor | None, About]]:
    """The policies, each opened when its turn comes, after the one before is gone."""
    if not chosen:
        yield SCRIPTED, None, About({"model": SCRIPTED})
    for one in chosen:
        policy, about = open_policy(one.args, job.steps)
        actor, name = _actor(job, policy), named(one.args)
        yield name, actor, about
        del policy, actor
        gc.collect()


def _actor(job: _Job, policy: Any) -> Actor:
    if isinstance(policy, ServedPolicy):
        actor, why = served_actor(policy)
        if why is not None:
            job.note("noise", why)
        return actor
    from .local import LocalActor

    return LocalActor(policy)


def _play(job: _Job, name: str, actor: Actor | None, about: About, env_id: str, timeline: Timeline | None) -> None:
    """One policy in one environment. In a suite, a later task that cannot be played is left out, and told."""
    args, rows = job.args, job.args.n_action_steps
    jobs = [(number, args.seed + number) for number in range(args.n_episodes)]
    config = MODALITIES if actor is None else actor.get_modality_config()
    saved = args.save_dataset is not None
    try:
        with job.vector(name, env_id, config, len(jobs), keep_frames=saved) as vector:
            if actor is None and not vector.has_expert:
                raise UsageError(f"--scripted: {env_id} has no expert of its own", known=DEFAULT_ENV)
            with _recorder(job, vector, config, name, env_id) as keeper:
                watch = None if timeline is None else Watch(timeline, rows)
                session = Session(
                    vector, actor, n_action_steps=rows, advance=job.steps.advance, keeper=keeper, watch=watch
                )
                job.play(name, about, env_id, session, jobs)
            job.facts.update(vector.facts)
    except (PlanError, ObservationError) as error:
        if not (args.suite and job.found):
            raise
        job.note(env_id, f"not played: {str(error).splitlines()[0]}")


def _recording(flag: str) -> Any:
    """The module `recording`. Raises: PlanError without PyTorch, which a client need not have."""
    try:
        from . import recording
    except ImportError as error:
        what = f"{flag}: datasets are written and read with PyTorch and pyarrow: {error}"
        raise PlanError(what, fix=install("torch", "pyarrow")) from error
    return recording


@contextmanager
def _recorder(
    job: _Job, vector: Vector, config: Mapping[str, ModalityConfig], policy: str, env_id: str
) -> Iterator[Recorder | None]:
    """What keeps the episodes of ``--save_dataset``; the dataset is there when the block ends, and not before."""
    args = job.args
    if args.save_dataset is None:
        yield None
        return
    recording = _recording("--save_dataset")
    ours = env_id in OURS
    # As LeRobot calls the motors of this arm, so that its own recordings and ours have the same columns.
    names = {part: [f"{name}.pos" for name in own] for part, own in NAMES.items()} if ours else {}
    robot = "so101_follower" if ours else str(args.data_config)
    writer = recording.DatasetWriter(args.save_dataset, config, fps=vector.control_hz, robot=robot, names=names)
    try:
        yield recording.Recorder(writer, successes_only=args.keep == "successes")
        if len(writer):
            job.steps.step(f"writing {len(writer)} episodes: {args.save_dataset}")
            setting = recording.Setting(
                env_id, args.n_action_steps, args.max_episode_steps, args.jolts, policy, dict(vector.facts)
            )  # fmt: skip
            job.dataset = str(writer.close(setting.about()))
    finally:
        writer.abandon()


def run_replay(args: argparse.Namespace, argv: Sequence[str], steps: Steps) -> tuple[Record, str | None]:
    """Play the actions of a recorded dataset again, from the same seeds.

    Returns: The record, and which episodes ended differently, or None.
    Raises: DatasetError for a dataset that no simulation recorded, and as `run_simulation`.
    """
    recording = _recording("--replay")
    steps.step(f"reading {args.replay}")
    recorded = recording.read_recorded(args.replay)
    own, numbers = recorded.setting, list(recorded.seeds)[: args.n_episodes]
    args.env_name, args.jolts = own.environment, own.jolts
    args.n_action_steps, args.max_episode_steps = own.n_action_steps, own.max_episode_steps
    find(own.environment)
    job, about = _Job(args, steps, dataset=args.replay), About({"model": REPLAYED})
    with job.vector(REPLAYED, own.environment, {}, len(numbers)) as vector:
        actor = RecordedActions(own.n_action_steps, recorded.actions)
        session = Session(vector, actor, n_action_steps=own.n_action_steps, advance=steps.advance)
        jobs = [(number, recorded.seeds[number]) for number in numbers]
        played = job.play(REPLAYED, about, own.environment, session, jobs)
        job.facts.update(vector.facts)
    for name in sorted({*own.simulator, *job.facts}):
        before, now = own.simulator.get(name), job.facts.get(name)
        if before != now:
            job.note(name, f"recorded with {before or 'none'}, played with {now or 'none'}")
    differing = [one.episode for one in played.episodes if one.success != recorded.successes[one.episode]]
    record = job.record(argv, as_recorded=len(numbers) - len(differing))
    return record, _different(differing, len(numbers))


def _different(numbers: Sequence[int], count: int) -> str | None:
    if not numbers:
        return None
    shown = ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")
    return f"{len(numbers)} of {count} replayed episodes ended differently: {shown}"
