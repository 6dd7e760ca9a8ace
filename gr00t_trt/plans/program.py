"""`gr00t-trt plans`: the plans that come with the package, and one of them as YAML. Never imports torch."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence

from rich.console import Console

from ..common.command import Parser, parse_flags, run_program
from ..errors import PlanError, unknown
from .load import load_plan
from .shipped import ShippedPlan, shipped_plans

WIDTH = 80

EPILOG = """\
examples:
  what there is, what each is for and what it needs:
    gr00t-trt plans
  one of them, to start your own from:
    gr00t-trt plans fp16 > robot.yaml
    gr00t-trt run --config robot.yaml
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="gr00t-trt plans",
        description="The plans that come with the package. Every program takes their names: --config NAME.",
        epilog=EPILOG,
    )
    p.add_argument("name", nargs="?", metavar="NAME", help="print this plan as YAML [a list of all]")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def _main(argv: Sequence[str], _: Console) -> int:
    plans, name = shipped_plans(), parse_flags(parser(), argv).name
    if name is None:
        print("\n".join(map(listed, plans.values())))
    elif name in plans:
        sys.stdout.write(plans[name].path.read_text(encoding="utf-8"))
    else:
        raise unknown(PlanError, "plan", name, plans)
    return 0


def listed(plan: ShippedPlan) -> str:
    """One plan in a few lines: its name, backends and precisions, what it is for, what it needs."""
    settings = load_plan(plan.path)
    own = settings.submodules.values()
    backends = dict.fromkeys((settings.backend, *(one.backend for one in own if one.backend)))
    precisions = dict.fromkeys((settings.precision, *(one.precision for one in own if one.precision)))
    lines = [f"{plan.name:<22}{' and '.join(backends)}, {' and '.join(precisions)}"]
    lines += textwrap.wrap(plan.purpose, WIDTH, initial_indent="  ", subsequent_indent="  ")
    lines += textwrap.wrap(plan.hardware, WIDTH, initial_indent="  needs: ", subsequent_indent="    ")
    return "\n".join([*lines, ""])
