"""Episodes kept as a LeRobot dataset, and the actions of such a dataset played again.

Imports what writes and reads datasets, and with it torch: only where a dataset is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from ..data.lerobot import LeRobotDataset
from ..data.meta_files import read_lines, read_object
from ..data.writer import DatasetWriter, EpisodeWriter
from ..errors import DatasetError
from ..record.files import typed
from ..record.simulation import Episode
from .step import Step

ABOUT = "simulation"
"""Entry of info.json that says in which environment a dataset was recorded."""


@dataclass(frozen=True)
class Setting:
    """What has to be the same for an episode to go the same way again, besides its seed.

    Attributes:
        policy: Who acted.
        simulator: As in `record.simulation.Simulation`.
    """

    environment: str
    n_action_steps: int
    max_episode_steps: int
    jolts: float = 0.0
    policy: str | None = None
    simulator: Mapping[str, str] = field(default_factory=dict)

    def about(self) -> dict[str, dict[str, object]]:
        """As an entry of info.json."""
        return {ABOUT: asdict(self)}


class Recorder:
    """Writes what a session plays into a dataset.

    Args:
        writer: Of a dataset with the keys that the environments show; who made it closes it.
        successes_only: Episodes that failed are left out.
    """

    def __init__(self, writer: DatasetWriter, *, successes_only: bool):
        self._writer, self._successes_only = writer, successes_only
        self._open: dict[int, EpisodeWriter] = {}

    def add(self, environment: int, step: Step) -> None:
        """The rows of a chunk. Raises: DatasetError where they cannot be written."""
        if environment not in self._open:
            self._open[environment] = self._writer.episode()
        for number, frame in enumerate(step.frames):
            action = {key: value[number] for key, value in step.actions.items()}
            self._open[environment].add(frame, action)

    def ended(self, environment: int, episode: Episode) -> None:
        """Keep an episode or drop it; a lost one is dropped. Raises: DatasetError."""
        rows = self._open.pop(environment, None)
        if rows is None:
            return
        if episode.success is None or (self._successes_only and not episode.success):
            rows.drop()
            return
        facts = {"seed": episode.seed, "success": episode.success}
        self._writer.keep(episode.episode, rows, episode.instruction or "", **facts)


@dataclass(frozen=True)
class Recorded:
    """A dataset that a simulation recorded.

    Attributes:
        actions: Episode -> ``action.<part>`` float32 [N, D].
        seeds: Of the episodes; `successes`: how they ended.
    """

    setting: Setting
    actions: Mapping[int, Mapping[str, np.ndarray]]
    seeds: Mapping[int, int]
    successes: Mapping[int, bool]


def read_recorded(path: str) -> Recorded:
    """Read a dataset's actions and seeds. Raises: DatasetError for one that no simulation recorded, and as a reader."""
    dataset = LeRobotDataset(path, {})
    setting = _setting(dataset.info.path)
    layout = dataset.layout.action
    actions = {}
    for episode in dataset.episodes:
        columns = {part.column: dataset.column(episode.index, part.column) for part in layout.values()}
        actions[episode.index] = {
            f"action.{name}": columns[part.column][:, part.start : part.end].astype(np.float32)
            for name, part in layout.items()
        }
    facts = _facts(Path(path) / "meta" / "episodes.jsonl")
    return Recorded(setting, actions, {i: facts[i][0] for i in actions}, {i: facts[i][1] for i in actions})


def _setting(info: Path) -> Setting:
    """Raises: DatasetError for a dataset of another origin, RecordError for an entry of another kind."""
    content = read_object(info)
    if ABOUT not in content:
        what = f"{info}: it does not say in which simulation it was recorded"
        raise DatasetError(what, known=f'an entry "{ABOUT}"', fix="record it with simulate --save_dataset")
    return typed(Setting, content[ABOUT], ABOUT, str(info))


def _facts(listing: Path) -> dict[int, tuple[int, bool]]:
    """Episode -> seed and success. Raises: DatasetError."""
    lines = [line for _, line in read_lines(listing)]
    try:
        return {line["episode_index"]: (int(line["seed"]), bool(line["success"])) for line in lines}
    except (KeyError, TypeError, ValueError) as error:
        what = f"{listing}: an episode has no seed, or does not say whether it succeeded"
        raise DatasetError(what, fix="record it with simulate --save_dataset") from error
