#!/usr/bin/env python3
"""Write the tables of README.md, bench/README.md and bench/LOG.md, and the plots, from the records in bench/records.

    python bench/render.py            rewrite what stands between the markers, and the plots (needs matplotlib)
    python bench/render.py --check    exit 1 if a table or a plot does not say what the records say

No figure in these files is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import products
import service_table
import time_budget

from gr00t_trt.report import markdown, png, simulations
from gr00t_trt.report.columns import table
from gr00t_trt.report.views import Loaded, View, fastest, load, rows_of

ROOT = Path(__file__).resolve().parents[1]
BENCH = ROOT / "bench"
BEGIN, END = "<!-- from bench/records, by bench/render.py -->", "<!-- end -->"
FRONT = "front"
"""The picture of README.md."""
PICTURES = ("waterfall", "stages", "roofline")

CLOSED_LOOP = (
    "**Does compilation cost success?** A GR00T N1.5 of 1.5 M parameters, trained by `closed_loop.py` on two CPU cores "
    "from random weights, in the same unseen scenes under every plan: an SO-101 arm puts a cube on a disc. It says "
    "what compilation and precision change, and nothing of how well the released model does the task."
)

HELD_OUT = (
    "**What does a precision change in trained actions?** The same model on demonstrations that were held out of its "
    "training and calibration, against eager fp32 from the same noise: differences in the dataset's units, "
    "and the mean squared error against the expert's actions, over whole episodes."
)

Records = Mapping[str, Loaded]


def main(argv: list[str]) -> int:
    check = "--check" in argv
    paths = sorted((BENCH / "records").glob("*.json"))
    records = {one.name: one for one in load([str(path) for path in paths])}
    services, multiplied = (
        {path.stem: json.loads(path.read_text("utf-8")) for path in sorted((BENCH / folder).glob("*.json"))}
        for folder in ("service", "products")
    )
    played = load([str(path) for path in sorted((BENCH / "closed_loop").glob("*.json"))])
    measured = {name: one for name, one in records.items() if one.record.measured}
    written = {
        ROOT / "README.md": front(records),
        BENCH / "README.md": "\n\n".join(
            (
                tables(records, services),
                *(products.section(name, one, "products/") for name, one in multiplied.items()),
                *closed_loop(played),
            )
        ),
        BENCH / "LOG.md": markdown.log(measured, "records/"),
    }
    stale = [file for file, text in written.items() if put(file, text, check)]
    stale += draw(records, check)
    for file in stale:
        print(f"{file.relative_to(ROOT)}: {'stale' if check else 'written'}")
    return 1 if stale and check else 0


def front(records: Records) -> str:
    """What somebody who has never seen the project should see first: the way to the fastest form, in four rows."""
    one = newest_of_gpus(records)
    rows = table("", front_views(one), ("step", "p50", "speed_up", "cosine"), step="", cosine="cosine to eager fp32")
    drift = one.record.drift
    drifted = f" Its baseline drifted by {drift.percent:.0f} % within the run." if drift and drift.drifted else ""
    note = f"One action chunk, inputs on the GPU: {markdown.title(one, 'bench/records/')}.{drifted}"
    written = "\n".join(short(line) for line in markdown.written(rows).splitlines())
    return "\n\n".join((f"![One action chunk, step by step](bench/plots/{FRONT}.png)", written, note, *on_cpu(records)))


def on_cpu(records: Records) -> list[str]:
    """The same for who has no GPU, in a sentence: eager PyTorch, the fastest in its precision, the fastest of all."""
    measured = [one for one in records.values() if one.record.measured and not one.record.on_gpu]
    if not measured:
        return []
    one = max(measured, key=lambda one: one.record.created_utc)
    whole = [view for view in rows_of([one], "waterfall", "forms") if view.latency]
    exact = [view for view in whole if view.result.candidate.precision == whole[0].result.candidate.precision]
    chosen = (whole[0], fastest(exact)[0], fastest(whole)[0])
    rows = table("", [view for view in whole if view in chosen], ("step", "p50", "speed_up", "cosine")).rows
    said = []
    for place, (step, p50, ratio, cosine) in enumerate(rows):
        gain = f" ({ratio.text.replace('x', '×')}, cosine {cosine.text})" if place else ""
        said.append(f"{step.text.removeprefix('+ ')} {p50.text} ms{gain}")
    return [f"Without a GPU: {', '.join(said)}: {markdown.title(one, 'bench/records/')}."]


def short(step: str) -> str:
    """Without the name of the last optimization, which tells a newcomer nothing."""
    return re.sub(r"\+ \w+ \((all optimizations)\)", r"+ \1", step)


def newest_of_gpus(records: Records) -> Loaded:
    """The measuring run on a GPU that was taken last."""
    of_gpus = (one for one in records.values() if one.record.measured and one.record.on_gpu)
    return max(of_gpus, key=lambda one: one.record.created_utc)


def front_views(one: Loaded) -> list[View]:
    """Eager PyTorch, all optimizations, and what was put on top of them."""
    rows = rows_of([one], "waterfall")
    compiled = next(i for i, view in enumerate(rows) if view.result.candidate.backend == "inductor")
    return [rows[0], *rows[compiled - 1 :]]


def tables(records: Records, services: Mapping[str, Any]) -> str:
    """The time budget, one section per record with its pictures, and one per service."""
    out = [time_budget.section(records.values())]
    for name, one in records.items():
        out.append(markdown.section(one, "records/"))
        out += [f"![{kind} of {name}](plots/{name}-{kind}.png)" for kind in drawable(one)]
    out += [service_table.section(name, record, "service/") for name, record in services.items()]
    return "\n\n".join(out)


def closed_loop(played: Sequence[Loaded]) -> list[str]:
    """What `closed_loop.py` found: a table of success rates for each record, and of pairs; then of each precision."""
    out = []
    for one in played:
        if one.record.simulation is None:
            continue
        *shown, _ = simulations.tables(one.record.simulation)
        out += [f"{one.name} ([record](closed_loop/{one.name}.json))", *map(markdown.written, shown)]
    judged = [one for one in played if one.record.evaluation is not None]
    out += [HELD_OUT, precisions(judged)] if judged else []
    return [CLOSED_LOOP, *out] if out else []


def precisions(judged: Sequence[Loaded]) -> str:
    """A row for each record of `evaluate --compare`: its actions against those of eager fp32, the most alike first."""
    parts = list(judged[0].record.evaluation["difference"]["per_key"])
    named = [part.partition(".")[2] for part in parts]
    heads = ("", "frames", "cosine", "dB", *(f"{part}, mean" for part in named), *(f"{part}, most" for part in named))
    heads = (*heads, "most, % of range", "error of fp32", "error of this")
    rows = []
    for one in sorted(judged, key=lambda one: -one.record.evaluation["difference"]["cosine"]):
        own = one.record.evaluation
        apart, (eager, this) = own["difference"], own["candidates"]
        frames = sum(row["queries"] for row in this["trajectories"])
        per_part = [apart["per_key"][part][size] for size in ("mean_abs", "max_abs") for part in parts]
        most = max(each["max_percent_of_range"] or 0.0 for each in apart["per_key"].values())
        figures = [f"{value:.3g}" for value in (*per_part, most, eager["mean_mse"], this["mean_mse"])]
        kept = ", the worst layers in bf16" if one.record.plan["keep"] else ""
        link = f"{this['name']}{kept} ([record](closed_loop/{one.name}.json))"
        rows.append((link, str(frames), f"{apart['cosine']:.6f}", f"{apart['sqnr_db']:.1f}", *figures))
    return "\n".join(markdown.grid(heads, rows))


def put(file: Path, new: str, check: bool) -> bool:
    """Whether `file` said something else between its markers; without `check` it says `new` now."""
    text = file.read_text(encoding="utf-8")
    head, found, rest = text.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    if not found or not closed:
        raise SystemExit(f"{file}: no place for the tables: {BEGIN} ... {END}")
    whole = f"{head}{BEGIN}\n\n{new}\n\n{END}{tail}"
    if whole != text and not check:
        file.write_text(whole, encoding="utf-8")
    return whole != text


def drawable(one: Loaded) -> list[str]:
    """The plots that a measuring run has something to show in."""
    return [kind for kind in png.charts_of(one) if kind in PICTURES] if one.record.measured else []


def draw(records: Records, check: bool) -> list[Path]:
    """The plots that were not drawn from today's records; without `check` they are, and plots of no record go."""
    wanted = {
        BENCH / "plots" / f"{name}-{kind}.png": (one, kind) for name, one in records.items() for kind in drawable(one)
    }
    best = newest_of_gpus(records)
    wanted[BENCH / "plots" / f"{FRONT}.png"] = (best, "waterfall")
    stale = [path for path, (one, _) in wanted.items() if png.drawn_from(path) != png.digest(one.record)]
    strangers = [path for path in sorted((BENCH / "plots").glob("*.png")) if path not in wanted]
    if not check:
        for path in stale:
            one, kind = wanted[path]
            chart = png.charts_of(one)[kind]
            if path.stem == FRONT:
                steps = {view.step for view in front_views(one)}
                bars = [replace(bar, label=short(bar.label)) for bar in chart.bars if bar.label in steps]
                chart = replace(chart, bars=tuple(bars))
            png.draw(chart, one.record, path)
        for path in strangers:
            path.unlink()
    return stale + strangers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
