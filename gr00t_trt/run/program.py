"""The command line of `run_groot_torchtrt.py`: flags -> plan and request -> one run -> exit status.

Exit status: 0 done, 1 an accuracy gate failed, 2 bad input or something missing, 130 interrupted (Ctrl-C, SIGTERM),
141 nobody reads the messages any more.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..common.command import Parser, deliver, parse_flags, record_flags, record_path, run_program
from ..errors import PlanError, unknown
from ..plans.schema import AUTO, BACKENDS, CUDA_GRAPH, GROUPS, LOOPS, PRECISIONS, SUBMODULES, TIMERS, Plan

PLAN_FILE = ("plan", "--write_plan")
ATTENTION = ("eager", "sdpa", "flash_attention_2")

ONNX_FLAGS = {"use_onnx_vit": "vision_model", "use_onnx_llm": "language_model"}
"""Published flag -> the submodule that takes the ONNX route."""

EPILOG = """\
examples:
  try it, nothing needed (a generated model and dataset):
    run_groot_torchtrt.py --model_path synthetic --dataset_path synthetic
  the published command, on a machine with a GPU:
    run_groot_torchtrt.py --precision FP16 --use_fp32_acc --use_explicit_typing --fn_name all --benchmark cuda_event
  one submodule, against torch.compile instead of TensorRT:
    run_groot_torchtrt.py --fn_name dit_model --backend inductor
  every backend that this machine has, side by side:
    run_groot_torchtrt.py --compare all
  the fastest of them for each submodule, measured, and kept as a plan:
    run_groot_torchtrt.py --backend auto --write_plan plans/robot.yaml
    run_groot_torchtrt.py --config plans/robot.yaml
  a plan from a file, engines kept for another machine:
    run_groot_torchtrt.py --config compile_configs/rtx_4090_5090.yaml --engine_dir engines

