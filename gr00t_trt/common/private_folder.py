"""Folders whose content is trusted, because nobody else can have put it there. Never imports torch."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def make_private(folder: Path) -> None:
    """Make a folder for this user alone; one that exists is left as it is. Raises: OSError."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def distrust(path: Path) -> str | None:
    """Why somebody else may have written a file or folder, in words; None for one that only this user, or root, can.

    A link is not followed, and a path that is not there is no cause. Nothing is known where there are no user ids.
    """
    if not hasattr(os, "getuid"):
        return None
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode):
        # The link itself is as safe as the folder that it lies in; what counts is where it leads.
        return distrust(Path(os.path.realpath(path))) if path.exists() and _own(found.st_uid) else "it is a dead link"
    if not _own(found.st_uid):
        return f"it belongs to user {found.st_uid}, and this is user {os.geteuid()}"
    if found.st_mode & _OTHERS_MAY_WRITE:
        return f"others may write to it (mode {stat.S_IMODE(found.st_mode):04o})"
    return None


def _own(uid: int) -> bool:
    return uid in (os.geteuid(), 0)
