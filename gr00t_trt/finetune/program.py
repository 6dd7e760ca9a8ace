"""`gr00t-trt finetune`: a checkpoint trained further with recorded demonstrations.

The last line on stdout is the path of the checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich.console import Console

from ..common.command import run_program
from . import flags
from .launch import inside, launch

parser = flags.parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the checkpoint's path to stdout."""
    return run_program(_main, argv, interrupted="interrupted; what was trained since the last checkpoint is lost")


def _main(argv: Sequence[str], console: Console) -> int:
    args = flags.parse(argv)
    # Read when PyTorch is loaded. Threads that wait for the next product would spin, and take the cores from whatever
    # else runs, the workers that prepare samples among it: on a busy machine that is twenty times as slow.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if args.num_gpus > 1 and not inside():
        from .ranks import check_count

        check_count(args.num_gpus, args.device)
        return launch(argv, args.num_gpus)
    from .job import finetune
    from .ranks import joined

    with joined(args.device) as ranks:
        console.quiet = not ranks.first
        try:
            return finetune(args, console, ranks)
        finally:
            console.quiet = False
