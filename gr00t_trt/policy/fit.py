"""A data config, statistics and a model's geometry held against one another, before anybody waits for weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from ..common.interface import ModalityConfig, Observation
from ..common.notice import LOGGER
from ..data import (
    ComposedModalityTransform,
    DatasetMetadata,
    LeRobotDataset,
    PartInfo,
    example_observation,
    validate_observation,
)
from ..data.embodiments import check_tag
from ..errors import DatasetError, Gr00tError, PlanError
from ..model.n1_5.config import Gr00tConfig

FAR = 1.0
"""How far outside the statistics' range a state has to lie to be counted, in widths of that range."""


def fitted(
    config: Any, metadata: DatasetMetadata, geometry: Gr00tConfig
) -> tuple[Mapping[str, ModalityConfig], ComposedModalityTransform]:
    """The keys and the transforms of a data config, which have taken the statistics and been tried both ways.

    Raises: CheckpointError for statistics that no recording can have; PlanError where the three do not fit, naming
        the key and both values.
    """
    modalities, transform = config.modality_config(), config.transform()
    check_tag(config, metadata.embodiment_tag)
    metadata.check(key for name in ("video", "state", "action") for key in _keys(modalities, name))
    head = geometry.action_head
    keys, fix = _keys(modalities, "action"), "use a data config that was made for this checkpoint"
    width = sum(metadata.part(key).width for key in keys)
    if width > head.action_dim:
        what = f"the data config's actions are {width} wide ({', '.join(keys)}), the model's {head.action_dim}"
        raise PlanError(what, fix=fix)
    transform.set_metadata(metadata)
    state = _state_of_example(modalities, metadata, transform)
    if state is not None and state.shape[-1] != head.max_state_dim:
        what = f"the data config makes states {state.shape[-1]} wide, the model takes {head.max_state_dim}"
        raise PlanError(what, fix=fix)
    _try_inverse(keys, metadata, transform, head.action_dim)
    return modalities, transform


def _keys(modalities: Mapping[str, ModalityConfig], name: str) -> list[str]:
    return list(modalities[name].modality_keys) if name in modalities else []


def _state_of_example(
    modalities: Mapping[str, ModalityConfig], metadata: DatasetMetadata, transform: ComposedModalityTransform
) -> Any:
    data, _ = validate_observation(example_observation(modalities, metadata), modalities, metadata)
    try:
        state = transform.apply(data).get("state")
    except Gr00tError as error:
        raise PlanError(f"the data config's transforms do not take its own statistics' means: {error}") from error
    if state is not None and not torch.isfinite(torch.as_tensor(state)).all():
        raise PlanError("the data config's transforms make NaN or infinity of the statistics' means", known="numbers")
    return state


def _try_inverse(
    keys: Iterable[str], metadata: DatasetMetadata, transform: ComposedModalityTransform, action_dim: int
) -> None:
    """Actions that cannot be turned back into the robot's units are found here, not when the arm moves."""
    try:
        parts = transform.unapply({"action": torch.zeros(1, 1, action_dim)})
    except Gr00tError as error:
        raise PlanError(f"the data config's transforms have no inverse: {error}") from error
    found = {key: value for key, value in parts.items() if key.startswith("action.")}
    if set(found) != set(keys):
        what = f"the inverse of the data config's transforms gives {', '.join(sorted(found)) or 'no action'}"
        raise PlanError(what, known=", ".join(keys), fix="name every action key in its ConcatTransform")
    for key, value in found.items():
        width, wanted = value.shape[-1], metadata.part(key).width
        if width != wanted or not torch.isfinite(torch.as_tensor(value)).all():
            what = f"{key}: the inverse of the data config's transforms is {width} wide, or not finite"
            raise PlanError(what, known=f"{wanted} finite numbers, as the metadata declares")


def check_same_robot(dataset: LeRobotDataset, metadata: DatasetMetadata) -> None:
    """Hold what a dataset says of its parts and cameras against what the checkpoint was trained on.

    Raises: DatasetError naming the key and both.
    """
    for section in ("state", "action"):
        config = dataset.modality_config.get(section)
        for key in config.modality_keys if config else ():
            part = getattr(dataset.layout, section).get(key.partition(".")[2])
            if part is not None and part.info != metadata.part(key):
                raise _another_robot(dataset, metadata, key, _words(part.info), _words(metadata.part(key)))
    for key in _keys(dataset.modality_config, "video"):
        recorded = dataset.info.view(dataset.layout.video[key.partition(".")[2]]).resolution
        if recorded != metadata.view(key).resolution:
            both = (f"{width} x {height} pixels" for width, height in (recorded, metadata.view(key).resolution))
            raise _another_robot(dataset, metadata, key, *both)


def _words(part: PartInfo) -> str:
    kind = "absolute" if part.absolute else "relative"
    steps = "" if part.continuous else ", not continuous"
    return f"{part.width} wide, {kind}{steps}" + (f", {part.rotation_type}" if part.rotation_type else "")


def _another_robot(
    dataset: LeRobotDataset, metadata: DatasetMetadata, key: str, recorded: str, trained: str
) -> DatasetError:
    return DatasetError(
        f"{dataset.path}: {key} is {recorded}",
        known=f"{metadata.source} ({metadata.embodiment_tag}): {trained}",
        fix="use a recording of the robot that the checkpoint was trained for, or that robot's --embodiment_tag",
    )


class StateRanges:
    """Notices states far outside what the model was trained on, such as degrees for radians.

    Such a state is answered, since nobody knows where a robot may go; it is counted, and said once per key.

    Attributes:
        outside: State key -> observations with a value more than `FAR` widths of its range outside of it.
        seen: Observations.
    """

    def __init__(self, keys: Iterable[str], metadata: DatasetMetadata):
        self.seen = 0
        self.outside: dict[str, int] = {}
        self._ranges: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._trained: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for key in keys:
            own = metadata.statistics(key)
            # A joint that was held still says nothing of its scale; its part's widest range does.
            widths = np.maximum(own.max - own.min, (own.max - own.min).max())
            if widths.max() > 0:
                self.outside[key] = 0
                self._ranges[key] = (own.min - FAR * widths, own.max + FAR * widths)
                self._trained[key] = (own.min, own.max)

    def look(self, observation: Observation) -> None:
        """Count a checked observation, ``state.*`` [B, T, D]."""
        self.seen += 1
        for key, (low, high) in self._ranges.items():
            value = observation[key]
            if ((value < low) | (value > high)).any():
                self.outside[key] += 1
                if self.outside[key] == 1:
                    LOGGER.warning(self._words(key, value))

    def notes(self) -> list[tuple[str, str]]:
        """Key and how often, for a record; empty when nothing was outside."""
        return [
            (key, f"{count} of {self.seen} observations lie far outside the range that the model was trained on")
            for key, count in self.outside.items()
            if count
        ]

    def _words(self, key: str, value: np.ndarray) -> str:
        low, high = self._ranges[key]
        *_, index = (int(i) for i in np.argwhere((value < low) | (value > high))[0])
        worst = value.reshape(-1, value.shape[-1])[:, index]
        worst = worst[np.abs(worst - (low[index] + high[index]) / 2).argmax()]
        least, most = (bound[index] for bound in self._trained[key])
        return (
            f"{key}[{index}] is {worst:g}, far outside {least:g} to {most:g}, which the model was trained on; "
            "are the units right (radians, not degrees)?"
        )
