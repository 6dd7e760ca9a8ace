"""`gr00t-trt bundle`: a policy, compiled and checked, in one folder that a service starts from without its checkpoint.

Exit status: 0 done, 1 a gate was missed, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ...common.command import Parser, check_least, message, parse_flags, run_program
from ...common.progress import progress
from ...errors import AccuracyError
from ...plans import flags
from ...plans.schema import Plan
from ...policy.flags import POLICY, check_seed, source_flags
from ..defaults import with_fp32_acc

if TYPE_CHECKING:
    from .make import Made

SERVED = (
    *(*POLICY, "device", "dataset_path", "config", "backend", "precision", "calibration"),
    *("vit_dtype", "llm_dtype", "dit_dtype", "engine_cache"),
)
"""Flags that `gr00t-trt serve` has as well."""

EPILOG = """\
The folder holds weights in the plan's precisions, compiled code or engines, statistics, tokenizer, data config, plan,
calibration, the gates' results, one request with its answer, and the SHA-256 of every file. A start from it compiles
nothing and needs neither checkpoint nor network. It fits the kind of GPU, or processor, and the versions it was made
with, and is refused elsewhere. A bundle is code: start only from one that you trust.

examples:
  try it, nothing needed (a generated model):
    gr00t-trt bundle robot_bundle --model_path synthetic
    gr00t-trt serve --server --bundle robot_bundle
  a fine-tuned checkpoint, compiled:
    gr00t-trt bundle OUT --model_path CHECKPOINT --data_config so100_dualcam --embodiment_tag new_embodiment \\
      --config fast --dataset_path DATASET
  how much sooner it starts, three servers each way in turn:
    gr00t-trt bundle robot_bundle --model_path synthetic --time_starts 3

exit status: 0 done, 1 a gate was missed, 2 bad input, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """All flags; a setting of the plan that was not given stays None, so that a plan file can be told from it."""
    what = "Write a compiled and checked policy into one folder, from which a service starts without its checkpoint."
    p = Parser(prog="gr00t-trt bundle", description=what, epilog=EPILOG)
    p.add_argument("out", metavar="OUT", help="folder to write; it must not be there yet")
    g = p.add_argument_group("what is bundled")
    help = "LeRobot dataset whose observation it is tuned for and checked on, or `synthetic` [a made-up observation]"
    source_flags(g, *POLICY, "device", data_config="fourier_gr1_arms_waist")
    source_flags(g, "dataset_path", "episode", "step", "seed", dataset_path=None, helps={"dataset_path": help})
    g = p.add_argument_group("how it is compiled")
    flags.config_flag(g)
    flags.print_plan_flag(g)
    flags.backend_flag(g, " [eager; on a GPU the plan `fast`]")
    flags.precision_flag(g, ", any case [bf16; what is fastest where a CPU computes]")
    flags.dtype_flags(g)
    cache = "where finished engines are looked for and kept; off: nowhere"
    g.add_argument("--engine_cache", metavar="DIR|off", help=f"{cache} {flags.ENGINE_CACHE}")
    g = p.add_argument_group("measuring")
    help = "start a server from the bundle and one from the checkpoint, so many times in turn, and compare [0]"
    g.add_argument("--time_starts", type=int, default=0, metavar="N", help=help)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the bundle's path, or the table, to stdout."""
    return run_program(_main, argv, interrupted="interrupted; no bundle was written")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    check_seed(args.seed)
    check_least(args, time_starts=0)
    if args.print_plan:
        flags.print_plan(plan_of(args), _command(argv))
        return 0
    try:
        made = make(args, argv, console)
    except AccuracyError as error:
        console.print(message(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    print(made.folder, flush=True)
    console.print(_said(made), markup=False, highlight=False, soft_wrap=True)
    if args.time_starts:
        from .starts import table_of_starts

        print(table_of_starts(made.folder, served_flags(args), args.time_starts, console))
    return 0


def plan_of(args: argparse.Namespace) -> Plan:
    """What is to be compiled, and how. Raises: PlanError for what cannot work."""
    return with_fp32_acc(flags.plan_from(args, flags.overrides_of(args), Plan(backend="eager", precision="bf16")), args)


def make(args: argparse.Namespace, argv: Sequence[str], console: Console) -> Made:
    """Make the bundle that the flags describe. Raises: Gr00tError, as `make.make_bundle`."""
    from ...common.devices import choose_device
    from ...plans.resolve import Machine, decided, resolve
    from ...policy.source import Source
    from .make import make_bundle

    device = choose_device(args.device)
    default = flags.default_to_fast(args, str(device))
    named = (args.config, args.precision, args.vit_dtype, args.llm_dtype, args.dit_dtype)
    chosen, machine = any(value is not None for value in named), Machine(str(device))
    resolved = decided(resolve(plan_of(args), machine, chosen=not default, precision_chosen=chosen, timed=False))
    source, out = Source.of(args), Path(args.out).expanduser()
    cache, command = args.engine_cache, _command(argv)
    with progress(console) as steps:
        return make_bundle(source, resolved, out, device, steps, engine_cache=cache, seed=args.seed, command=command)


def served_flags(args: argparse.Namespace) -> list[str]:
    """The flags with which `gr00t-trt serve` starts the same policy from its checkpoint."""
    p, out = parser(), []
    for name in SERVED:
        value = getattr(args, name)
        if value is not None and value != p.get_default(name):
            out += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return out


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["gr00t-trt", "bundle", *argv])


def _said(made: Made) -> str:
    """What was written, in a few lines."""
    served = ", ".join(f"{name} {text}" for name, text in made.deployment.backends.items())
    whole = made.deployment.record.request
    cosine = whole and whole.accuracy and whole.accuracy.cosine
    lines = [f"{made.bytes / 1e6:.1f} MB in {len(made.manifest.files) + 1} files", f"serves: {served}"]
    lines += [] if cosine is None else [f"cosine of the actions to eager fp32: {cosine:.9f}"]
    lines += [f"note: {note.what}: {note.why}" for note in made.deployment.record.skipped]
    lines.append(f"start it: gr00t-trt serve --server --bundle {shlex.quote(str(made.folder))}")
    return "\n".join(lines)