exit status: 0 done, 1 an accuracy gate failed, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    """All flags; one that was not given stays None, so that a plan file can be told from the command line."""
    p = Parser(
        prog="run_groot_torchtrt.py",
        description="Compile GR00T N1.5 submodule by submodule, check each against eager fp32, time it, and show it.",
        epilog=EPILOG,
        argument_default=None,
    )

    g = p.add_argument_group("what runs")
    g.add_argument(
        "--model_path",
        default="nvidia/GR00T-N1.5-3B",
        metavar="PATH",
        help="checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [%(default)s]",
    )
    g.add_argument(
        "--dataset_path",
        default="./demo_data/robot_sim.PickNPlace",
        metavar="PATH",
        help="LeRobot v2 dataset whose observation is used, or `synthetic` [%(default)s]",
    )
    g.add_argument(
        "--data_config",
        default="fourier_gr1_arms_only",
        metavar="NAME",
        help="keys and transforms: a built-in name or module:Class [%(default)s]",
    )
    g.add_argument(
        "--embodiment_tag",
        default="gr1",
        metavar="TAG",
        help="projector and statistics: gr1, oxe_droid, agibot_genie1, new_embodiment [%(default)s]",
    )
    g.add_argument("--episode", type=int, default=0, metavar="N", help="episode of the observation [%(default)s]")
    g.add_argument("--step", type=int, default=0, metavar="N", help="row within the episode [%(default)s]")
    g.add_argument(
        "--frame_lookup",
        default="index",
        metavar="RULE",
        help="video frame of a row: index (frame i for row i), nearest, on_screen [%(default)s]",
    )
    g.add_argument("--tokenizer", metavar="PATH", help="tokenizer folder, tokenizer.json or hub id [found by itself]")
    g.add_argument(
        "--bracketed_instruction",
        action="store_true",
        help="put the instruction into the prompt as ['text'], as the original does for single requests",
    )
    g.add_argument("--denoising_steps", type=int, metavar="N", help="Euler steps per action chunk [4]")
    g.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the initial noise [%(default)s]")
    g.add_argument("--device", metavar="DEVICE", help="cuda:0, cpu [cuda:0 where there is one]")

    g = p.add_argument_group("what is compiled")
    g.add_argument(
        "--fn_name", default="all", metavar="NAME", help=f"{', '.join((*SUBMODULES, *GROUPS))} [%(default)s]"
    )
    g.add_argument(
        "--backend",
        metavar="NAME",
        help=f"{', '.join(BACKENDS)}, or {AUTO}: the fastest of them for each submodule, measured here "
        "[torch_tensorrt; eager, announced, where it is not installed]",
    )
    g.add_argument(
        "--compare",
        metavar="NAMES",
        help="try several backends, timed in turn on the same inputs: names with commas between them, or all; eager "
        "is always among them. Compares, and runs no plan",
    )
    g.add_argument("--config", metavar="PLAN.yaml", help="plan file; flags win over its plan-wide settings")
    g.add_argument(
        "--write_plan",
        metavar="PATH",
        help=f"where --backend {AUTO} writes the plan it chose [plans/<machine>-<precision>.yaml]",
    )
    g.add_argument("--engine_dir", metavar="DIR", help="write engines and their manifests here [not written]")
    for flag, submodule in ONNX_FLAGS.items():
        g.add_argument(
            f"--{flag}",
            action="store_true",
            help=f"{submodule} by way of ONNX: backend tensorrt where it is installed, else onnxruntime",
        )
    g.add_argument(
        "--trt_engine_path",
        metavar="DIR",
        help="engines of NVIDIA's deployment scripts, taken by the tensorrt backend where they fit",
    )
    g.add_argument(
        "--engine_cache",
        metavar="DIR|off",
        help="where finished engines are kept, so that no later run builds them again; off: nowhere "
        "[$GR00T_TRT_ENGINE_CACHE, else ~/.cache/gr00t_trt/engines]",
    )
    g.add_argument(
        "--use_eagle_backbone_joint",
        action="store_true",
        default=None,
        help="vision model, connector and language model as one graph",
    )
    g.add_argument(
        "--optimisations",
        metavar="WHICH",
        help="loss-free restructuring of the model: all, none, or names with commas between them [all; none where "
        "--use_eagle_backbone_joint or --cpu_offload needs the plain model]",
    )
    g.add_argument(
        "--loop",
        metavar="AS",
        help=f"{', '.join(LOOPS)}: what one graph of the denoising loop covers; the last two exist in the "
        "restructured model only [submodules]",
    )
    g.add_argument(
        "--cuda_graph",
        metavar="WHEN",
        help=f"{', '.join(CUDA_GRAPH)}: capture whole requests as CUDA graphs, for the observation's shapes or for "
        "every new shape at its first request too [none]",
    )

    g = p.add_argument_group("precision and compiler")
    g.add_argument("--precision", metavar="P", help=f"{', '.join(PRECISIONS)}, any case, for the whole model [fp16]")
    for flag, submodule in (("vit", "vision_model"), ("llm", "language_model"), ("dit", "dit_model")):
        g.add_argument(f"--{flag}_dtype", metavar="P", help=f"precision of {submodule} [--precision]")
    for flag, text in (
        ("use_fp32_acc", "accumulate half-precision matrix products in fp32"),
        ("use_explicit_typing", "the graph's dtypes are the engine's dtypes (always so here)"),
        ("disable_tf32", "keep fp32 products out of TF32"),
        ("use_cpp_runtime", "run engines through the C++ runtime, where the release has two"),
        ("cpu_offload", "move PyTorch weights to the CPU once the engine exists"),
        ("debug", "verbose compiler log"),
    ):
        g.add_argument(f"--{flag}", action="store_true", default=None, help=text)

    g = p.add_argument_group("measuring and reporting")
    g.add_argument("--benchmark", metavar="TIMER", help=f"{', '.join(TIMERS)} [cuda_event]")
    g.add_argument("--num_iterations", type=int, metavar="N", help="timed calls of each thing [10]")
    g.add_argument("--warmup_iterations", type=int, metavar="N", help="untimed calls before them [5]")
    g.add_argument(
        "--max_seconds", type=float, metavar="S", help="start no further round of calls after this long [60]"
    )
    record_flags(g)

    g = p.add_argument_group("flags of the published script that need nothing here")
    g.add_argument("--eval", action="store_true", help="every run compares every submodule with eager fp32 already")
    g.add_argument(
        "--attn_implementation",
        metavar="NAME",
        help="attention is always torch's scaled_dot_product_attention, which picks its own kernel",
    )
    return p


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """Dotted plan key -> what the command line sets it to; None where the flag was not given."""
    return {
        "backend": args.backend,
        "precision": args.precision,
        "submodules.vision_model.precision": args.vit_dtype,
        "submodules.language_model.precision": args.llm_dtype,
        "submodules.dit_model.precision": args.dit_dtype,
        "build.use_fp32_acc": args.use_fp32_acc,
        "build.use_explicit_typing": args.use_explicit_typing,
        "build.disable_tf32": args.disable_tf32,
        "build.use_cpp_runtime": args.use_cpp_runtime,
        "build.cpu_offload": args.cpu_offload,
        "build.debug": args.debug,
        "build.trt_engine_path": args.trt_engine_path,
        "benchmark.timer": args.benchmark,
        "benchmark.iterations": args.num_iterations,
        "benchmark.warmup": args.warmup_iterations,
        "benchmark.max_seconds": args.max_seconds,
        "joint_backbone": args.use_eagle_backbone_joint,
        "optimisations": args.optimisations,
        "loop": args.loop,
        "cuda_graph": args.cuda_graph,
        "denoising_steps": args.denoising_steps,
    }


