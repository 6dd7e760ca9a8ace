"""Several datasets in one training: how much of each, and statistics that hold for all of one embodiment tag.

The weights and the rule for statistics are those of Isaac-GR00T, gr00t/data/dataset.py, with its training script's
settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from ..data import DatasetMetadata, PartInfo, Statistics, VideoInfo
from ..errors import DatasetError, UsageError

Info = TypeVar("Info", PartInfo, VideoInfo)


def shares(weights: Sequence[float], steps: Sequence[int], *, balanced: bool) -> np.ndarray:
    """The share of each dataset in what is trained on; float64 [datasets], which sum to 1.

    Args:
        weights: Raw weights.
        steps: Frames of each dataset.
        balanced: Weights are multiplied with the number of frames, so that equal ones mean a share by size.
    Raises: UsageError for a weight that is none.
    """
    for weight in weights:
        if not 0 < weight < float("inf"):
            raise UsageError(f"--dataset_weights: {weight}", known="numbers above 0", fix="leave a dataset out instead")
    found = np.asarray(weights, np.float64) * (np.asarray(steps, np.float64) if balanced else 1.0)
    return np.asarray(found / found.sum())


def episode_shares(lengths: Sequence[int], *, balanced: bool) -> np.ndarray:
    """The share of each episode in its dataset, by length or equal ones; float64 [episodes], which sum to 1."""
    found = np.asarray(lengths, np.float64) if balanced else np.ones(len(lengths))
    return np.asarray(found / found.sum())


def merge(found: Sequence[DatasetMetadata], weights: Sequence[float], needed: Sequence[str]) -> DatasetMetadata:
    """One metadata for datasets of the same embodiment tag.

    Means and variances are those of the mixture, extremes those of all; quantiles are weighted averages, as the
    original's, and so only near those of the mixture.

    Args:
        weights: Share of each in the training, in any unit.
        needed: Full keys that the data config uses; they must be alike in all. Other parts and views are kept where
            they are.
    Raises: DatasetError naming the key and both datasets.
    """
    if len(found) == 1:
        return found[0]
    for other in found[1:]:
        for key in needed:
            _check_alike(key, found[0], other)
    share = np.asarray(weights, np.float64) / np.sum(weights)
    state, action = _common([one.state for one in found]), _common([one.action for one in found])
    return DatasetMetadata(
        found[0].embodiment_tag,
        _common([one.video for one in found]),
        state,
        action,
        {name: _merged([one.state_statistics[name] for one in found], share) for name in state},
        {name: _merged([one.action_statistics[name] for one in found], share) for name in action},
        source=", ".join(one.source for one in found),
    )


def _check_alike(key: str, first: DatasetMetadata, other: DatasetMetadata) -> None:
    section = key.partition(".")[0]
    mine, theirs = ((one.view(key).resolution if section == "video" else one.part(key)) for one in (first, other))
    if mine != theirs:
        fix = "give each its own --embodiment_tag, or convert one"
        known = f"{_words(mine)}, as in {first.source}: both are trained as {first.embodiment_tag}"
        raise DatasetError(f"{other.source}: {key} is {_words(theirs)}", known=known, fix=fix)


def _words(what: Any) -> str:
    if isinstance(what, PartInfo):
        return f"{what.width} wide, {'absolute' if what.absolute else 'relative'}, rotation_type {what.rotation_type}"
    return f"{what[0]} x {what[1]} pixels"


def _common(entries: Sequence[Mapping[str, Info]]) -> dict[str, Info]:
    """Parts or views that all have and that are alike; frames per second do not matter."""

    def alike(name: str) -> bool:
        values = [each.get(name) for each in entries]
        return len({value.resolution if isinstance(value, VideoInfo) else value for value in values}) == 1

    return {name: value for name, value in entries[0].items() if alike(name)}


def _merged(found: Sequence[Statistics], share: np.ndarray) -> Statistics:
    values = {name: np.stack([getattr(one, name) for one in found]) for name in vars(found[0])}

    def average(rows: np.ndarray) -> np.ndarray:
        return np.asarray(share @ rows)

    mean = average(values["mean"])
    variance = average(values["std"] ** 2 + values["mean"] ** 2) - mean**2
    return Statistics(
        max=values["max"].max(0),
        min=values["min"].min(0),
        mean=mean,
        std=np.sqrt(np.maximum(variance, 0.0)),
        q01=average(values["q01"]),
        q99=average(values["q99"]),
    )


def constant_columns(metadata: DatasetMetadata, keys: Sequence[str]) -> list[str]:
    """Elements of the used parts that never change, such as ``action.right_hand[4, 5]``: there is nothing to learn."""
    out = []
    for key in keys:
        statistics = metadata.statistics(key)
        if still := np.flatnonzero(statistics.min == statistics.max).tolist():
            out.append(f"{key}[{', '.join(map(str, still))}]")
    return out
