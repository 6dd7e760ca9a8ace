"""`gr00t-trt metadata`: statistics of a dataset, shown and written as a checkpoint's metadata.json.

Exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...common.command import Parser, on_stdout, parse_flags, run_program
from ...common.files import prepare_file
from ...common.interface import ModalityConfig
from ...common.progress import Steps, progress
from ...errors import UsageError

if TYPE_CHECKING:
    from ...data import DatasetMetadata, LeRobotDataset, Statistics

DEFAULT_TAG = "new_embodiment"

EPILOG = """\
A checkpoint's experiment_cfg/metadata.json tells a policy, for each embodiment tag, how its states and actions are
scaled: least, greatest and mean value, standard deviation and quantiles of every part, over all rows of the dataset
that it was trained on. This program makes the file from a dataset, for a checkpoint that came without one. It must be
the dataset of the training: with other statistics, the same actions are scaled to other motions.

examples:
  look at a dataset, every part of it:
    gr00t-trt metadata demo_data/robot_sim.PickNPlace
  which parts the data config so100 needs, and whether they can be had:
    gr00t-trt metadata my_dataset --data_config so100
  write them where a policy finds them:
    gr00t-trt metadata my_dataset --data_config so100 --embodiment_tag new_embodiment \\
      --out my_checkpoint/experiment_cfg/metadata.json

statistics: those of the dataset's meta/stats.json; for parts that it lacks, they are computed from the parquet files.
constant: elements that never change. A policy cannot learn them, and min_max normalises them to 0.

exit status: 0 done, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="gr00t-trt metadata",
        description="Statistics and layout of a LeRobot dataset (v2.0, v2.1, v3.0), as a policy needs them.",
        epilog=EPILOG,
    )
    p.add_argument("dataset", metavar="DATASET", help="the dataset's folder")
    p.add_argument("--data_config", metavar="NAME", help="its keys are needed, built in or module:Class [every part]")
    p.add_argument("--embodiment_tag", metavar="TAG", default=DEFAULT_TAG, help="the entry's name [%(default)s]")
    p.add_argument("--out", metavar="FILE", help="metadata.json to write; entries of other tags in it are kept")
    p.add_argument("--force", action="store_true", help="replace the entry of this tag")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    from ...data import embodiment_index  # past the flags: it imports PyTorch

    embodiment_index(args.embodiment_tag)
    out = None if args.out is None else Path(args.out)
    if out is not None:
        _refuse_overwriting(out, args.embodiment_tag, args.force)
    with progress(console) as steps:
        dataset, metadata = _read(args, steps)
    _print(metadata, dataset.notes)
    if out is not None:
        metadata.write(out)
        console.print(f"written: {out}, entry {args.embodiment_tag}", markup=False, highlight=False, soft_wrap=True)
    return 0


def _refuse_overwriting(out: Path, tag: str, force: bool) -> None:
    """Raises: UsageError for an entry that is there; Gr00tError for a file that cannot be read or written."""
    from ...data.meta_files import read_object

    if out.suffix != ".json":
        raise UsageError(f"--out: {out} is no .json file", fix=f"--out {out / 'experiment_cfg' / 'metadata.json'}")
    if out.exists() and tag in read_object(out) and not force:
        fix = "add --force to replace it, or name another with --embodiment_tag"
        raise UsageError(f"--out: {out} has an entry {tag}", fix=fix)
    prepare_file(out, "metadata", "--out")


def _read(args: argparse.Namespace, steps: Steps) -> tuple[LeRobotDataset, DatasetMetadata]:
    from ...data import LeRobotDataset, data_config

    steps.step(f"reading {args.dataset}")
    if args.data_config is None:
        dataset = LeRobotDataset(args.dataset, {})
        sections = ("video", "state", "action")
        everything = {section: ModalityConfig([0], dataset.layout.keys(section)) for section in sections}
        dataset = LeRobotDataset(args.dataset, everything)
    else:
        dataset = LeRobotDataset(args.dataset, data_config(args.data_config).modality_config())
    return dataset, dataset.metadata(args.embodiment_tag, steps.advance)


def _print(metadata: DatasetMetadata, notes: Sequence[str]) -> None:
    with on_stdout() as out:
        out.print(_table(metadata))
        for name, view in metadata.video.items():
            width, height = view.resolution
            out.print(f"video.{name}: {width} x {height} at {view.fps:g} frames per second", highlight=False)
        for note in notes:
            out.print(note, markup=False, highlight=False, soft_wrap=True)


def _table(metadata: DatasetMetadata) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("part", overflow="fold")
    table.add_column("width", justify="right", no_wrap=True)
    for head in ("min", "max", "mean", "std", "constant"):
        table.add_column(head, overflow="fold")
    for section in ("state", "action"):
        for name, values in getattr(metadata, f"{section}_statistics").items():
            vectors = (values.min, values.max, values.mean, values.std)
            numbers = (" ".join(f"{value:.3g}" for value in vector) for vector in vectors)
            cells = [f"{section}.{name}", str(values.min.size), *numbers, _constant(values)]
            table.add_row(*(Text(cell) for cell in cells))
    return table


def _constant(values: Statistics) -> str:
    """Which elements never change, in words."""
    still = np.flatnonzero(values.min == values.max)
    if len(still) in (0, values.min.size):
        return "yes" if len(still) else "no"
    return "elements " + ", ".join(map(str, still.tolist()))
