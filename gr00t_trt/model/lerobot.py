"""The geometry of a GR00T N1.5 that LeRobot saved: its own config.json tells only which model it was trained from."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import CheckpointError
from .config_files import read_config
from .config_section import Section
from .folders import CONFIG, Kind, identify
from .n1_5.config import Gr00tConfig
from .n1_5.synthetic import full_config


def read_lerobot_config(folder: Path) -> tuple[Gr00tConfig, str]:
    """The geometry of LeRobot's checkpoint in `folder`, and where it comes from, in words.

    It is that of its base model where `base_model_path` is a folder here, else the released one.

    Raises: CheckpointError for a base model that is no GR00T N1.5.
    """
    file = folder / CONFIG
    given = Section.read(file).text("base_model_path", "nvidia/GR00T-N1.5-3B")
    places = (Path(os.path.expanduser(given)), folder / given)
    base = next((path for path in places if os.path.isfile(path / CONFIG)), None)
    if base is None:
        return full_config(), f"NVIDIA's release (LeRobot's {file} names {given}, which is no folder here)"
    if identify(base, weights=False) is not Kind.N1_5:
        raise CheckpointError(
            f"{file}: base_model_path: {given} is not one that LeRobot trains from", known=Kind.N1_5.value
        )
    return read_config(base), f"{base / CONFIG} (base_model_path of LeRobot's {file})"
