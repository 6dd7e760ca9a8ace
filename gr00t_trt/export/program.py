"""`gr00t-trt export`: the submodules as ONNX files, each checked and run by ONNX Runtime against eager fp32.

Exit status: 0 done, 1 a file misses its gate, 2 bad input, 130 interrupted, 141 nobody reads the messages any more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from ..common.command import Parser, parse_flags, run_program, switch
from ..errors import BackendError
from ..plans.schema import GROUPS, LOOPS, PRECISIONS, SUBMODULES, Plan

if TYPE_CHECKING:
    import torch

    from ..backends.onnx.export import OnnxFile
    from ..common.progress import Steps
    from ..measure.accuracy import Agreement
    from ..measure.trial import Trial
    from ..policy.policy import ModelPolicy
    from ..run.job import Job

EPILOG = """\
examples:
  try it, nothing needed (a generated model and made-up inputs):
    gr00t-trt export --model_path synthetic
  the seven files of NVIDIA's deployment scripts, in fp16, checked on a recorded observation:
    gr00t-trt export --dataset_path ./demo_data/robot_sim.PickNPlace --precision fp16
  and the commands that build engines from them:
    gr00t-trt export --print_trtexec > build_engines.sh
  the restructured model, its denoising loop as one file:
    gr00t-trt export --model_path synthetic --optimisations all --loop denoise_loop

exit status: 0 done, 1 a file misses its gate, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


@dataclass(frozen=True)
class Exported:
    """One ONNX file and how it did.

    Attributes:
        agreement: Its worst agreement with eager fp32 over every call of the request; None when it did not run.
        why_not: Why it did not run, else an empty string.
        failures: What the gate holds against it.
        trtexec: The shell command that builds its engine.
    """

    file: OnnxFile
    agreement: Agreement | None
    why_not: str
    failures: list[str]
    trtexec: str


def parser() -> argparse.ArgumentParser:
    """All flags; None where one was not given and the plan decides."""
    p = Parser(
        prog="gr00t-trt export",
        description="Export GR00T N1.5 to ONNX submodule by submodule, under the names of NVIDIA's deployment scripts; "
        "check each file and run it by ONNX Runtime against eager fp32.",
        epilog=EPILOG,
    )
    g = p.add_argument_group("what is exported")
    g.add_argument(
        "--model_path",
        default="nvidia/GR00T-N1.5-3B",
        metavar="PATH",
        help="checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [%(default)s]",
    )
    g.add_argument(
        "--dataset_path",
        metavar="PATH",
        help="LeRobot v2 dataset whose observation is used, or `synthetic` [made-up inputs, for which a checkpoint "
        "needs neither statistics nor a tokenizer]",
    )
    g.add_argument(
        "--data_config",
        default="fourier_gr1_arms_only",
        metavar="NAME",
        help="keys and transforms of that dataset [%(default)s]",
    )
    g.add_argument("--embodiment_tag", default="gr1", metavar="TAG", help="projector and statistics [%(default)s]")
    g.add_argument(
        "--tokenizer", metavar="PATH", help="for its prompts: folder, tokenizer.json or hub id [found by itself]"
    )
    g.add_argument(
        "--fn_name", default="all", metavar="NAME", help=f"{', '.join((*SUBMODULES, *GROUPS))} [%(default)s]"
    )
    g.add_argument("--config", metavar="PLAN.yaml", help="plan file: precisions, ranges, gates; flags win over it")
    g.add_argument("--precision", metavar="P", help=f"{', '.join(PRECISIONS)} [fp16]")
    switch(g, "use_fp32_acc", default=None, help="matrix products of half precision accumulate in fp32")
    g.add_argument(
        "--optimisations", metavar="WHICH", help="restructured model: all, none, or names [none, or what --config says]"
    )
    g.add_argument("--loop", metavar="AS", help=f"{', '.join(LOOPS)}; the last two need --optimisations [submodules]")
    g.add_argument("--device", metavar="DEVICE", help="cuda:0, cpu [cuda:0 where there is one]")
    g.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the initial noise [%(default)s]")

    g = p.add_argument_group("what comes out")
    g.add_argument("--onnx_dir", default="gr00t_onnx", metavar="DIR", help="where the files go [%(default)s]")
    switch(g, "print_trtexec", help="print the trtexec commands on stdout, and the table on stderr")
    g.add_argument(
        "--trt_engine_path",
        default="gr00t_engine",
        metavar="DIR",
        help="where those commands put engines [%(default)s]",
    )
    return p


