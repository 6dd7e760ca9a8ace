"""`gr00t-trt export`: the submodules as ONNX files, each checked and run by ONNX Runtime against eager fp32.

Exit status: 0 done, 1 a file misses its gate, 2 bad input, 130 interrupted, 141 nobody reads the messages any more.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from ..common.command import Parser, parse_flags, run_program, setting, switch
from ..errors import BackendError, PlanError
from ..plans import flags
from ..plans.precisions import PRECISIONS, find_precision, precision_names
from ..plans.resolve import Resolved, need_calibration
from ..plans.schema import Plan
from ..plans.submodules import resolve_submodule, select
from ..policy.flags import source_flags

if TYPE_CHECKING:
    import torch

    from ..backends.onnx.export import OnnxFile
    from ..common.interface import Observation
    from ..common.progress import Steps
    from ..measure.harness import Harness
    from ..policy.policy import ModelPolicy
    from ..policy.source import Source
    from ..record.result import Agreement

EPILOG = """\
examples:
  try it, nothing needed (a generated model and made-up inputs):
    gr00t-trt export --model_path synthetic
  the seven files of NVIDIA's deployment scripts, in fp16, checked on a recorded observation:
    gr00t-trt export --dataset_path ./demo_data/robot_sim.PickNPlace --precision fp16
  and the commands that build engines from them:
    gr00t-trt export --print_trtexec > build_engines.sh
  the restructured model, its denoising loop as one file:
    gr00t-trt export --model_path synthetic --optimizations all --loop denoise_loop
  its large submodules in 8 bits, with QuantizeLinear and DequantizeLinear around their products:
    gr00t-trt export --model_path CHECKPOINT --precision int8 --calibration FILE

exit status: 0 done, 1 a file misses its gate, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


@dataclass(frozen=True)
class Exported:
    """One ONNX file, what its gate holds against it, and the `trtexec` command that builds its engine.

    Attributes:
        agreement: Its worst agreement with eager fp32 over every call of the request; None when it did not run.
        why_not: Why it did not run, else an empty string.
    """

    file: OnnxFile
    agreement: Agreement | None
    why_not: str
    failures: list[str]
    trtexec: str


def parser() -> argparse.ArgumentParser:
    """All flags; None where one was not given and the plan decides."""
    what = "Export GR00T N1.5 to ONNX submodule by submodule, under the names of NVIDIA's deployment scripts; "
    what += "check each file and run it by ONNX Runtime against eager fp32."
    p = Parser(prog="gr00t-trt export", description=what, epilog=EPILOG)
    g = p.add_argument_group("what is exported")
    source_flags(
        g,
        *("model_path", "dataset_path", "data_config", "embodiment_tag", "metadata", "tokenizer"),
        helps={
            "dataset_path": "LeRobot dataset whose observation is used, or `synthetic` [made-up inputs, for which a "
            "checkpoint needs neither statistics nor a tokenizer]",
            "data_config": "keys and transforms of that dataset [%(default)s]",
            "embodiment_tag": "projector and statistics [%(default)s]",
            "tokenizer": "for its prompts: folder, tokenizer.json or hub id [found by itself]",
        },
    )
    flags.fn_name_flag(g)
    flags.config_flag(g, "its precisions, ranges and gates count; flags win over them")
    flags.precision_flag(g, " [fp16]")
    switch(g, "use_fp32_acc", default=None, help="matrix products of half precision accumulate in fp32")
    flags.optimizations_flag(
        g, "restructured model: all, none, or names [none, all for int8 and fp8, or what --config says]"
    )
    flags.loop_flag(g, "; the last two need --optimizations [submodules]")
    source_flags(g, "device", "seed")

    g = p.add_argument_group("what comes out")
    setting(g, "onnx_dir", "gr00t_onnx", "where the files go", metavar="DIR")
    switch(g, "print_trtexec", help="print the trtexec commands on stdout, and the table on stderr")
    setting(g, "trt_engine_path", "gr00t_engine", "where those commands put engines", metavar="DIR")
    return p


def export(harness: Harness, resolved: Resolved, onnx_dir: Path, engine_dir: Path) -> Iterator[Exported]:
    """Export the compile targets one after the other, each checked before the next begins.

    Raises: BackendError naming the submodule and the phase; RecordError when a file cannot be written; PlanError as
        `quantized_target`.
    """
    from ..backends.onnx import backend as onnxruntime
    from ..backends.onnx import export as onnx_export
    from ..compile.build import dimension_ranges
    from ..measure.accuracy import judge
    from ..measure.results import agreement_with
    from ..quantize.layers import quantized_target
    from . import trtexec

    plan, base = resolved.plan, harness.reference.base
    model, recording = harness.model(plan.optimizations), harness.recording(plan.optimizations)
    dims = dimension_ranges(model.config, plan.ranges, base)
    for number, name in enumerate(resolved.names, 1):

        def progress(phase: str, prefix: str = f"{name} ({number} of {len(resolved.names)})") -> None:
            harness.steps.step(f"{prefix}: {phase}")

        own = resolved[name]
        target, _ = quantized_target(model.target(name, recording, dims), model, own, harness.policy)
        file = onnx_export.export(target, onnx_dir, own.build, progress)
        agreement, failures = None, []
        why_not = onnxruntime.cannot_run(target)
        if not why_not:
            progress("running it by ONNX Runtime")
            call = onnxruntime.open_session(target, file, own.build)
            agreement = agreement_with(call, recording[name], model.argument_dtypes(name), harness.device)
            failures = list(judge(name, agreement, own.gate))
        line = trtexec.command(file.interface, own.build, onnx_dir=onnx_dir, engine_dir=engine_dir)
        yield Exported(file, agreement, why_not, failures, line)


