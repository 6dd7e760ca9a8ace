"""`gr00t-trt serve`: a server, or one question to a server."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ..common.command import run_program
from .flags import parse


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or ask a server once; messages go to stderr, `ready <address>` or the answer to stdout."""
    return run_program(_main, argv, interrupted="interrupted before the server was ready, or for the second time")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import, and a client none at all.
    if args.server:
        from .start import serve

        serve(args, argv, console)
    else:
        from .ask import ask

        ask(args)
    return 0
