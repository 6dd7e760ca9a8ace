"""The command line of `run_groot_torchtrt.py`: flags -> plan and request -> one run -> exit status."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..common.command import Parser, parse_flags, run_program
from ..common.files import prepare_file, write_whole
from ..common.paths import check_dataset, check_model, check_output_folder
from ..errors import UsageError, unknown
from ..plans import flags
from ..plans.backends import AUTO, onnx_route
from ..plans.load import plan_from_mapping
from ..plans.resolve import Machine, Note, Resolved, candidates_of, resolve
from ..plans.schema import TIMERS, Plan
from ..plans.submodules import select
from ..policy.flags import check_range, source_flags
from ..record.files import deliver, record_flags, record_path
from ..record.schema import Record

SCRIPT = "run_groot_torchtrt.py"
PLAN_FILE = ("plan", "--write_plan")
ATTENTION = ("eager", "sdpa", "flash_attention_2")

ONNX_FLAGS = {"use_onnx_vit": "vision_model", "use_onnx_llm": "language_model"}
"""Published flag -> the submodule that takes the ONNX route."""

EPILOG = """\
examples:
  try it, nothing needed (a generated model and dataset):
    %(prog)s --model_path synthetic --dataset_path synthetic
  the published command, on a machine with a GPU:
    %(prog)s --precision FP16 --use_fp32_acc --use_explicit_typing --fn_name all --benchmark cuda_event
  one submodule, against torch.compile instead of TensorRT:
    %(prog)s --fn_name dit_model --backend inductor
  every backend that this machine has, side by side:
    %(prog)s --compare all
  the fastest of them for each submodule, measured, and kept as a plan:
    %(prog)s --backend auto --write_plan plans/robot.yaml
    %(prog)s --config plans/robot.yaml
  a plan that comes with the package, engines kept for another machine:
    %(prog)s --config rtx_4090_5090 --engine_dir engines
  what flags come to, as a plan of your own:
    %(prog)s --config bf16 --loop denoise_step --print_plan > robot.yaml

exit status: 0 done, 1 an accuracy gate failed, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


SWITCHES = {
    "use_fp32_acc": "accumulate half-precision matrix products in fp32",
    "use_explicit_typing": "the graph's dtypes are the engine's dtypes (always so here)",
    "disable_tf32": "keep fp32 products out of TF32",
    "use_cpp_runtime": "run engines through the C++ runtime, where the release has two",
    "cpu_offload": "move PyTorch weights to the CPU once the engine exists",
    "debug": "verbose compiler log",
}
"""Build option that is a flag of its own -> what it does."""


