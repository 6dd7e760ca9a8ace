"""What the dimensions of an action part are called, and in which unit they are, as far as a dataset tells."""

from __future__ import annotations

from collections.abc import Sequence

from ..data import LeRobotDataset

ANGLES = ("axis_angle", "euler_angles")
"""Beginnings of the rotation types that are measured in radians; quaternions, matrices and 6D rows have no unit."""


def joint_labels(dataset: LeRobotDataset, key: str, width: int) -> list[str]:
    """One text per dimension of an action part: part, dimension, the dataset's own name, the unit where it is known.

    Args:
        key: Such as ``action.left_arm``.
        width: How many dimensions it has.
    Returns: Such as ``left arm 3 · motor_3``, ``wrist 0 · roll [rad]``, or ``gripper`` for a part of one.
    """
    name = key.partition(".")[2]
    said = name.replace("_", " ")
    places = [said] if width == 1 else [f"{said} {number}" for number in range(width)]
    part = dataset.layout.action.get(name)
    if part is None:  # how far the task is done, which no column holds
        return places
    named = [*_names(dataset.info.features.get(part.column))[part.start : part.end]]
    named += [""] * (width - len(named))
    unit = " [rad]" if str(part.info.rotation_type).startswith(ANGLES) else ""
    own = ["" if text in ("", name) else f" · {text}" for text in named]
    return [f"{place}{text}{unit}" for place, text in zip(places, own, strict=True)]


def _names(feature: object) -> Sequence[str]:
    """The names of a feature's elements; none where they are not one text each."""
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, dict):
        names = [name for group in names.values() if isinstance(group, list) for name in group]
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
