"""Scripts that complete the command line in a shell, written by shtab. Never imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from ..errors import UsageError, unknown
from .install import install_extra

SHELLS = ("bash", "zsh")


def print_completion(
    shells: Sequence[str], parsers: Mapping[str, argparse.ArgumentParser], helps: Mapping[str, str]
) -> None:
    """Print the script for a shell on stdout.

    Args:
        shells: What the command line names: one of `SHELLS`.
        parsers, helps: Command -> its flags, and what it does in a few words.
    Raises: UsageError for anything but one known shell, and where shtab is not installed.
    """
    if len(shells) != 1:
        raise UsageError("--print_completion takes one shell", known=SHELLS)
    if shells[0] not in SHELLS:
        raise unknown(UsageError, "--print_completion", shells[0], SHELLS)
    try:
        import shtab
    except ImportError:
        raise UsageError("completion scripts are written by shtab", fix=install_extra("completion")) from None
    whole = argparse.ArgumentParser(prog="gr00t-trt")
    commands = whole.add_subparsers()
    for name, parser in parsers.items():
        child = commands.add_parser(name, parents=[parser], add_help=False, help=helps[name])
        child.prog = parser.prog
    print(shtab.complete(whole, shell=shells[0]))
