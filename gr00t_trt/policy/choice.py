"""Which data config and embodiment tag are meant: the chosen ones, or those that the checkpoint knows better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..data import data_config as data_config_from_name
from ..data import embodiment_index
from ..data.embodiments import check_tag
from ..errors import PlanError
from ..model.folders import Kind, identify
from .flags import FLAGS, Default
from .lerobot import LeRobotDataConfig


def choose_data(folder: Path | None, data_config: Any = None, embodiment_tag: str | None = None) -> tuple[Any, str]:
    """The data config and the embodiment tag for a checkpoint.

    Args:
        folder: A checkpoint's, with or without its weights; None for a synthetic model.
        data_config: A name, ``module:Class``, or an object; None or a `flags.Default` leaves it to the checkpoint.
        embodiment_tag: A tag, or likewise.
    Raises: CheckpointError for a folder that is no checkpoint; PlanError for an unknown name, and for a choice that
        contradicts the checkpoint.
    """
    if folder is None or identify(folder, weights=False) is not Kind.LEROBOT:
        config = FLAGS["data_config"]["default"] if data_config is None else data_config
        config = data_config_from_name(config) if isinstance(config, str) else config
        default = embodiment_tag or FLAGS["embodiment_tag"]["default"]
        made_for = getattr(config, "embodiment_tag", None)
        tag = str(embodiment_tag) if chosen(embodiment_tag) else made_for or default
        embodiment_index(tag)
        check_tag(config, tag)
        return config, tag
    own = data_config if isinstance(data_config, LeRobotDataConfig) else LeRobotDataConfig(folder)
    if chosen(data_config) and data_config is not own:
        name = data_config if isinstance(data_config, str) else type(data_config).__name__
        raise PlanError(
            f"--data_config {name}: {folder} is LeRobot's checkpoint, which was trained with its own",
            known=[*own.video_keys, *own.state_keys, *own.action_keys, *own.language_keys],
            fix="leave --data_config out: it is made from the checkpoint's own files",
        )
    if chosen(embodiment_tag) and embodiment_tag != own.tag:
        raise PlanError(
            f"--embodiment_tag {embodiment_tag}: LeRobot trained {folder} as {own.tag}",
            known=f"{own.tag}, projector {own.embodiment}",
            fix="leave --embodiment_tag out",
        )
    return own, own.tag


def chosen(value: Any) -> bool:
    """Whether somebody chose the value."""
    return value is not None and not isinstance(value, Default)
