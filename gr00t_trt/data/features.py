"""Parts and views of a dataset without modality.json, from the features of its info.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .layout import DEFAULT_COLUMNS, DatasetInfo, ModalityLayout, PartLayout
from .metadata import PartInfo

TASK_COLUMN = "task_index"
TASK_NAMES = ("human.task_description", "task")
"""Annotations under which the task of every row is read."""


def layout_from_features(info: DatasetInfo) -> ModalityLayout:
    """The layout of LeRobot's own datasets, which have no modality.json.

    ``observation.state`` is the part ``state.state``, and each of its named elements a part of width 1 beside it,
    such as ``state.gripper.pos``; ``action`` likewise. A camera ``observation.images.front`` is ``video.front``.
    """
    annotation = dict.fromkeys(TASK_NAMES, TASK_COLUMN)
    annotation |= {k.partition(".")[2]: k for k in info.features if k.startswith("annotation.")}
    return ModalityLayout(
        info.path,
        _parts("state", info.features.get(DEFAULT_COLUMNS["state"])),
        _parts("action", info.features.get(DEFAULT_COLUMNS["action"])),
        _views(info.cameras()),
        annotation,
    )


def _parts(section: str, feature: Any) -> dict[str, PartLayout]:
    """The whole vector under the section's own name, then every element that has a name."""
    width = _width(feature)
    if not width:
        return {}
    continuous = "float" in str(feature.get("dtype", "float32"))
    column = DEFAULT_COLUMNS[section]
    parts = {section: PartLayout(0, width, column, PartInfo(width, continuous=continuous))}
    names = _names(feature.get("names"))
    if len(names) == width == len(set(names)):
        for index, name in enumerate(names):
            info = PartInfo(1, continuous=continuous)
            parts.setdefault(name, PartLayout(index, index + 1, column, info))
    return parts


def _width(feature: Any) -> int:
    """Number of elements of a vector feature; 0 for anything else."""
    shape = feature.get("shape") if isinstance(feature, Mapping) else None
    if not isinstance(shape, list) or not all(isinstance(side, int) and 0 < side < 10**6 for side in shape):
        return 0
    return shape[0] if len(shape) == 1 else 0


def _names(names: Any) -> list[str]:
    """Names of elements: a list of texts, or groups of them as in ``{"motors": [...]}``."""
    if isinstance(names, Mapping):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    return names if isinstance(names, list) and all(isinstance(name, str) and name for name in names) else []


def _views(cameras: list[str]) -> dict[str, str]:
    """Last component of each camera's feature -> feature; the whole name where two share it."""
    short = [camera.rpartition(".")[2] for camera in cameras]
    return {name if short.count(name) == 1 else camera: camera for name, camera in zip(short, cameras, strict=True)}
