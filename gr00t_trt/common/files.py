"""Result files, checked to be writable before a long run and written atomically; JSON from files of unknown origin."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RecordError

MAX_JSON_DEPTH = 100


def parse_json(text: str) -> Any:
    """The value of a JSON text; a byte order mark before it is skipped, NaN and Infinity are numbers.

    Raises: ValueError for malformed text, and for arrays and objects nested deeper than `MAX_JSON_DEPTH`.
    """
    too_deep = f"nested deeper than {MAX_JSON_DEPTH} levels"
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [each for each in level if isinstance(each, (dict, list))]
        if not level:
            return value
        level = [child for each in level for child in (each.values() if isinstance(each, dict) else each)]
    raise ValueError(too_deep)


def prepare_file(path: str | Path, what: str, flag: str) -> None:
    """Find out before a long run that its result could not be written; leaves nothing behind but the folder.

    Args:
        what: What is to be written, for the message: ``record``, ``plan``.
        flag: The flag that names another path.
    Raises: RecordError for a path that cannot be written.
    """
    with _temporary(Path(path), what, flag) as probe:
        probe.touch()


def write_whole(text: str, path: str | Path, what: str, flag: str) -> Path:
    """Write a text file whole or not at all, making the folder where needed; an older file at `path` is replaced.

    Args:
        what, flag: As in `prepare_file`.
    Returns: `path`.
    Raises: RecordError for a path that cannot be written, or a full disk.
    """
    path = Path(path)
    with _temporary(path, what, flag) as temporary:
        with open(temporary, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    return path


@contextmanager
def _temporary(path: Path, what: str, flag: str) -> Iterator[Path]:
    """A name beside `path`, whose folder is there, for a file that is gone afterwards unless it was renamed."""
    # Renaming a file to /dev/null or /dev/stdout, as root, would take them away from the whole machine.
    if os.path.isdir(path):  # unlike Path.is_dir, no error for a name that is too long
        raise RecordError(f"{path}: a folder, not a file", fix=f"add a file name for the {what}")
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        said = f"{path}: a link or a device, and a {what} replaces what it is written to"
        raise RecordError(said, fix="name a file; --json prints the record on stdout")
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        why = getattr(error, "strerror", None) or str(error)
        raise RecordError(
            f"{path}: the {what} cannot be written: {why}", fix=f"name another path with {flag}"
        ) from error
