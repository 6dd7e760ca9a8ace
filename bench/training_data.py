#!/usr/bin/env python3
"""How fast the samples of a training are made, with the frame cache cold and warm, written as one JSON record.

    python bench/training_data.py demo_data/robot_sim.PickNPlace --episodes present
    python bench/training_data.py my_dataset --data_config so100 --embodiment_tag new_embodiment --workers 0,4,12
    python bench/training_data.py synthetic --batches 3     a rehearsal

Rows of the table, each with CPU time a sample, of this process and its workers, and samples a second:

    opened anew   the parquet file read and the video opened for every sample, the order of reading of Isaac-GR00T
    cold          the first batches with an empty cache: every episode is decoded once
    warm          the same batches again; also without augmentation, and with worker processes

With --step_ms the training takes so long for a step, and the wait for each batch says whether it is held up.
Only CPU times can be compared on a machine that does other work.
"""

from __future__ import annotations

import argparse
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gr00t_trt.common.command import Parser, parse_flags, run_program
from gr00t_trt.common.progress import progress
from gr00t_trt.data import Prompter, synthetic_tokenizer
from gr00t_trt.finetune.loader import batches
from gr00t_trt.finetune.samples import DataOptions, Frame, TrainingData, open_training_data, read_sources
from gr00t_trt.model import load_config
from gr00t_trt.record.environment import environment, git_state
from gr00t_trt.record.files import dumps, prepare_record, write_record

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="training_data.py", description=__doc__)
    p.add_argument("dataset", metavar="DATASET", help="a LeRobot dataset, or synthetic")
    p.add_argument("--data_config", default="fourier_gr1_arms_only", metavar="NAME", help="[%(default)s]")
    p.add_argument("--embodiment_tag", default="gr1", metavar="TAG", help="[%(default)s]")
    p.add_argument("--episodes", default="all", choices=("all", "present"), help="as of finetune [%(default)s]")
    p.add_argument("--batch_size", type=int, default=32, metavar="N", help="[%(default)s]")
    p.add_argument("--batches", type=int, default=10, metavar="N", help="of each row [%(default)s]")
    p.add_argument("--workers", type=_counts, default=[0, 2], metavar="N,N", help="numbers of workers [0,2]")
    p.add_argument("--step_ms", type=float, default=0.0, metavar="MS", help="what a step takes [%(default)g]")
    p.add_argument("--record", metavar="PATH", help="where the record goes [stdout]")
    return p


def _counts(text: str) -> list[int]:
    counts = [int(each) for each in text.split(",")]
    if min(counts) < 0:
        raise ValueError
    return counts


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    if args.record:
        prepare_record(args.record)
    torch.set_num_threads(1)  # as in a worker
    with progress(console) as steps, TemporaryDirectory() as folder:
        rows = []
        for what, measure in _parts(args, Path(folder)).items():
            steps.step(what)
            rows.append({"what": what, **measure()})
        about = _about(args, Path(folder))
    record = {
        "schema": 1,
        "kind": "training_data",
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["bench/training_data.py", *argv]),
        "git": git_state(ROOT),
        "environment": environment(),
        **about,
        "rows": rows,
    }
    console.print(_table(rows))
    if args.record:
        write_record(record, args.record)
    else:
        print(dumps(record))
    return 0


def _parts(args: argparse.Namespace, folder: Path) -> Mapping[str, Callable[[], Row]]:
    """What is measured, in order: the cache that is cold in one row is warm in the next."""
    cache, most = folder / "cache", max(args.workers)

    def ready(where: Path | str, augment: bool = True) -> TrainingData:
        return open_training_data(replace(_options(args), frame_cache=where, augment=augment))

    parts: dict[str, Callable[[], Row]] = {
        "opened anew, no worker": lambda: _opened_anew(args, ready("off")),
        "cold, no worker": lambda: _taken(args, ready(cache), 0),
        "warm, no augmentation, no worker": lambda: _taken(args, ready(cache, augment=False), 0),
    }
    if most:
        parts[f"cold, {most} workers"] = lambda: _taken(args, ready(folder / "another"), most)
    for count in args.workers:
        what = f"warm, {count or 'no'} worker{'s' * (count > 1)}"
        parts[what] = partial(lambda count: _taken(args, ready(cache), count), count)
    return parts


def _options(args: argparse.Namespace) -> DataOptions:
    geometry = load_config("synthetic:full")
    words = synthetic_tokenizer(geometry.special_tokens, geometry.vocab_size)
    prompter = Prompter(words, words.special_tokens, geometry.image_size, geometry.tokens_per_image)
    sources = read_sources([args.dataset], [args.data_config], [args.embodiment_tag])
    return DataOptions(sources, geometry, prompter, episodes=args.episodes)


def _about(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = open_training_data(replace(_options(args), frame_cache=folder / "cache"))
    sizes = [path.stat().st_size for path in (folder / "cache").glob("*.frames")]
    views = {key: data.metadata[args.embodiment_tag].view(key).resolution for key in _views(data)}
    return {"frames": data.steps, "views": views, "cache_bytes": sum(sizes), "cache_episodes": len(sizes)}


def _views(data: TrainingData) -> Sequence[str]:
    (modalities,) = data.modality_configs.values()
    return modalities["video"].modality_keys


def _opened_anew(args: argparse.Namespace, data: TrainingData) -> Row:
    """Another episode for every sample, so that nothing of it is open yet."""
    recording = data.recordings[0]
    frames = [data.frame(0, position) for position in range(data.pass_length)]
    by_episode = {e.index: iter([f for f in frames if f.episode == e.index]) for e in recording.trained}

    def alternating() -> Iterator[Frame]:
        while True:
            for found in by_episode.values():
                recording.dataset.close()
                yield next(found)

    order, count = alternating(), min(args.batches, 3) * args.batch_size
    made = ((data.inputs([next(order)], [position], 0), 0.0) for position in range(count))
    return _timed(args, made, 1)


def _taken(args: argparse.Namespace, data: TrainingData, workers: int) -> Row:
    found = batches(data, seed=0, start_step=0, steps=args.batches, batch_size=args.batch_size, workers=workers)
    with closing(found):
        row = _timed(args, ((batch.inputs, batch.wait_s) for batch in found), args.batch_size)
    return row


def _timed(args: argparse.Namespace, made: Iterator[tuple[Any, float]], size: int) -> Row:
    """Take everything, with a pause of a step after each; workers have ended when their CPU time is read."""
    begin, cpu, waits = time.perf_counter(), _cpu_s(), []
    for _, wait_s in made:
        waits.append(wait_s)
        time.sleep(args.step_ms / 1000)
    wall, samples = time.perf_counter() - begin, len(waits) * size
    return {
        "samples": samples,
        "cpu_ms_per_sample": 1000 * (_cpu_s() - cpu) / samples,
        "samples_per_s": samples / wall,
        "first_wait_ms": 1000 * waits[0],
        "wait_ms": 1000 * sum(waits[1:]) / max(1, len(waits) - 1),
    }


def _cpu_s() -> float:
    """CPU time of this process and of all workers that have ended."""
    found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in found)


def _table(rows: Sequence[Row]) -> Table:
    table = Table("what", *(f"{head}" for head in ("CPU ms a sample", "samples/s", "first wait ms", "wait ms")))
    for row in rows:
        numbers = (row["cpu_ms_per_sample"], row["samples_per_s"], row["first_wait_ms"], row["wait_ms"])
        table.add_row(row["what"], *(f"{number:.1f}" for number in numbers))
    return table


if __name__ == "__main__":
    sys.exit(main())
