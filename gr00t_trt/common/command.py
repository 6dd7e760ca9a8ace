"""Command lines: how flags are spelled and checked, where messages go, exit statuses.

Messages go to stderr and results to stdout. Exit status: 0 done, 1 a check failed, 2 bad input or something missing,
130 interrupted (Ctrl-C, SIGTERM), 141 nobody reads the messages any more.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

from rich.console import Console

from ..errors import Gr00tError, RecordError, UsageError, nearest
from .progress import interruptible


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, raising UsageError where argparse would print the whole usage and exit."""

    def __init__(self, **settings: Any):
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raises: UsageError, always."""
        for pattern, words in _REWORDED.items():
            if match := re.fullmatch(pattern, message):
                raise UsageError(match.expand(words), fix=f"{self.prog} --help explains every flag")
        raise UsageError(message, fix=f"{self.prog} --help explains every flag")


_REWORDED = {
    r"argument (\S+): expected one argument": r"\1: its value is missing",
    r"argument (\S+): expected at least one argument": r"\1: its values are missing",
    r"argument (\S+): invalid int value: (.*)": r"\1: \2 is not a whole number",
    r"argument (\S+): invalid float value: (.*)": r"\1: \2 is not a number",
    r"argument (\S+): ignored explicit argument (.*)": r"\1 takes no value, and was given \2",
    r"argument (\S+): (.*)": r"\1: \2",
    r"the following arguments are required: (.*)": r"missing: \1",
}
"""What argparse says -> what a user reads."""


def switch(group: Any, name: str, *, help: str, default: bool | None = False) -> None:
    """A flag that can be switched on and off, ``--name`` and ``--no_name``, as NVIDIA's programs spell it."""
    group.add_argument(f"--{name}", action="store_true", default=default, help=help)
    group.add_argument(f"--no_{name}", dest=name, action="store_false", default=default, help=argparse.SUPPRESS)


def setting(group: Any, name: str, default: float | str, help: str, *, metavar: str = "N") -> None:
    """A flag whose default has the type of its values, and stands at the end of its help."""
    shown = "%(default)g" if isinstance(default, float) else "%(default)s"
    group.add_argument(f"--{name}", type=type(default), default=default, metavar=metavar, help=f"{help} [{shown}]")


def check_least(args: argparse.Namespace, **least: int) -> None:
    """Raises: UsageError for a flag whose number is below the `least` of its name."""
    for name, lowest in least.items():
        if getattr(args, name) < lowest:
            raise UsageError(f"--{name}: {getattr(args, name)} is out of range", known=f"at least {lowest}")


def underscored(argv: Sequence[str]) -> list[str]:
    """`--fn-name` is `--fn_name`: NVIDIA's scripts use both spellings, and so do fingers."""
    out = []
    for arg in argv:
        name, equals, value = arg.partition("=")
        out.append(name[:2] + name[2:].replace("-", "_") + equals + value if name.startswith("--") else arg)
    return out


def parse_flags(p: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The flags of a program, in either spelling.

    Raises: UsageError for an unknown flag (the nearest one is offered), a value of the wrong kind, or an empty one.
    """
    argv = underscored(argv)
    args, strangers = p.parse_known_args(argv)
    if strangers:
        raise _stray(p, argv, strangers[0])
    for flag, value in vars(args).items():
        # Most often a shell variable that is not set; Path("") would be the working directory.
        if isinstance(value, str) and not value.strip():
            raise UsageError(f"--{flag}: {value!r} is empty", fix="give it a value, or leave the flag out")
    return args


def _stray(p: argparse.ArgumentParser, argv: Sequence[str], stranger: str) -> UsageError:
    """The error for an argument that the parser has no place for."""
    flags = {option: action for action in p._actions for option in action.option_strings}
    if stranger.startswith("-"):
        name = stranger.partition("=")[0]
        # Without the dashes, which would make any two flags look alike.
        close = nearest(name.lstrip("-"), [flag[2:] for flag in flags if flag.startswith("--")])
        fix = f"did you mean --{close}?" if close else f"{p.prog} --help explains every flag"
        return UsageError(f"no such flag: {name}", fix=fix)
    before = next((flag for flag in reversed(argv[: argv.index(stranger)]) if flag.startswith("--")), "")
    flag = before.partition("=")[0]
    if flag in flags:
        takes = "no value" if flags[flag].nargs == 0 else "one value"
        return UsageError(f"{stranger!r} is one value too many: {flag} takes {takes}")
    return UsageError(f"{stranger!r} belongs to no flag", fix=f"{p.prog} --help explains every flag")


class _Console(Console):
    """rich exits with 1 when its output pipe closes; here 1 means a failed check, so the pipe's own status is kept."""

    def on_broken_pipe(self) -> None:
        discard(sys.stderr)
        raise BrokenPipeError


def message(error: Gr00tError) -> str:
    """An error as a user reads it: all its lines, or, for a slip of the finger, one with the suggestion in it."""
    text = "".join(c if c.isprintable() or c == "\n" else "?" for c in str(error))
    first, *rest = text.split("\n")
    if not rest or not rest[-1].startswith(SUGGESTION):
        return text
    known = rest[0].strip() if len(rest) > 1 and len(rest[0]) <= SHORT else ""
    return f"{first}; {rest[-1].strip()}{f' ({known})' if known else ''}"


SUGGESTION = "  did you mean "
SHORT = 60
"""Length up to which the list of what is known stays in a message that has a suggestion."""


PIPE_WIDTH = 140
"""Columns of a table where no terminal says how many there are."""


@contextmanager
def on_stdout() -> Iterator[Console]:
    """A console for results: what it is given goes to stdout when the block ends, in one piece.

    Raises: RecordError where stdout cannot be written; BrokenPipeError where nobody reads it.
    """
    out = Console(emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    with out.capture() as captured:
        yield out
    try:
        print(captured.get().rstrip("\n"), flush=True)
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise RecordError(f"stdout cannot be written: {error.strerror or error}") from error


def discard(stream: TextIO) -> None:
    """Send what is still buffered nowhere: Python flushes at exit and would complain once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def run_program(
    main: Callable[[Sequence[str], Console], int], argv: Sequence[str] | None, *, interrupted: str = "interrupted"
) -> int:
    """Call `main(argv, console)` and turn how it ends into an exit status; messages go to stderr.

    Args:
        argv: None for the process's own.
        interrupted: What to say after Ctrl-C or SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    console = _Console(stderr=True, emoji=False)
    try:
        with interruptible():
            return main(argv, console)
    except Gr00tError as error:
        console.print(message(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print(interrupted, style="yellow")
        return 130
    except BrokenPipeError:
        return 141  # as if SIGPIPE had ended us
