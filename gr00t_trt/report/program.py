"""`gr00t-trt report RECORD...`: records as one HTML page, and as PNG pictures. Never imports torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from ..common.command import Parser, parse_flags, run_program
from ..common.files import prepare_file, write_whole
from ..common.progress import progress
from .page import page
from .png import draw_all
from .views import load

EXAMPLES = """examples:
  gr00t-trt report records/20261121T130255123Z-fp16-all.json
  gr00t-trt report bench/records/*.json --output report.html --plots plots
  gr00t-trt report rtx4090.json thor.json --title "Which board for the arm?"

The page needs no network and nothing beside it: send it, print it, put it in a wiki.
Exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output any more.
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="gr00t-trt report", description="Records as one self-contained HTML page.", epilog=EXAMPLES)
    p.add_argument("records", nargs="+", metavar="RECORD", help="JSON records, in the order they are to be shown")
    p.add_argument("--output", default="report.html", metavar="FILE", help="the page; replaced if there [%(default)s]")
    p.add_argument("--plots", metavar="DIR", help="also write PNG pictures there; needs matplotlib [none]")
    p.add_argument("--title", default="GR00T N1.5 inference", metavar="TEXT", help="heading of the page [%(default)s]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Write the page, and the pictures; their paths go to stdout, the page's last."""
    return run_program(_main, argv)


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    with progress(console) as steps:
        steps.step("reading records")
        loaded = load(args.records)
        prepare_file(args.output, "page", "--output")
        written: list[Path] = []
        if args.plots:
            steps.step("drawing pictures")
            for done, one in enumerate(loaded):
                steps.advance(done, len(loaded))
                written += draw_all(one, Path(args.plots))
        steps.step("writing the page")
        write_whole(page(loaded, args.title), args.output, "page", "--output")
    for path in (*written, Path(args.output)):
        print(path, flush=True)
    return 0
