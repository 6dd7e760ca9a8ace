"""What an evaluation found, as a record and as tables."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..data import DatasetMetadata, LeRobotDataset
from ..plans.load import plan_to_mapping
from ..record.samples import Samples
from ..record.schema import Inputs, Record
from .about import About, record_of
from .episodes import Prediction, Recording, closeness, difference, score
from .policies import plan_of


def fill(
    args: argparse.Namespace,
    command: Sequence[str],
    dataset: LeRobotDataset,
    recordings: Sequence[Recording],
    predictions: Mapping[str, Sequence[Prediction]],
    about: Mapping[str, About],
    keys: Sequence[str],
    statistics: DatasetMetadata | None,
) -> Record:
    """The record: every candidate's error per trajectory and dimension, its latencies, and how far two are apart.

    `predictions` and `about` are by candidate, the former one per recording; `keys` are the actions in the error,
    `statistics` the local policy's, whose ranges a difference is a share of.
    """
    plan = plan_of(args) if args.model_path else None
    record = record_of(
        args,
        command,
        list(about.values()),
        plan=None if plan is None else plan_to_mapping(plan),
        plan_path=args.config,
        inputs=Inputs(dataset=dataset.path.name, seed=args.seed if args.model_path else None),
    )
    for recording in recordings:
        if len(recording) < args.steps:
            why = f"trajectory {recording.trajectory} ends after {len(recording)} rows, and so does its evaluation"
            record.skip(f"--steps {args.steps}", why)
    record.evaluation = {
        "modality_keys": list(keys),
        "candidates": [_candidate(name, about[name], recordings, own, keys) for name, own in predictions.items()],
        "difference": None,
        "plots": [],
    }
    if len(predictions) == 2:
        (first, a), (second, b) = predictions.items()
        assert statistics is not None  # two candidates are compared only where one of them is local
        known = {key: statistics.statistics(key) for key in a[0].actions}
        record.evaluation["difference"] = {
            "between": [first, second],
            "per_key": difference(a, b, {key: own.max - own.min for key, own in known.items()}),
            **closeness(a, b, {key: (own.min, own.max) for key, own in known.items()}),
        }
        if args.compare == "server":
            record.skip("--compare server", "the server draws noise of its own, which is part of the difference")
    return record


def _candidate(
    name: str, about: About, recordings: Sequence[Recording], predictions: Sequence[Prediction], keys: Sequence[str]
) -> Any:
    scores = [score(r, p, keys) for r, p in zip(recordings, predictions, strict=True)]
    latencies = tuple(ms for prediction in predictions for ms in prediction.latency_ms)
    return {
        "name": name,
        **about.facts,
        "latency_ms": Samples(latencies, warmup=1, device=about.where).to_dict(),
        "mean_mse": float(np.mean([s.mse for s in scores])),
        "trajectories": [
            {
                "trajectory": recording.trajectory,
                "instruction": recording.instruction,
                "steps": len(recording),
                "queries": len(recording.queries),
                "mse": own.mse,
                "per_dimension_mse": {key: value.tolist() for key, value in own.per_dimension.items()},
            }
            for recording, own in zip(recordings, scores, strict=True)
        ],
    }


def render(record: Record, console: Console) -> None:
    """Show a record of an evaluation: errors per trajectory, latency, and how far two candidates are apart."""
    found = record.evaluation
    candidates = found["candidates"]
    parts = ", ".join(key.partition(".")[2] for key in found["modality_keys"])
    table = Table(title=f"mean squared error of {parts}, dataset's units squared", title_justify="left")
    for title in ("trajectory", "rows", "queries", *(candidate["name"] for candidate in candidates)):
        table.add_column(title, justify="right")
    for number, row in enumerate(candidates[0]["trajectories"]):
        errors = [f"{c['trajectories'][number]['mse']:.6f}" for c in candidates]
        table.add_row(str(row["trajectory"]), str(row["steps"]), str(row["queries"]), *errors)
    table.add_section()
    table.add_row("mean", "", "", *(f"{c['mean_mse']:.6f}" for c in candidates), style="bold")
    table.add_section()
    for label, field in (("query p50 ms", "p50"), ("query p99 ms", "p99")):
        table.add_row(label, "", "", *(f"{c['latency_ms'][field]:.1f}" for c in candidates))
    console.print(table)
    if found["difference"] is not None:
        console.print(_difference_table(found["difference"]))
    for note in record.skipped:
        console.print(Text(f"{note.what}: {note.why}"))
    for picture in found["plots"]:
        console.print(Text(f"plot: {picture}"), soft_wrap=True)


def _difference_table(found: Any) -> Table:
    first, second = found["between"]
    table = Table(title=f"how far {second} is from {first}, dataset's units", title_justify="left")
    for title in ("action", "largest", "mean", "largest, % of its range"):
        table.add_column(title, justify="left" if title == "action" else "right")
    for key, own in found["per_key"].items():
        values = (own[name] for name in ("max_abs", "mean_abs", "max_percent_of_range"))
        table.add_row(key.partition(".")[2], *("-" if value is None else f"{value:.3g}" for value in values))
    decibels = "" if found["sqnr_db"] is None else f", {found['sqnr_db']:.1f} dB"
    if found["cosine"] is not None:
        table.caption = f"cosine {found['cosine']:.6f}{decibels}, each dimension from -1 to 1 over its range"
        table.caption_justify = "left"
    return table