def called() -> str:
    """What this program is called by: a checkout has the published script, an installation only the command."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else "gr00t-trt run"


def parser() -> argparse.ArgumentParser:
    """All flags; one that was not given stays None, so that a plan file can be told from the command line."""
    p = Parser(
        prog=called(),
        description="Compile GR00T N1.5 submodule by submodule, check each against eager fp32, time it, and show it.",
        epilog=EPILOG,
        argument_default=None,
    )
    source_flags(
        p.add_argument_group("what runs"),
        *("model_path", "dataset_path", "data_config", "embodiment_tag", "episode", "step", "frame_lookup"),
        *("metadata", "tokenizer", "bracketed_instruction", "denoising_steps", "seed", "device"),
        dataset_path="./demo_data/robot_sim.PickNPlace",
    )
    _what_is_compiled(p.add_argument_group("what is compiled"))

    g = p.add_argument_group("precision and compiler")
    flags.precision_flag(g, ", any case, for the whole model [fp16; what is fastest where a CPU computes]")
    flags.dtype_flags(g)
    for flag, text in SWITCHES.items():
        g.add_argument(f"--{flag}", action="store_true", default=None, help=text)

    g = p.add_argument_group("measuring and reporting")
    g.add_argument("--benchmark", metavar="TIMER", help=f"{', '.join(TIMERS)} [cuda_event]")
    help = "timed calls of each thing [until the medians are known to 2 %%, 10 to 100]"
    g.add_argument("--num_iterations", type=int, metavar="N", help=help)
    g.add_argument("--warmup_iterations", type=int, metavar="N", help="untimed calls before them [5]")
    help = "start no further round of calls after this long [60]"
    g.add_argument("--max_seconds", type=float, metavar="S", help=help)
    record_flags(g)

    g = p.add_argument_group("flags of the published script that need nothing here")
    g.add_argument("--eval", action="store_true", help="every run compares every submodule with eager fp32 already")
    help = "attention is always torch's scaled_dot_product_attention, which picks its own kernel"
    g.add_argument("--attn_implementation", metavar="NAME", help=help)
    return p


def _what_is_compiled(g: Any) -> None:
    flags.fn_name_flag(g)
    flags.backend_flag(
        g,
        f", or {AUTO}: the fastest of them for each submodule, measured here "
        "[torch_tensorrt; eager, announced, where it is not installed]",
    )
    g.add_argument(
        "--compare",
        metavar="NAMES",
        help="try several backends, timed in turn on the same inputs: names with commas between them, or all; eager "
        "is always among them. Compares, and runs no plan",
    )
    flags.config_flag(g)
    flags.print_plan_flag(g)
    help = "one request as a timeline for https://ui.perfetto.dev: stages, operators, kernels [not written]"
    g.add_argument("--trace", metavar="FILE", help=help)
    help = f"where --backend {AUTO} writes the plan it chose [plans/<machine>-<precision>.yaml]"
    g.add_argument("--write_plan", metavar="PATH", help=help)
    for flag, submodule in ONNX_FLAGS.items():
        help = f"{submodule} by way of ONNX: backend tensorrt where it is installed, else onnxruntime"
        g.add_argument(f"--{flag}", action="store_true", help=help)
    help = "engines of NVIDIA's deployment scripts, taken by the tensorrt backend where they fit"
    g.add_argument("--trt_engine_path", metavar="DIR", help=help)
    flags.engine_flags(g)
    help = "vision model, connector and language model as one graph"
    g.add_argument("--use_eagle_backbone_joint", action="store_true", default=None, help=help)
    flags.optimizations_flag(
        g,
        "loss-free restructuring of the model: all, none, or names with commas between them [all; none where "
        "--use_eagle_backbone_joint or --cpu_offload needs the plain model]",
    )
    flags.loop_flag(
        g,
        ": what one graph of the denoising loop covers; the last two exist in the restructured model only [submodules]",
    )
    flags.cuda_graph_flag(
        g,
        ": capture whole requests as CUDA graphs, for the observation's shapes or for every new shape at its first "
        "request too [none]",
    )


KEYS = {
    **{flag: f"build.{flag}" for flag in (*SWITCHES, "trt_engine_path")},
    "benchmark": "benchmark.timer",
    "num_iterations": "benchmark.iterations",
    "warmup_iterations": "benchmark.warmup",
    "max_seconds": "benchmark.max_seconds",
    "use_eagle_backbone_joint": "joint_backbone",
}
"""Flag of this program -> the dotted plan key that it sets, where they have other names."""


def overrides(args: argparse.Namespace) -> dict[str, object]:
    """Dotted plan key -> what the command line sets it to; None where the flag was not given."""
    return flags.overrides_of(args, **KEYS)


def compared(args: argparse.Namespace) -> tuple[str, ...]:
    """The backends that --compare names, eager first; empty without the flag.

    Raises: UsageError as `flags.named_backends`, and for a --backend beside it.
    """
    if args.compare is None:
        return ()
    if args.backend is not None:
        raise UsageError(
            f"--compare {args.compare} --backend {args.backend}: one tries several backends, the other runs one",
            fix="leave --backend out",
        )
    return flags.named_backends(args.compare, "--compare")


def chosen_plan_path(args: argparse.Namespace, plan: Plan, compare: tuple[str, ...], device: Any) -> Path | None:
    """Where the plan goes that `auto` comes to; None for a run that chooses nothing.

    Raises: UsageError for --write_plan on such a run.
    """
    from ..measure.choose import default_plan_path

    if compare or not candidates_of(plan, select(args.fn_name, plan)):
        if args.write_plan is not None:
            what = f"--write_plan {args.write_plan}: this run chooses no plan"
            raise UsageError(what, fix=f"add --backend {AUTO}, or leave it out")
        return None
    return Path(args.write_plan) if args.write_plan else default_plan_path(device, plan, args.fn_name)


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Note]]:
    """The flags, and (flag, sentence) for published flags that do nothing here.

    Raises: UsageError for an unknown flag (the nearest one is offered), a value of the wrong kind, or a flag that
        cannot be honoured.
    """
    args = parse_flags(parser(), argv)
    notes = []
    if args.attn_implementation is not None:
        if args.attn_implementation not in ATTENTION:
            raise unknown(UsageError, "--attn_implementation", args.attn_implementation, ATTENTION)
        why = "no effect: attention is torch's scaled_dot_product_attention everywhere, in the eager baseline too"
        notes.append((f"--attn_implementation {args.attn_implementation}", why))
    if args.eval:
        notes.append(("--eval", "adds nothing: every submodule is compared with eager fp32 on real inputs anyway"))
    for flag in ("episode", "step", "seed"):
        check_range(flag, getattr(args, flag))
    return args, notes


def onnx_overrides(args: argparse.Namespace) -> tuple[dict[str, str], list[Note]]:
    """The plan keys that `ONNX_FLAGS` set, and (flag, sentence) that tells which backend they came to."""
    given = {flag: submodule for flag, submodule in ONNX_FLAGS.items() if getattr(args, flag)}
    if not given:
        return {}, []
    route = onnx_route()
    keys = {f"submodules.{submodule}.backend": route for submodule in given.values()}
    return keys, [(f"--{flag}", f"{name} takes the ONNX route, by the {route} backend") for flag, name in given.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; finished engines are whole, nothing else was written")


def _main(argv: Sequence[str], console: Console) -> int:
    args, notes = parse(argv)
    onnx_keys, onnx_notes = onnx_overrides(args)
    plan = flags.plan_from(args, {**overrides(args), **onnx_keys}, keys=KEYS)
    notes += onnx_notes
    compare = compared(args)
    if not args.print_plan:
        check_paths(args)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ..common.devices import choose_device
    from ..policy.source import Source
    from ..report.terminal import render

    if compare and args.config:
        notes.append(("--compare", f"the backends that {args.config} names count for nothing here"))
    command = f"{called()} {shlex.join(argv)}".rstrip()
    device = choose_device(args.device)
    engine_dir = Path(args.engine_dir) if args.engine_dir else None
    chosen, machine = args.backend is not None or args.config is not None, Machine(str(device))
    named = args.config is not None or any(k.endswith("precision") and v for k, v in overrides(args).items())
    resolved = resolve(
        plan, machine, args.fn_name, chosen=chosen, precision_chosen=named, compare=compare, engine_dir=engine_dir
    )
    plan = resolved.plan if not compare else plan
    if args.print_plan:
        print_plan(resolved, compare, command)
        return 0
    path = record_path(args, f"{'compare ' if compare else ''}{plan.precision} {args.fn_name}")
    if args.trace is not None:
        if compare:
            raise UsageError("--trace: a comparison has no one request", fix="name one backend, or leave it out")
        prepare_file(args.trace, "trace", "--trace")
    plan_path = chosen_plan_path(args, plan, compare, device)
    if plan_path is not None:
        prepare_file(plan_path, *PLAN_FILE)
    config, trace = (Path(given) if given else None for given in (args.config, args.trace))
    from . import job

    wanted = job.Job(Source.of(args), args.seed, str(device), args.engine_cache, config, command, trace)
    # Compilers print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr):
        record = job.run(wanted, resolved.noted(*notes), console)
    render(record, console)
    deliver(record, path, args)
    if plan_path is not None:
        keep_plan(record, plan_path, args.fn_name, console)
    return 1 if record.failures else 0


def check_paths(args: argparse.Namespace) -> None:
    """Raises: UsageError for a path that cannot be what its flag wants; nothing has been loaded yet."""
    check_model(args.model_path)
    check_dataset(args.dataset_path)
    check_output_folder(args.engine_dir, "--engine_dir")
    if args.engine_cache != "off":
        check_output_folder(args.engine_cache, "--engine_cache")


def print_plan(resolved: Resolved, compare: tuple[str, ...], command: str) -> None:
    """Print the plan as this machine would carry it out. Raises: UsageError for a comparison, which runs no plan."""
    if compare:
        raise UsageError("--print_plan: a comparison runs no plan", fix="leave --compare or --print_plan out")
    flags.print_plan(resolved.plan, command)


def keep_plan(record: Record, path: Path, fn_name: str, console: Console) -> None:
    """Write the plan that a run has chosen, unless it misses its gates. Raises: RecordError."""
    from ..measure.choose import plan_text

    if record.failures:
        console.print(f"{path}: not written, for a plan that misses its gates is none to keep", style="red")
        return
    text = plan_text(plan_from_mapping(record.plan, str(path)), record, path, fn_name)
    write_whole(text, path, *PLAN_FILE)
    console.print(f"plan: {path}", markup=False, highlight=False, soft_wrap=True)