def request(source: Source, plan: Plan, device: torch.device, steps: Steps) -> tuple[ModelPolicy, Observation]:
    """The model in fp32 and the request that is followed through it: recorded, or made up where there is no dataset.

    A graph depends on neither statistics nor words, so that made-up model inputs need nothing but the weights.
    Raises: Gr00tError for anything missing.
    """
    import torch

    from ..data import embodiment_index
    from ..model import example_inputs, load_model
    from ..model.n1_5.inputs import EMBODIMENT
    from ..policy.policy import TensorPolicy
    from ..policy.source import load_source

    if source.dataset_path is not None:
        return load_source(source, device, steps)
    config, tag = source.data()
    own = getattr(config, "embodiment", None)  # LeRobot's checkpoints say it themselves
    index = embodiment_index(tag) if own is None else own
    steps.step(f"loading the model: {source.model_path}")
    model = load_model(source.model_path, device=device)
    model.denoising_steps = plan.denoising_steps
    inputs = {**example_inputs(model.config), EMBODIMENT: torch.tensor([index])}
    policy = TensorPolicy(model, {name: value.to(device) for name, value in inputs.items()})
    return policy, policy.example()


def table(done: Sequence[Exported]) -> Table:
    """One row per file."""
    # Narrow enough for the 80 columns of a terminal, or of a file, whatever the longest name.
    out = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0), pad_edge=False)
    for heading in ("file", "type", "MB", "opset", "nodes", "cosine", "gate"):
        out.add_column(heading, justify="left" if heading in ("file", "type", "gate") else "right", no_wrap=True)
    for each in done:
        file, agreement = each.file, each.agreement
        out.add_row(
            file.interface.onnx_file,
            file.metadata.get("formats", file.metadata["dtype"]),
            f"{file.bytes / 1e6:.1f}",
            file.metadata["opset"],
            str(file.nodes),
            "–" if agreement is None else f"{agreement.cosine:.7f}",
            "–" if agreement is None else "FAIL" if each.failures else "pass",
        )
    return out


def plan_of(args: argparse.Namespace) -> Plan:
    """The plan of the flags: as the published files are cut, the plain model's, unless a precision rules that out."""
    row = find_precision(args.precision or "")
    default = Plan() if row is not None and row.quantized else Plan(optimizations=())
    return flags.plan_from(args, flags.overrides_of(args, use_fp32_acc="build.use_fp32_acc"), default)


def _refuse_unwritable(plan: Plan, names: Sequence[str]) -> None:
    """Raises: PlanError for a format that ONNX cannot express, and a quantised precision without its calibration."""
    for name in names:
        own = resolve_submodule(plan, name)
        able = PRECISIONS[own.precision].backends
        if able and "onnxruntime" not in able:
            raise PlanError(
                f"precision {own.precision} of {name}: ONNX has no operator that quantises an input by blocks",
                known=[name for name in precision_names() if not PRECISIONS[name].backends],
                fix="use --precision fp8 or int8, or build engines of it with --backend torch_tensorrt",
            )
        need_calibration(own)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the table or the trtexec commands to stdout."""
    return run_program(_main, argv, interrupted="interrupted; finished files are whole")


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ..backends.onnx.backend import OnnxRuntimeBackend
    from ..common import devices
    from ..common.progress import progress
    from ..measure.harness import Harness
    from ..measure.reference import take_reference
    from ..measure.workloads import one_request
    from ..policy.source import Source
    from ..quantize.layers import refuse_unfit

    plan = plan_of(args)
    names = select(args.fn_name, plan)
    _refuse_unwritable(plan, names)
    device, backend = devices.choose_device(args.device), OnnxRuntimeBackend()
    available = backend.availability_on(device.type)
    if not available.installed and device.type == "cuda" and args.device is None:
        console.print(f"The files are checked on the CPU: {available.reason}.", highlight=False)
        device = devices.choose_device("cpu")
        available = backend.availability_on("cpu")
    if not available.installed:
        raise BackendError(available.reason)
    onnx_dir = Path(args.onnx_dir)
    resolved = Resolved(plan, names)
    refuse_unfit(resolved)
    with progress(console) as steps:
        source = replace(Source.of(args), denoising_steps=plan.denoising_steps)
        policy, observation = request(source, plan, device, steps)
        reference = take_reference(policy, one_request(policy, observation, args.seed), [plan.optimizations], steps)
        done = list(export(Harness(reference, plan, steps), resolved, onnx_dir, Path(args.trt_engine_path)))
    console.print(f"ONNX files of {args.model_path} in {onnx_dir}:", highlight=False)
    if args.print_trtexec:
        console.print(table(done))
        print("\n".join(["mkdir -p " + args.trt_engine_path, *(each.trtexec for each in done)]), flush=True)
    else:
        Console(file=sys.stdout).print(table(done))
    for each in done:
        if each.why_not:
            console.print(f"{each.file.interface.onnx_file} was not run: {each.why_not}", highlight=False)
        for failure in each.failures:
            console.print(failure, style="red", highlight=False)
    return 1 if any(each.failures for each in done) else 0
