"""What the flags name: a checkpoint and a row of a dataset, as a policy and an observation."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..common.interface import Observation
from ..common.progress import Steps
from ..data import DatasetMetadata, LeRobotDataset, synthetic_dataset, validate_observation
from ..errors import DatasetError, PlanError
from ..model import resolve_checkpoint
from ..model.checkpoint import Cast
from ..model.folders import identify
from .choice import choose_data
from .fit import check_same_robot
from .flags import FLAGS
from .lerobot import LeRobotDataConfig
from .policy import Gr00tPolicy, load_policy, statistics_of


@dataclass(frozen=True)
class Source:
    """A policy and an observation for it; `flags` explains each.

    Attributes:
        dataset_path: None takes the policy's example observation instead of a recorded one.
    """

    model_path: str = "nvidia/GR00T-N1.5-3B"
    dataset_path: str | None = "./demo_data/robot_sim.PickNPlace"
    data_config: str = FLAGS["data_config"]["default"]
    embodiment_tag: str = FLAGS["embodiment_tag"]["default"]
    metadata: str | None = None
    tokenizer: str | None = None
    bracketed_instruction: bool = False
    denoising_steps: int | None = None
    episode: int = 0
    step: int = 0
    frame_lookup: str = "index"

    @staticmethod
    def of(args: argparse.Namespace) -> Source:
        """From the flags that a program has; the rest keeps its defaults."""
        return Source(**{f.name: getattr(args, f.name) for f in fields(Source) if hasattr(args, f.name)})

    @property
    def about(self) -> str:
        """Which observation it is, in a few words."""
        if self.dataset_path is None:
            return "an example observation"
        return f"{Path(self.dataset_path).name}, episode {self.episode}, step {self.step}"

    def data(self) -> tuple[Any, str]:
        """The data config and the embodiment tag; those of LeRobot's checkpoint where none was chosen.

        Raises: Gr00tError, as `choice.choose_data`.
        """
        return self._data

    @cached_property
    def _data(self) -> tuple[Any, str]:
        # Once: a hub would be asked, and a user's own file of a data config run, at every look.
        return choose_data(resolve_checkpoint(self.model_path, weights=False), self.data_config, self.embodiment_tag)

    def dataset(self) -> LeRobotDataset:
        """The dataset of a source that has one; `synthetic` is generated once and reused."""
        assert self.dataset_path is not None
        config, _ = self.data()
        path = Path(self.dataset_path)
        if self.dataset_path == "synthetic":
            if isinstance(config, LeRobotDataConfig):
                what = f"there is none with the cameras of LeRobot's checkpoint {self.model_path}"
                raise PlanError(f"--dataset_path synthetic: {what}", fix="give a dataset that the robot recorded")
            path = synthetic_dataset(data_config=self.data_config)
        return LeRobotDataset(path, config.modality_config(), frame_lookup=self.frame_lookup)

    def statistics(self, dataset: LeRobotDataset) -> DatasetMetadata:
        """What a policy of this source normalises with, held against the dataset that it is to be asked about.

        They are the checkpoint's or those of `metadata`; a synthetic model has none and takes the dataset's.
        Raises: Gr00tError for none, and for a dataset of another robot.
        """
        config, tag = self.data()
        folder = resolve_checkpoint(self.model_path)
        if folder is not None:
            identify(folder)
        if folder is None and self.metadata is None:
            return dataset.metadata(tag)
        found = statistics_of(folder, config, tag, self.metadata, None)
        check_same_robot(dataset, found)
        return found

    def policy(
        self,
        device: torch.device,
        steps: Steps,
        *,
        statistics: DatasetMetadata | None = None,
        dtype: torch.dtype | Cast = torch.float32,
    ) -> Gr00tPolicy:
        """The policy.

        Args:
            dtype: Of its weights, as `load_model` takes it. A synthetic model is drawn in fp32, whatever it says: its
                values would have to be drawn again for every reference.
            statistics: For a synthetic model, which has none of its own; others bring theirs.
        Raises: Gr00tError, as `load_policy`.
        """
        steps.step(f"loading the model: {self.model_path}")
        folder = resolve_checkpoint(self.model_path)
        return load_policy(
            folder or self.model_path,  # the hub is asked once
            data_config=self.data_config,
            embodiment_tag=self.embodiment_tag,
            metadata=self.metadata or (statistics if folder is None else None),
            tokenizer=self.tokenizer,
            denoising_steps=self.denoising_steps,
            bracketed_instruction=self.bracketed_instruction,
            dtype=dtype if folder is not None else torch.float32,
            device=device,
        )


def load_source(
    source: Source, device: torch.device, steps: Steps, *, dtype: torch.dtype | Cast = torch.float32
) -> tuple[Gr00tPolicy, Observation]:
    """The policy of a source, and its observation.

    Args:
        dtype: As in `Source.policy`.
    Raises: Gr00tError for anything missing; what is small is found before the weights are read.
    """
    source.data()  # a wrong name is told at once
    steps.step(f"reading the observation: {source.about}")
    if source.dataset_path is None:
        policy = source.policy(device, steps, dtype=dtype)
        return policy, policy.example()
    dataset = source.dataset()
    observation = recorded_step(dataset, source.episode, source.step)
    metadata = source.statistics(dataset)
    # The policy checks it too, but only once it has its weights, which takes a while.
    validate_observation(observation, dataset.modality_config, metadata)
    return source.policy(device, steps, statistics=metadata, dtype=dtype), observation


def recorded_step(dataset: LeRobotDataset, episode: int, step: int) -> Observation:
    """One row of a dataset as an observation. Raises: DatasetError for a row that the episode does not have."""
    length = next((e.length for e in dataset.episodes if e.index == episode), None)
    if length and step >= length:
        raise DatasetError(f"--step: episode {episode} has no row {step}", known=f"0 to {length - 1}")
    return dataset.step(episode, step)


def read_observation(source: Source, steps: Steps) -> Observation | None:
    """The recorded observation of a source; None for one without a dataset."""
    if source.dataset_path is None:
        return None
    steps.step(f"reading an observation: {source.dataset_path}")
    return recorded_step(source.dataset(), source.episode, source.step)
