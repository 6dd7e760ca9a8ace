"""`--also TAG=CONFIG`: further kinds of robots for the model of a server, read before its weights are."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..data import DatasetMetadata
from ..errors import PlanError, UsageError
from ..model import load_config, resolve_checkpoint
from ..policy.choice import choose_data
from ..policy.fit import fitted
from ..policy.policy import Gr00tPolicy, statistics_of


@dataclass(frozen=True)
class Further:
    """One of them: `tag` chooses the weights, `metadata` has the statistics of that robot."""

    tag: str
    config: Any
    metadata: DatasetMetadata

    def policy(self, first: Gr00tPolicy) -> Gr00tPolicy:
        """Its policy on the model of another. Raises: PlanError for another number of actions in a chunk."""
        horizon = first.model.action_horizon
        own = len(self.config.modality_config()["action"].delta_indices)
        if own != horizon:
            what = f"--also {self.tag}: its data config has chunks of {own} actions, the first robot's {horizon}"
            raise PlanError(what, fix="use data configs with equally long chunks, or a server for each")
        return Gr00tPolicy(
            first.model,
            self.config,
            self.metadata,
            first.prompter,
            bracketed_instruction=first.bracketed_instruction,
        )


def further_robots(args: argparse.Namespace) -> list[Further]:
    """What `--also` names.

    Raises: UsageError for what cannot be read, and for a tag that is named twice; CheckpointError, PlanError as
        `load_policy`.
    """
    found = list(_read(args))
    tags = [each.tag for each in found]
    if args.also:
        folder = resolve_checkpoint(args.model_path, weights=False)
        tags.insert(0, choose_data(folder, args.data_config, args.embodiment_tag)[1])
    twice = next((tag for tag in tags if tags.count(tag) > 1), None)
    if twice is not None:
        raise UsageError(
            f"--also: {twice} is named twice, and requests could not say which is meant",
            fix="give every kind of robot a tag of its own",
        )
    return found


def _read(args: argparse.Namespace) -> Iterator[Further]:
    for text in args.also:
        tag, equals, rest = text.partition("=")
        name, _, file = rest.partition(",")
        if not (tag and equals and name):
            known = "TAG=CONFIG or TAG=CONFIG,METADATA, such as oxe_droid=oxe_droid"
            raise UsageError(f"--also: {text!r} names no robot", known=known)
        folder = resolve_checkpoint(args.model_path)
        config, tag = choose_data(folder, name, tag)
        metadata = statistics_of(folder, config, tag, file or None, name)
        fitted(config, metadata, load_config(folder or args.model_path))
        yield Further(tag, config, metadata)
