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
from ..errors import UsageError, unknown
from ..plans.flags import precision_flag
from ..plans.precisions import PRECISIONS, find_precision, precision_names
from ..policy.flags import check_seed, source_flags

BUDGET_S, REHEARSAL_S = 555.0, 75.0
"""Under 570 s and under one and a half minutes, with PyTorch's import before and a compiler's last breath after."""

EPILOG = """\
examples:
  everything, on a fresh machine with a GPU (or the CPU's rows, without one), in under 570 s:
    gr00t-trt measure results
  the same with what was compiled before, on this machine or on another with the same versions and GPU:
    gr00t-trt measure results --cache results/compile-cache.bin
  a rehearsal of a minute with a tiny model:
    gr00t-trt measure results --model_path synthetic
  what a GPU would be asked and how long that should take, without measuring anything:
    gr00t-trt measure --list cuda

The record is written after every row, so that a run that is killed keeps what it has. Rows for which the budget is too
short say so in it. A cache file holds code that loading runs: use none of somebody else's.

Exit status: 0 done, 1 a row failed or its accuracy is outside the gate, 2 bad input, 130 interrupted.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="gr00t-trt measure",
        description="Measure the model in many forms: eager, restructured step by step, compiled, as one CUDA graph.",
        epilog=EPILOG,
    )
    p.add_argument("folder", nargs="?", metavar="FOLDER", help="where the record goes")
    source_flags(
        p,
        *("model_path", "dataset_path", "data_config", "embodiment_tag", "metadata", "tokenizer", "device"),
        model_path="synthetic:full",
        dataset_path="synthetic",
        helps={"dataset_path": "LeRobot dataset whose observations are used, or `synthetic` [%(default)s]"},
    )
    precision_flag(p, " [bf16 on a GPU, fp32 on a CPU]", quantized=False)
    help = f"seconds for the whole run, loading included [{BUDGET_S:g}; {REHEARSAL_S:g} for the tiny model]"
    p.add_argument("--budget_s", type=float, metavar="S", help=help)
    source_flags(p, "seed")
    p.add_argument(
        "--cache",
        metavar="FILE",
        help="compiled code: read first, where it is of the same torch, Triton and GPU, and written after each build; "
        "compilers keep theirs in the folder compile-cache beside it, or where the environment says",
    )
    help = "print the rows for a kind of device, for a GPU with the seconds they should take, and measure nothing"
    p.add_argument("--list", metavar="cuda|cpu", help=help)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the list of rows) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; the record keeps the rows that were finished")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    if args.list is not None:
        if args.list not in ("cuda", "cpu"):
            raise unknown(UsageError, "--list", args.list, ("cuda", "cpu"))
        _list(args.list)
        return 0
    if args.folder is None:
        raise UsageError("missing: FOLDER, for the record", fix="gr00t-trt measure results")
    precision = None
    if args.precision is not None:
        row = find_precision(args.precision)
        if row is None or row.quantized:  # quantised ones are for accuracy so far
            known = [name for name in precision_names() if not PRECISIONS[name].quantized]
            raise unknown(UsageError, "--precision", args.precision, known)
        precision = row.name
    budget_s = args.budget_s
    if budget_s is None:
        budget_s = REHEARSAL_S if args.model_path == "synthetic" else BUDGET_S
    if not budget_s > 0:
        raise UsageError(f"--budget_s: {budget_s:g} is no time at all", known="seconds above 0")
    check_seed(args.seed)
    cache = Path(args.cache) if args.cache else None
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ..policy.source import Source
    from ..report.terminal import render
    from .compile_cache import keep_in

    if cache is not None:  # before a compiler asks where
        keep_in(cache.parent / "compile-cache")
    from . import job

    command, source = f"gr00t-trt measure {shlex.join(argv)}", Source.of(args)
    wanted = job.Wanted(Path(args.folder), budget_s, source, args.device, precision, args.seed, command, cache)
    # Compilers print, and what reads our stdout expects a path there.
    with contextlib.redirect_stdout(sys.stderr):
        record, path = job.run(wanted, console)
    render(record, console)
    print(path, flush=True)
    return 0 if record.exit_reason == "done" else 1


def _list(kind: str) -> None:
    from ..report.tables import planned_table
    from ..report.terminal import shown
    from .estimates import expected
    from .job import rows_for

    out, rows = Console(emoji=False), sorted(rows_for(kind), key=lambda row: row.priority)
    named = [(row.group, row.name, row.calls) for row in rows]
    if kind != "cuda":
        out.print(shown(planned_table(named)))
        return
    budget = expected(rows)
    timed = [(round(one.at_s), round(one.build_s), round(one.row_s, 1)) for one in budget]
    out.print(shown(planned_table(named, timed)))
    last = budget[-1]
    out.print(
        f"All of it ends after {last.at_s + last.build_s + last.row_s:.0f} s on an H200 that has compiled nothing yet, "
        f"of {BUDGET_S:.0f} s; what does not fit is left out, from the last row up.",
        soft_wrap=True,
    )
