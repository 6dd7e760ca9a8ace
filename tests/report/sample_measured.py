"""A record as `gr00t-trt measure` writes it on a GPU, every planned row of it. Its figures are made up."""

from __future__ import annotations

from typing import Any

from sample_records import COST, agreement, new, plain, samples

from gr00t_trt.measure.rows import Row, planned
from gr00t_trt.measure.timers import verdict
from gr00t_trt.record import records

TARGETS = ("vision_model", "language_model", "vl_components", "state_encoder", "denoise_step")
PARTS = {"vision_model": 0.17, "language_model": 0.27, "vl_components": 0.06, "denoise_step": 0.42, "preprocess": 0.03,
         "between stages": 0.05}  # fmt: skip
EAGER_MS, FLOOR_MS = 32.8, 2.0
NO_TIME = "no time: about 95 s, and 41 s of 540 s were left"


def make_measured() -> dict[str, Any]:
    out = new(device="cuda:0", gpu="NVIDIA Testing 9000", sm=90, driver="570.1", max_sm_clock_mhz=1980.0)
    out["command"] = "gr00t-trt measure --model_path nvidia/GR00T-N1.5-3B"
    for place, row in enumerate(planned("cuda", TARGETS, tensorrt=True)):
        fields = {"why_not": NO_TIME} if "max-autotune" in row.name else _fields(row, place)
        out["measurements"].append(records.measurement_entry(row.group, row.name, settings=row.settings(), **fields))
    out["accuracy"]["gate"] = {"cosine": 0.995, "max_abs": None, "sqnr_db": 18.0}
    out["peak_memory"] = {"kind": "cuda allocator", "peak_bytes": 9_338_276_864}
    out["wall_s"] = 537.0
    return plain(out)


def _fields(row: Row, place: int) -> dict[str, Any]:
    whole, eager = row.of in ("model", "request"), EAGER_MS * _size(row) * _part(row)
    base = samples(eager)
    own = base if row.name == "eager PyTorch" else samples(eager * _pace(row), count=row.calls)
    fields: dict[str, Any] = {
        "latency_ms": own,
        "eager_latency_ms": base,
        "verdict": None if own is base else verdict(base, own, names=("eager", "this")),
        "accuracy": None if row.of == "loop" else agreement(1e-5 + 1e-6 * place),
    }
    if whole:
        floor = FLOOR_MS * _size(row)
        fields["work"] = {"gflop": 996.0 * _size(row), "bytes": 4.6e9, "weight_bytes": 3.5e9, "operators": 2466,
                          "operators_per_step": 502, "kernels": 3100 - 90 * place, "kernel_ms": 0.8 * own.p50,
                          "busiest_kernels": [{"name": "void gemm<__nv_bfloat16, 64>(int)", "launches": 60,
                                               "ms": 0.2 * own.p50}]}  # fmt: skip
        fields["roofline"] = {"device": "NVIDIA Testing 9000", "source": "measured", "ms": floor,
                              "percent": 100 * floor / own.p50 if row.of == "model" else None}  # fmt: skip
        fields["stages"] = {} if row.candidate.graph else {name: share * own.p50 for name, share in PARTS.items()}
    return fields


def _size(row: Row) -> float:
    work = row.workload
    return (0.6 + 0.1 * work.steps) * (0.6 + 0.4 * work.views) * (0.4 + 0.6 * work.batch)


def _part(row: Row) -> float:
    if row.group == "submodules":
        return COST.get(row.of, 6.5) / EAGER_MS
    return 0.4 if row.of == "loop" else 1.06 if row.of == "request" else 1.0


def _pace(row: Row) -> float:
    """Less with every optimization, with a compiler and with the graph; of a large batch, little is saved."""
    made = row.candidate
    pace = 0.97 ** len(made.optimizations) * {"eager": 1.0, "inductor": 0.55}.get(made.backend, 0.6)
    pace *= (0.42 if made.backend != "eager" else 0.5) if made.graph else 1.0
    return max(pace, 0.12 if row.workload.batch > 1 else 0.0)


MEASURED = make_measured()
