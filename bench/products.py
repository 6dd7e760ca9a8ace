#!/usr/bin/env python3
"""How fast this CPU multiplies what one action chunk multiplies, in every format: what int8 is worth on it.

    python bench/products.py            a minute; writes bench/products/CPU.json, shown by bench/render.py

One thread, by the time that it spent on the processor; int8 with quantising its input and scaling back.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gr00t_trt.common.products import measured
from gr00t_trt.record.environment import ROOT, environment, git_state
from gr00t_trt.report.markdown import grid

FOLDER = Path(__file__).parent / "products"


@dataclass(frozen=True)
class Product:
    """One kind of product of the released model, one view, 294 tokens, 4 steps; `calls` of it in one action chunk."""

    part: str
    rows: int
    outputs: int
    inputs: int
    calls: int


VISION, LANGUAGE, BOTH, STEP = "vision tower", "language model", "self-attention over both", "transformer of 4 steps"
PRODUCTS = (
    Product(VISION, 256, 3456, 1152, 27),
    Product(VISION, 256, 1152, 1152, 27),
    Product(VISION, 256, 4304, 1152, 27),
    Product(VISION, 256, 1152, 4304, 27),
    Product(LANGUAGE, 294, 4096, 2048, 12),
    Product(LANGUAGE, 294, 2048, 2048, 12),
    Product(LANGUAGE, 294, 12288, 2048, 12),
    Product(LANGUAGE, 294, 2048, 6144, 12),
    Product(BOTH, 294, 6144, 2048, 4),
    Product(BOTH, 294, 2048, 2048, 4),
    Product(BOTH, 294, 8192, 2048, 4),
    Product(BOTH, 294, 2048, 8192, 4),
    Product(BOTH, 294, 3072, 2048, 8),
    Product(STEP, 49, 1536, 1536, 96),
    Product(STEP, 49, 4608, 1536, 32),
    Product(STEP, 49, 6144, 1536, 64),
    Product(STEP, 49, 1536, 6144, 64),
)
FORMATS = {"float32": "fp32", "onednn": "fp32 by oneDNN", "bfloat16": "bf16", "int8": "int8 by oneDNN"}


def main() -> int:
    rows = []
    for one in PRODUCTS:
        speed = measured(one.rows, one.outputs, one.inputs)
        ms = {"float32": speed.ms["float32"], "onednn": speed.onednn_ms, "bfloat16": speed.ms["bfloat16"]}
        rows.append({**asdict(one), "ms": {**ms, "int8": speed.int8_ms}})
        print(f"{one.part}: {one.rows} x {one.outputs} x {one.inputs}: {speed.said()}", file=sys.stderr)
    found = environment("cpu")
    about = {"environment": asdict(found), "git": asdict(git_state(ROOT)), "instructions": _instructions()}
    name = "-".join("".join(c if c.isalnum() else " " for c in (found.cpu or "cpu")).lower().split())
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}-{'-'.join(about['instructions']) or 'plain'}.json"
    path.write_text(json.dumps({**about, "products": rows}, indent=1) + "\n", encoding="utf-8")
    print(path)
    return 0


def _instructions() -> list[str]:
    """Those of this CPU that multiply fewer than 32 bits, by their names in Linux."""
    file = Path("/proc/cpuinfo")
    text = file.read_text(encoding="utf-8").split() if file.is_file() else []
    return [name for name in ("avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx_vnni") if name in text]


def section(name: str, record: Mapping[str, Any], links: str) -> str:
    """Title and table of one record: what all products of each part take, in ms of one thread."""
    found = record["environment"]
    parts = dict.fromkeys(row["part"] for row in record["products"])
    rows = [(part, *_sums([row for row in record["products"] if row["part"] == part])) for part in parts]
    rows.append(("**all of them**", *_sums(record["products"])))
    told = ", ".join(record["instructions"]) or "none for fewer than 32 bits"
    torch = found["distributions"].get("torch")
    about = (
        f"**The products of one action chunk on a CPU**, {found['cpu']}, {told}, torch {torch}, ms of one thread "
        f"([record]({links}{name}.json))"
    )
    heads = ("products of", *FORMATS.values(), "int8 against the fastest in fp32")
    return "\n".join([about, "", *grid(heads, rows)])


def _sums(rows: list[Mapping[str, Any]]) -> list[str]:
    """What products take together by format, and how much faster int8 is."""
    ms = {form: [row["calls"] * row["ms"][form] for row in rows if row["ms"][form] is not None] for form in FORMATS}
    sums = {form: sum(taken) if len(taken) == len(rows) else None for form, taken in ms.items()}
    fp32 = min(taken for form in ("float32", "onednn") if (taken := sums[form]) is not None)
    gain = "–" if sums["int8"] is None else f"{fp32 / sums['int8']:.2f}×"
    return [*("–" if taken is None else f"{taken:.0f}" for taken in sums.values()), gain]


if __name__ == "__main__":
    sys.exit(main())
