"""The tables of records of the main job: one line per submodule, one for the whole request."""

from __future__ import annotations

from typing import Any

from cells import cells, cosine, cost, number, quantile, title


def section(name: str, record: dict[str, Any], links: str) -> str:
    """Title, table and remarks of one record."""
    restructured = ", restructured model" if record["plan"].get("optimisations") else ""
    lines = [
        title(name, record, links, restructured),
        "",
        "| submodule | backend | operators in engine | engines | MB | build s | eager p50 ms | compiled p50 ms "
        "| p99 ms | cosine to fp32 |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_row(entry) for entry in record["submodules"]),
        _total(record),
        "",
        cost(record),
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
    return cells(
        entry["name"],
        f"{entry['backend']} {entry['precision']}",
        taken,
        entry["engines"],
        number(entry["engine_bytes"], 1e-6, 0),
        "cached" if entry.get("from_cache") else number(entry["build_s"], 1, 1),
        quantile(entry["eager_latency_ms"], "p50"),
        quantile(entry["latency_ms"], "p50"),
        quantile(entry["latency_ms"], "p99"),
        cosine(entry["accuracy"]),
    )


def _total(record: dict[str, Any]) -> str:
    entries, whole = record["submodules"], record["end_to_end"]
    built = [entry for entry in entries if not entry.get("from_cache")]

    def total(field: str, entries: list[dict[str, Any]] = entries) -> float | None:
        values = [entry[field] for entry in entries]
        return None if any(value is None for value in values) else sum(values)

    return cells(
        "whole request",
        "",
        "",
        total("engines"),
        number(total("engine_bytes"), 1e-6, 0),
        number(total("build_s", built), 1, 1) if built else "cached",
        quantile(whole["eager_latency_ms"], "p50"),
        quantile(whole["latency_ms"], "p50"),
        quantile(whole["latency_ms"], "p99"),
        cosine(record["accuracy"]["normalised"]),
    )
