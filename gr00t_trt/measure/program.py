"""`gr00t-trt measure FOLDER`: every row that there is time for, written to one record after each."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..common.command import Parser, parse_flags, run_program
from ..errors import PlanError, unknown
from ..plans.schema import PRECISIONS

BUDGET_S, REHEARSAL_S = 500.0, 75.0
"""Under nine minutes and under one and a half, with PyTorch's import before and a compiler's last breath after."""

EPILOG = """\
examples:
  everything, on a fresh machine with a GPU (or the CPU's rows, without one), in under nine minutes:
    gr00t-trt measure results
  a rehearsal of a minute with a tiny model:
    gr00t-trt measure results --model_path synthetic
  what a GPU would be asked, without measuring anything:
    gr00t-trt measure --list cuda

The record is written after every row, so that a run that is killed keeps what it has. Rows for which the budget is too
short say so in it. Exit status: 0 done, 1 a row failed or its accuracy is outside the gate, 2 bad input, 130
interrupted.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="gr00t-trt measure",
        description="Measure the model in many forms: eager, restructured step by step, compiled, as one CUDA graph.",
        epilog=EPILOG,
    )
    p.add_argument("folder", nargs="?", metavar="FOLDER", help="where the record goes")
    p.add_argument(
        "--model_path",
        default="synthetic:full",
        metavar="PATH",
        help="checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [%(default)s]",
    )
    p.add_argument(
        "--dataset_path",
        default="synthetic",
        metavar="PATH",
        help="LeRobot v2 dataset whose observations are used, or `synthetic` [%(default)s]",
    )
    p.add_argument("--data_config", default="fourier_gr1_arms_only", metavar="NAME", help="[%(default)s]")
    p.add_argument("--embodiment_tag", default="gr1", metavar="TAG", help="[%(default)s]")
    p.add_argument("--device", metavar="DEVICE", help="cuda:0, cpu [cuda:0 where there is one]")
    p.add_argument("--precision", metavar="P", help=f"{', '.join(PRECISIONS)} [bf16 on a GPU, fp32 on a CPU]")
    p.add_argument(
        "--budget_s",
        type=float,
        metavar="S",
        help=f"seconds for the whole run, loading included [{BUDGET_S:g}; {REHEARSAL_S:g} for the tiny model]",
    )
    p.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the initial noise [%(default)s]")
    p.add_argument("--list", metavar="cuda|cpu", help="print the rows for a kind of device and measure nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the list of rows) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; the record keeps the rows that were finished")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    if args.list is not None:
        if args.list not in ("cuda", "cpu"):
            raise unknown(PlanError, "--list", args.list, ("cuda", "cpu"))
        _list(args.list)
        return 0
    if args.folder is None:
        raise PlanError("command line: no FOLDER for the record", fix="gr00t-trt measure results")
    if args.precision is not None and args.precision.lower() not in PRECISIONS:
        raise unknown(PlanError, "--precision", args.precision, PRECISIONS)
    budget_s = args.budget_s
    if budget_s is None:
        budget_s = REHEARSAL_S if args.model_path == "synthetic" else BUDGET_S
    if not budget_s > 0:
        raise PlanError(f"--budget_s: {budget_s:g} is no time at all", known="seconds above 0")
    if not 0 <= args.seed < 2**63:
        raise PlanError(f"--seed: {args.seed} is out of range", known="0 to 2^63 - 1")
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from .run import Request, run
    from .table import render

    request = Request(
        folder=Path(args.folder),
        model_path=args.model_path,
        dataset_path=args.dataset_path,
        data_config=args.data_config,
        embodiment_tag=args.embodiment_tag,
        device=args.device,
        precision=args.precision and args.precision.lower(),
        budget_s=budget_s,
        seed=args.seed,
        command=f"gr00t-trt measure {shlex.join(argv)}",
    )
    # Compilers print, and what reads our stdout expects a path there.
    with contextlib.redirect_stdout(sys.stderr):
        record, path = run(request, console)
    render(record, console)
    print(path, flush=True)
    return 0 if record["exit_reason"] == "done" else 1


def _list(kind: str) -> None:
    from .run import rows_for
    from .table import plan_table

    out = Console(emoji=False)
    out.print(plan_table(rows_for(kind)))
