"""Paths from a command line, looked at before anything is loaded. Never imports torch."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from ..errors import UsageError, nearest

DEMO = "demo_data"
"""The folder of NVIDIA's demonstration data in Isaac-GR00T's repository, which programs take by default."""

FETCH_DEMO = (
    "get it, with git-lfs installed: git clone --depth 1 --branch n1.5-release "
    "https://github.com/NVIDIA/Isaac-GR00T && ln -s Isaac-GR00T/demo_data . ; or use --dataset_path synthetic"
)


def user_cache() -> Path:
    """Where this package keeps what it can make again: ``$XDG_CACHE_HOME/gr00t_trt`` or ``~/.cache/gr00t_trt``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr00t_trt"


def check_dataset(path: str) -> None:
    """Raises: UsageError for one that is neither a folder nor ``synthetic``, with how to get the demonstration data."""
    if path == "synthetic" or is_folder(path, "--dataset_path"):
        return
    what = f"--dataset_path {path}: no such folder"
    if DEMO in Path(path).parts:
        raise UsageError(what, fix=FETCH_DEMO)
    if "/" not in path and nearest(path, ["synthetic"]):
        raise UsageError(what, fix="did you mean synthetic?")
    raise UsageError(what, known="a LeRobot dataset, or synthetic", fix="check the path")


def check_model(path: str, flag: str = "--model_path") -> None:
    """Raises: UsageError for a file, and for a misspelt ``synthetic``; a hub id or a missing folder is seen later."""
    if is_folder(path, flag) or "/" in path or path.startswith("synthetic"):
        return
    if close := nearest(path, ["synthetic", "synthetic:full"]):
        raise UsageError(f"{flag} {path}: no such folder", fix=f"did you mean {close}?")


def check_output_folder(path: str | None, flag: str) -> None:
    """Raises: UsageError for a folder to write into whose place a file has taken."""
    for place in [] if path is None else [Path(path), *Path(path).parents]:
        if is_file(place, flag):
            raise UsageError(f"{flag} {path}: {place} is a file, not a folder", fix="name another folder")


def is_folder(path: str, flag: str) -> bool:
    """Whether a path is a folder. Raises: UsageError for a file, and for what can be no path."""
    if is_file(path, flag):
        raise UsageError(f"{flag} {path}: a file, not a folder", fix="name the folder that holds it")
    return Path(path).is_dir()


def is_file(path: str | Path, flag: str) -> bool:
    """Whether a path is there and no folder. Raises: UsageError for what can be no path."""
    try:
        return Path(path).exists() and not Path(path).is_dir()
    except (OSError, ValueError) as error:  # ValueError: a NUL in it
        reason = "too long" if getattr(error, "errno", None) == errno.ENAMETOOLONG else str(error)
        raise UsageError(f"{flag}: {str(path)[:60]!r} cannot be a path: {reason}") from error