def export(trial: Trial, names: Sequence[str], onnx_dir: Path, engine_dir: Path, steps: Steps) -> Iterator[Exported]:
    """Export the named targets one after the other, each checked before the next begins.

    Args:
        trial: After `Trial.reference`; its model is cast to the plan's precisions.
    Raises: BackendError naming the submodule and the phase; RecordError when a file cannot be written.
    """
    from ..backends.onnx import backend as onnxruntime
    from ..backends.onnx import export as onnx_export
    from ..compile.build import agreement_with, judge, set_precision, target_of
    from ..plans.load import resolve
    from . import trtexec

    set_precision(trial.model, trial.plan)
    for number, name in enumerate(names, 1):

        def told(phase: str, prefix: str = f"{name} ({number} of {len(names)})") -> None:
            steps.step(f"{prefix}: {phase}")

        resolved = resolve(trial.plan, name)
        target = target_of(trial.model, name, trial.recording, trial.dims)
        file = onnx_export.export(target, onnx_dir, resolved.build, told)
        agreement, failures = None, []
        why_not = onnxruntime.cannot_run(target)
        if not why_not:
            told("running it by ONNX Runtime")
            call = onnxruntime.open_session(target, file, resolved.build)
            dtypes = trial.model.argument_dtypes(name)
            agreement = agreement_with(call, trial.recording[name], dtypes, trial.device)
            failures = judge(name, agreement, resolved.gate)
        line = trtexec.command(file.interface, resolved.build, onnx_dir=onnx_dir, engine_dir=engine_dir)
        yield Exported(file, agreement, why_not, failures, line)


def request(job: Job, plan: Plan, device: torch.device, steps: Steps) -> tuple[ModelPolicy, Mapping[str, Any]]:
    """The model in fp32 and the request that is followed through it: recorded, or made up where there is no dataset.

    A graph depends on neither statistics nor words, so that made-up model inputs need nothing but the weights.
    Raises: Gr00tError for anything missing.
    """
    import torch

    from ..data import embodiment_index
    from ..model import example_inputs, load_model
    from ..model.n1_5.inputs import EMBODIMENT
    from ..policy.policy import TensorPolicy
    from ..run.job import load

    if job.dataset_path is not None:
        return load(job, plan, device, steps)
    index = embodiment_index(job.embodiment_tag)
    steps.step(f"loading the model: {job.model_path}")
    model = load_model(job.model_path, device=device)
    if plan.denoising_steps is not None:
        model.denoising_steps = plan.denoising_steps
    inputs = {**example_inputs(model.config), EMBODIMENT: torch.tensor([index])}
    policy = TensorPolicy(model, {name: value.to(device) for name, value in inputs.items()})
    return policy, policy.example()


def table(done: Sequence[Exported]) -> Table:
    """One row per file."""
    # Narrow enough for the 80 columns of a terminal, or of a file, whatever the longest name.
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0), pad_edge=False)
    out.add_column("file", no_wrap=True)
    out.add_column("type", no_wrap=True)
    for heading in ("MB", "opset", "nodes", "cosine"):
        out.add_column(heading, justify="right", no_wrap=True)
    out.add_column("gate", no_wrap=True)
    for each in done:
        file, agreement = each.file, each.agreement
        out.add_row(
            file.interface.onnx_file,
            file.metadata["dtype"],
            f"{file.bytes / 1e6:.1f}",
            file.metadata["opset"],
            str(file.nodes),
            "–" if agreement is None else f"{agreement.cosine:.7f}",
            "–" if agreement is None else "FAIL" if each.failures else "pass",
        )
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the table or the trtexec commands to stdout."""
    return run_program(_main, argv, interrupted="interrupted; finished files are whole")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ..backends.onnx.backend import OnnxRuntimeBackend
    from ..common.devices import choose_device
    from ..common.progress import progress
    from ..compile.submodules import select
    from ..measure.trial import Trial
    from ..plans.load import load_plan, merge
    from ..record.records import new_record
    from ..run.job import Job

    given = {key: getattr(args, key) for key in ("precision", "optimisations", "loop")}
    # The published files are cut as the plain model is.
    base = load_plan(args.config) if args.config else Plan(optimisations=())
    plan = merge(base, {**given, "build.use_fp32_acc": args.use_fp32_acc})
    names = select(args.fn_name, plan)
    device, backend = choose_device(args.device), OnnxRuntimeBackend()
    available = backend.availability_on(device.type)
    if not available.installed and device.type == "cuda" and args.device is None:
        console.print(f"The files are checked on the CPU: {available.reason}.", highlight=False)
        device = choose_device("cpu")
        available = backend.availability_on("cpu")
    if not available.installed:
        raise BackendError(available.reason)
    job = Job(
        model_path=args.model_path,
        dataset_path=args.dataset_path,
        data_config=args.data_config,
        embodiment_tag=args.embodiment_tag,
        tokenizer=args.tokenizer,
    )
    onnx_dir = Path(args.onnx_dir)
    with progress(console) as steps:
        policy, observation = request(job, plan, device, steps)
        trial = Trial(policy, plan, observation, new_record("gr00t-trt export"), steps)
        trial.reference(args.seed)
        done = list(export(trial, names, onnx_dir, Path(args.trt_engine_path), steps))
    console.print(f"ONNX files of {args.model_path} in {onnx_dir}:", highlight=False)
    shown = table(done)
    if args.print_trtexec:
        console.print(shown)
        print("\n".join(["mkdir -p " + args.trt_engine_path, *(each.trtexec for each in done)]), flush=True)
    else:
        Console(file=sys.stdout).print(shown)
    for each in done:
        if each.why_not:
            console.print(f"{each.file.interface.onnx_file} was not run: {each.why_not}", highlight=False)
        for failure in each.failures:
            console.print(failure, style="red", highlight=False)
    return 1 if any(each.failures for each in done) else 0
