"""`gr00t-trt serve`: a server, or one question to a server."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console

from ..common.command import run_program
from ..plans import flags
from .api_token import redacted
from .flags import parse, plan_of

SPIN = "GOMP_SPINCOUNT"
"""How often OpenMP's threads look for work before they sleep."""


def main(argv: Sequence[str] | None = None) -> int:
    """Serve, or ask a server once; messages go to stderr, `ready <address>` or the answer to stdout."""
    return run_program(_main, argv, interrupted="interrupted before the server was ready, or for the second time")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    if args.print_plan:
        flags.print_plan(plan_of(args), shlex.join(["gr00t-trt", "serve", *redacted(argv)]))
        return 0
    if args.server and (late := wait_briefly()):
        console.print(f"note: {late}", markup=False, highlight=False, soft_wrap=True)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import, and a client none at all.
    if args.server and args.replicas is not None:
        from .replicas import serve_replicas

        serve_replicas(args, argv, console)
    elif args.server:
        from .start import serve

        serve(args, argv, console)
    else:
        from .ask import ask

        ask(args)
    return 0


def wait_briefly() -> str | None:
    """Let OpenMP's threads wait for one another only briefly; to be called before PyTorch is loaded.

    They turn in circles, for longer than a core is theirs where others want it too: one large message, or another
    program, then holds up everybody's requests for seconds. 2000 turns cost a request on an idle machine a tenth; to
    sleep at once more than doubles it.

    Returns: Why that is not so, where PyTorch is loaded already; None where it is, or no CPU computes.
    """
    torch = sys.modules.get("torch")
    if SPIN in os.environ or torch is None:
        os.environ.setdefault(SPIN, "2000")
        return None
    if torch.cuda.is_available():
        return None
    return f"PyTorch was loaded before the server: where other programs want its cores, start Python with {SPIN}=2000"
