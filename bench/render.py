#!/usr/bin/env python3
"""Write the tables of README.md and bench/README.md from the records in bench/records.

    python bench/render.py            rewrite what stands between the markers
    python bench/render.py --check    exit 1 if a table does not say what the records say

No figure in either file is typed by hand.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

from gr00t_trt.records import read_record

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "bench" / "records"
BEGIN, END = "<!-- from bench/records, by bench/render.py -->", "<!-- end -->"


def main(argv: list[str]) -> int:
    records = {path.name: read_record(path) for path in sorted(RECORDS.glob("*.json"))}
    stale = []
    for file, links in ((ROOT / "README.md", "bench/records/"), (ROOT / "bench" / "README.md", "records/")):
        text = file.read_text(encoding="utf-8")
        head, found, rest = text.partition(BEGIN)
        _, closed, tail = rest.partition(END)
        if not found or not closed:
            raise SystemExit(f"{file}: no place for the tables: {BEGIN} ... {END}")
        new = f"{head}{BEGIN}\n\n{tables(records, links)}\n\n{END}{tail}"
        if new != text:
            stale.append(file)
            if "--check" not in argv:
                file.write_text(new, encoding="utf-8")
    for file in stale:
        print(f"{file.relative_to(ROOT)}: {'stale' if '--check' in argv else 'written'}")
    return 1 if stale and "--check" in argv else 0


def tables(records: dict[str, dict[str, Any]], links: str) -> str:
    """One section per record."""
    return "\n\n".join(_section(name, record, links) for name, record in records.items())


def _section(name: str, record: dict[str, Any], links: str) -> str:
    environment, workload, versions = record["environment"], record["workload"], record["environment"]["distributions"]
    gpu = environment.get("gpu") if str(record["device"]).startswith("cuda") else None
    where = gpu or f"no GPU, {environment['cpu_cores']} CPU cores"
    used = [f"{key} {versions[key]}" for key in ("torch", "torch-tensorrt", "torch-tensorrt-rtx") if versions.get(key)]
    peak = record["peak_memory"]
    restructured = ", restructured model" if record["plan"].get("optimisations") else ""
    lines = [
        f"**{record['model']['path']}{restructured}, {record['plan']['precision']}, {where}** "
        f"([record]({links}{name}): {', '.join(used)}; {workload['views']} view, {workload['sequence_length']} tokens, "
        f"{workload['denoising_steps']} steps, batch {workload['batch_size']})",
        "",
        "| submodule | backend | operators in engine | engines | MB | build s | eager p50 ms | compiled p50 ms "
        "| p99 ms | cosine to fp32 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(entry) for entry in record["submodules"]),
        _total(record),
        "",
        f"Whole run {record['wall_s']:.0f} s, peak {peak['peak_bytes'] / 1e9:.1f} GB ({peak['kind']}).",
    ]
    if verdict := record["end_to_end"]["verdict"]:
        lines.append(f"Whole request: {verdict['text']}.")
    if restructured:
        lines.append("Eager in the last row is the plain model; above, the restructured submodule itself in PyTorch.")
    executed = {
        "torch_tensorrt": "the compiler's own graph, executed in PyTorch",
        "tensorrt": "the exported graph, run by ONNX Runtime",
    }
    if idle := {entry["backend"] for entry in record["submodules"] if not entry["runs"]}:
        lines.append(
            "Engines were built and not run, so they have no latency. Cosines are of "
            f"{' and '.join(text for backend, text in executed.items() if backend in idle)}."
        )
    return "\n".join(lines)


def _row(entry: dict[str, Any]) -> str:
    taken = None if entry["operators"] is None else f"{entry['converted']} of {entry['operators']}"
    return _cells(
        entry["name"],
        f"{entry['backend']} {entry['precision']}",
        taken,
        entry["engines"],
        _number(entry["engine_bytes"], 1e-6, 0),
        _number(entry["build_s"], 1, 1),
        _quantile(entry["eager_latency_ms"], "p50"),
        _quantile(entry["latency_ms"], "p50"),
        _quantile(entry["latency_ms"], "p99"),
        _cosine(entry["accuracy"]),
    )


def _total(record: dict[str, Any]) -> str:
    entries, whole = record["submodules"], record["end_to_end"]

    def total(field: str) -> float | None:
        values = [entry[field] for entry in entries]
        return None if any(value is None for value in values) else sum(values)

    return _cells(
        "whole request",
        "",
        "",
        total("engines"),
        _number(total("engine_bytes"), 1e-6, 0),
        _number(total("build_s"), 1, 1),
        _quantile(whole["eager_latency_ms"], "p50"),
        _quantile(whole["latency_ms"], "p50"),
        _quantile(whole["latency_ms"], "p99"),
        _cosine(record["accuracy"]["normalised"]),
    )


def _quantile(latency: dict[str, Any] | None, name: str) -> str | None:
    value = None if latency is None else latency[name]
    return None if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _cosine(agreement: dict[str, Any] | None) -> str | None:
    """Cut off, not rounded: only equal results may read 1."""
    value = (agreement or {}).get("cosine")
    return None if value is None else "1" if value == 1 else f"{math.floor(value * 1e6) / 1e6:.6f}"


def _number(value: float | None, scale: float, digits: int) -> str | None:
    return None if value is None else f"{value * scale:.{digits}f}"


def _cells(*values: object) -> str:
    return "| " + " | ".join("–" if value is None else str(value) for value in values) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
