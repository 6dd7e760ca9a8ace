"""`gr00t-trt calibrate`: ranges of every linear layer's input over recorded frames, for quantised precisions.

Exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from ... import __version__
from ...common.command import Parser, check_least, on_stdout, parse_flags, run_program, setting
from ...common.files import prepare_file
from ...common.install import install_extra
from ...common.progress import Steps, progress
from ...errors import UsageError, unknown
from ...plans.precisions import PRECISIONS, find_precision
from ...policy.flags import check_seed, source_flags

if TYPE_CHECKING:
    from ...quantize.calibration import Calibration
    from .observe import Requests

DEFAULT_FRAMES, DEFAULT_RANK_FRAMES = 16, 4

EPILOG = """\
int8, fp8 and nvfp4 hold the input of a linear layer on a scale that is fixed beforehand. This program runs whole
requests in fp32 over recorded frames, each with fresh noise, and keeps the largest magnitude of every layer's input and
of every channel of it, with where they come from: weights, dataset, frames, seed, steps. The file fits these weights
and this data config; evaluate on other episodes than those it was made from.

examples:
  try it, nothing needed:
    gr00t-trt calibrate --model_path synthetic --dataset_path synthetic --out calibration.safetensors
    gr00t-trt evaluate --model_path synthetic --dataset_path synthetic --precision fp8 \\
      --calibration calibration.safetensors --compare
  which layers suffer most in nvfp4, for `keep: auto` and for people:
    gr00t-trt calibrate --model_path CHECKPOINT --dataset_path DATASET --out calibration.safetensors --rank nvfp4

the table: how large inputs get in each stage, the loudest channel over the median one (int8 smooths such channels),
and the share of the final range that fewer frames had seen in the layer where it is least.
the ranking: noise over signal of the stage's output with one layer quantised, in decibels; noise adds up, so the
column beside it tells what is left when a layer and all below it are quantised.

exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    what = "Observe how large the inputs of every linear layer get in recorded frames, for int8, fp8 and nvfp4."
    p = Parser(prog="gr00t-trt calibrate", description=what, epilog=EPILOG)
    g = p.add_argument_group("what runs")
    names = ("model_path", "dataset_path", "data_config", "embodiment_tag", "metadata", "tokenizer")
    demo = "./demo_data/robot_sim.PickNPlace"
    help = "LeRobot dataset whose frames are used, or `synthetic` [%(default)s]"
    source_flags(g, *names, helps={"dataset_path": help}, dataset_path=demo)
    source_flags(g, "bracketed_instruction", "denoising_steps", "frame_lookup", "seed", "device")
    g = p.add_argument_group("frames")
    g.add_argument("--episodes", nargs="+", type=int, metavar="N", help="episodes to take them from [the first two]")
    setting(g, "frames", DEFAULT_FRAMES, "how many, spread evenly over the episodes")
    g = p.add_argument_group("results")
    g.add_argument("--out", metavar="FILE", help="the file to write, .safetensors [none: the table alone]")
    g.add_argument(
        "--rank", nargs="+", metavar="P", help="rank the layers by their noise in these precisions: one evaluation each"
    )
    help = "frames that every layer is ranked on: the released model takes some minutes each on a CPU"
    setting(g, "rank_frames", DEFAULT_RANK_FRAMES, help)
    g.add_argument("--plot", metavar="FILE", help="draw the ranking: noise by layer, bytes saved against decibels")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; messages go to stderr, the tables to stdout."""
    return run_program(_main, argv, interrupted="interrupted; nothing was written")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without data. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    check_least(args, frames=1, rank_frames=1)
    check_seed(args.seed)
    args.rank = list(dict.fromkeys(_quantized(name) for name in args.rank or ()))
    if args.out is not None:
        if Path(args.out).suffix != ".safetensors":
            raise UsageError(f"--out: {args.out} is no .safetensors file", fix=f"--out {args.out}.safetensors")
        prepare_file(args.out, "calibration", "--out")
    if args.plot is not None:
        if not args.rank:
            raise UsageError("--plot: there is no ranking to draw", fix="add --rank int8, fp8 or nvfp4")
        if importlib.util.find_spec("matplotlib") is None:
            raise UsageError("--plot needs matplotlib, which is not installed", fix=install_extra("plots"))
        prepare_file(args.plot, "picture", "--plot")
    return args


def _quantized(text: str) -> str:
    """The quantised precision that is meant. Raises: UsageError."""
    row = find_precision(text)
    if row is None or not row.quantized:
        raise unknown(UsageError, "--rank", text, [row.name for row in PRECISIONS.values() if row.quantized])
    return row.name


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse(argv)
    # Past the flags, so that --help and a typing mistake cost no PyTorch import.
    from ...quantize.calibration import write_calibration
    from .observe import rank

    with progress(console) as steps:
        requests, calibration = calibrate(args, steps)
        if args.rank:
            steps.step(f"ranking the layers in {', '.join(args.rank)}")
            noise = rank(requests, calibration.layers, args.rank, steps.advance, args.rank_frames)
            calibration = calibration.ranked(noise)
    said = doubts(calibration)
    if args.out is not None:
        write_calibration(calibration, args.out)
        said.append(f"written: {args.out}")
    _print(requests, calibration, args.rank, args.plot)
    if args.plot is not None:
        said.append(f"written: {args.plot}")
    for text in said:
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    return 0


def calibrate(args: argparse.Namespace, steps: Steps) -> tuple[Requests, Calibration]:
    """The requests of the flags, run. Raises: Gr00tError for anything missing."""
    from ...common.devices import choose_device
    from ...policy.source import Source
    from ...quantize.calibration import Calibration, Provenance, dataset_id
    from .observe import Requests, choose_frames, observe_frames

    source = Source.of(args)
    source.data()  # a wrong name is told at once
    steps.step(f"reading the dataset: {args.dataset_path}")
    dataset = source.dataset()
    frames = choose_frames(dataset, args.episodes, args.frames)
    policy = source.policy(choose_device(args.device), steps, statistics=source.statistics(dataset))
    requests = Requests(policy, dataset, frames, args.seed)
    steps.step(f"running {len(frames)} frames of {len({episode for episode, _ in frames})} episodes")
    layers = observe_frames(requests, steps.advance)
    _, tag = source.data()
    provenance = Provenance(
        args.model_path,
        dataset.path.name,
        dataset_id(dataset),
        frames,
        args.seed,
        policy.denoising_steps,
        policy.config_name,
        str(tag),
        __version__,
    )
    return requests, Calibration(provenance, layers)


def doubts(calibration: Calibration) -> list[str]:
    """What makes it worth less than it could be, a sentence each."""
    frames = calibration.provenance.frames
    out = []
    if len(frames) < DEFAULT_FRAMES:
        out.append(f"{len(frames)} frames: {DEFAULT_FRAMES} or more see ranges that fewer miss, see the table")
    if len({episode for episode, _ in frames}) < 2:
        out.append("one episode: frames of a second one show what belongs to the scene and what to the task")
    return out


def _print(requests: Requests, calibration: Calibration, forms: Sequence[str], plot: str | None) -> None:
    from ...quantize.formats import FORMATS
    from ...quantize.layers import linear_layers
    from .tables import ranking_table, seen_table

    layers = calibration.layers
    sizes = {name: layer.weight.numel() for name, layer in linear_layers(requests.model).items()}
    noise = {name: seen.noise for name, seen in layers.items() if seen.noise}
    bits = {form: FORMATS[form].bits for form in forms}
    with on_stdout() as out:
        out.print(seen_table(layers, len(calibration.provenance.frames)))
        for form, width in bits.items():
            out.print()
            out.print(ranking_table({name: own[form] for name, own in noise.items()}, sizes, form, width))
    if plot is not None:
        from .plot import draw

        draw(Path(plot), noise, sizes, bits)
