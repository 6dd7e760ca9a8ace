"""The API token: where a program has it from, and how it is kept out of what others read. Never imports torch.

A flag can be seen by every user of the machine (`ps`) and stays in the shell's history; a file or the environment
cannot.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..policy.flags import optional

VARIABLE = "GR00T_API_TOKEN"
HIDDEN = "***"

_FLAG = "--api_token"
_MAX_BYTES = 4096


def token_flags(group: Any, help: str) -> None:
    """Add `--api_token_file` and `--api_token`; `help` says what the token is for."""
    group.add_argument("--api_token_file", metavar="FILE", help=f"a file that holds {help} [${VARIABLE}, else none]")
    shown = f"{help} itself; `ps` shows it, so rather use a file or ${VARIABLE}"
    group.add_argument(_FLAG, type=optional, metavar="TOKEN", help=shown)


def token_of(args: argparse.Namespace) -> str | None:
    """The token of the flags or the environment; None for none.

    Raises: UsageError for both flags, a file that cannot be read, and what can be no token: anything but one word of
        printable ASCII.
    """
    if args.api_token is not None and args.api_token_file is not None:
        raise UsageError("--api_token and --api_token_file exclude each other", fix="give one of them")
    if args.api_token_file is not None:
        return _checked(_read(args.api_token_file), f"--api_token_file {args.api_token_file}")
    if args.api_token is not None:
        return _checked(args.api_token, _FLAG)
    found = os.environ.get(VARIABLE)
    return _checked(found, f"${VARIABLE}") if found else None


def redacted(argv: Sequence[str]) -> list[str]:
    """A command line for records and logs: the token is `***`."""
    out: list[str] = []
    for arg in argv:
        name, equals, _ = arg.partition("=")
        own = name.replace("-", "_") == _FLAG.replace("-", "_")
        hidden = f"{name}={HIDDEN}" if own and equals else arg
        out.append(HIDDEN if out and out[-1].replace("-", "_") == _FLAG.replace("-", "_") else hidden)
    return out


def _read(path: str) -> str:
    try:
        with Path(path).expanduser().open("rb") as file:
            return file.read(_MAX_BYTES + 1).decode("utf-8", "replace").strip()
    except OSError as error:
        why = error.strerror or error
        raise UsageError(f"--api_token_file {path}: cannot be read: {why}", fix="name a file that holds it") from error


def _checked(token: str, where: str) -> str:
    if not token or len(token) > _MAX_BYTES or not all("!" <= letter <= "~" for letter in token):
        what = f"{where}: {'nothing' if not token else 'something else'} where a token should be"
        raise UsageError(what, known="one word of printable ASCII, such as `openssl rand -hex 32` prints")
    return token