def compared(args: argparse.Namespace) -> tuple[str, ...]:
    """The backends that --compare names, eager first; empty without the flag.

    Raises: PlanError for an unknown name, one given twice, nothing to compare eager with, or a --backend beside it.
    """
    if args.compare is None:
        return ()
    if args.backend is not None:
        raise PlanError(
            f"--compare {args.compare} --backend {args.backend}: one tries several backends, the other runs one",
            fix="leave --backend out",
        )
    names = [name.strip().lower() for name in args.compare.split(",")]
    if names == ["all"]:
        return BACKENDS
    for i, name in enumerate(names):
        if name not in BACKENDS:
            raise unknown(PlanError, "--compare", name, (*BACKENDS, "all"))
        if name in names[:i]:
            raise PlanError(f"--compare: {name} is named twice", known=BACKENDS)
    if names == ["eager"]:
        raise PlanError("--compare eager: nothing to compare it with", known=(*BACKENDS[1:], "all"))
    return tuple(dict.fromkeys(("eager", *names)))


def chosen_plan_path(args: argparse.Namespace, plan: Plan, compare: tuple[str, ...]) -> Path | None:
    """Where the plan goes that `auto` comes to; None for a run that chooses nothing.

    Raises: PlanError for --write_plan on such a run.
    """
    from ..common.devices import choose_device
    from ..compile.submodules import select
    from ..measure.choose import default_plan_path
    from .job import to_compare

    if compare or not to_compare(plan, select(args.fn_name, plan), ()):
        if args.write_plan is not None:
            raise PlanError(
                f"--write_plan {args.write_plan}: this run chooses no plan",
                fix=f"add --backend {AUTO}, or leave it out",
            )
        return None
    return (
        Path(args.write_plan) if args.write_plan else default_plan_path(choose_device(args.device), plan, args.fn_name)
    )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """The flags, and (flag, sentence) for published flags that do nothing here.

    Raises: PlanError for an unknown flag (the nearest one is offered), a value of the wrong kind, or a flag that
        cannot be honoured.
    """
    p = parser()
    args = parse_flags(p, argv)
    notes = []
    if args.attn_implementation is not None:
        if args.attn_implementation not in ATTENTION:
            raise unknown(PlanError, "--attn_implementation", args.attn_implementation, ATTENTION)
        notes.append(
            (
                f"--attn_implementation {args.attn_implementation}",
                "no effect: attention is torch's scaled_dot_product_attention everywhere, in the eager baseline too",
            )
        )
    if args.eval:
        notes.append(("--eval", "adds nothing: every submodule is compared with eager fp32 on real inputs anyway"))
    for flag in ("episode", "step", "seed"):
        if not 0 <= getattr(args, flag) < 2**63:
            raise PlanError(f"--{flag}: {getattr(args, flag)} is out of range", known="0 to 2^63 - 1")
    return args, notes


