"""Numbers as the tables write them. A dash is what was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gr00t_trt.record import numbers as figures
from gr00t_trt.record.records import on_gpu


def title(name: str, record: Mapping[str, Any], links: str, remark: str = "") -> str:
    """Bold: model, precision, device. Then the record, the versions and the workload.

    Args:
        links: Where the records lie, seen from the file that this goes into.
    """
    environment, workload, versions = record["environment"], record["workload"], record["environment"]["distributions"]
    gpu = environment.get("gpu") if on_gpu(record) else None
    where = gpu or f"no GPU, {environment['cpu_cores']} CPU cores"
    used = [f"{key} {versions[key]}" for key in ("torch", "torch-tensorrt", "torch-tensorrt-rtx") if versions.get(key)]
    return (
        f"**{record['model']['path']}{remark}, {record['plan']['precision']}, {where}** "
        f"([record]({links}{name}.json): {', '.join(used)}; {workload['views']} view, "
        f"{workload['sequence_length']} tokens, {workload['denoising_steps']} steps, batch {workload['batch_size']})"
    )


def cost(record: Mapping[str, Any]) -> str:
    """How long the whole run took, and its peak of memory."""
    peak = record["peak_memory"]
    return f"Whole run {record['wall_s']:.0f} s, peak {peak['peak_bytes'] / 1e9:.1f} GB ({peak['kind']})."


def quantile(latency: Mapping[str, Any] | None, name: str) -> str | None:
    value = None if latency is None else latency[name]
    return None if value is None else f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def cosine(agreement: Mapping[str, Any] | None) -> str | None:
    """Cut off, not rounded: only equal results may read 1."""
    if not agreement or agreement.get("cosine") is None:
        return None
    return figures.cosine(agreement)


def number(value: float | None, scale: float, digits: int) -> str | None:
    return None if value is None else f"{value * scale:.{digits}f}"


def cells(*values: object) -> str:
    return "| " + " | ".join("–" if value is None else str(value) for value in values) + " |"