def onnx_overrides(args: argparse.Namespace) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """The plan keys that `ONNX_FLAGS` set, and (flag, sentence) that tells which backend they came to."""
    given = {flag: submodule for flag, submodule in ONNX_FLAGS.items() if getattr(args, flag)}
    if not given:
        return {}, []
    from ..backends import onnx_route

    route = onnx_route()
    keys = {f"submodules.{submodule}.backend": route for submodule in given.values()}
    return keys, [(f"--{flag}", f"{name} takes the ONNX route, by the {route} backend") for flag, name in given.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the record's path (or the record, with --json) to stdout."""
    return run_program(_main, argv, interrupted="interrupted; finished engines are whole, nothing else was written")


def _main(argv: Sequence[str], console: Console) -> int:
    args, notes = parse(argv)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ..common.files import prepare_file, write_whole
    from ..measure.choose import plan_text
    from ..plans.load import load_plan, merge, plan_from_mapping
    from ..report.terminal import render
    from .job import Job, failures, run

    compare = compared(args)
    onnx_keys, onnx_notes = onnx_overrides(args)
    plan = merge(load_plan(args.config) if args.config else Plan(), {**overrides(args), **onnx_keys})
    path = record_path(args, f"{'compare ' if compare else ''}{plan.precision} {args.fn_name}")
    if compare and args.config:
        notes.append(("--compare", f"the backends that {args.config} names count for nothing here"))
    plan_path = chosen_plan_path(args, plan, compare)
    if plan_path is not None:
        prepare_file(plan_path, *PLAN_FILE)
    job = Job(
        model_path=args.model_path,
        dataset_path=args.dataset_path,
        data_config=args.data_config,
        embodiment_tag=args.embodiment_tag,
        episode=args.episode,
        step=args.step,
        frame_lookup=args.frame_lookup,
        tokenizer=args.tokenizer,
        bracketed_instruction=args.bracketed_instruction,
        seed=args.seed,
        device=args.device,
        fn_name=args.fn_name,
        backend_chosen=args.backend is not None or args.config is not None,
        compare=compare,
        engine_dir=Path(args.engine_dir) if args.engine_dir else None,
        engine_cache=args.engine_cache,
        plan_path=Path(args.config) if args.config else None,
        command=shlex.join(["run_groot_torchtrt.py", *argv]),
        notes=(*notes, *onnx_notes),
    )
    # Compilers print, and what reads our stdout expects a path or JSON there.
    with contextlib.redirect_stdout(sys.stderr):
        record = run(job, plan, console)
    render(record, console)
    deliver(record, path, args)
    failed = failures(record)
    if plan_path is not None and failed:
        console.print(f"{plan_path}: not written, for a plan that misses its gates is none to keep", style="red")
    elif plan_path is not None:
        chosen = plan_from_mapping(record["plan"], str(path))
        write_whole(plan_text(chosen, record, plan_path, args.fn_name), plan_path, *PLAN_FILE)
        console.print(f"plan: {plan_path}", markup=False, highlight=False, soft_wrap=True)
    return 1 if failed else 0
