"""A record as `gr00t-trt measure` writes it on a GPU, every planned row of it. Its figures are made up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sample_records import GATE, agreement, new, plain, samples

from gr00t_trt.measure.rows import PLAIN, Row, planned
from gr00t_trt.record.result import (
    Against,
    Baseline,
    Card,
    Kernel,
    Launch,
    Result,
    Roofline,
    StageReplay,
    Status,
    Work,
)
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import PeakMemory, Record, drift_of

TARGETS = ("vision_model", "language_model", "vl_components", "state_encoder", "denoise_step")
PARTS = {"vision_model": 0.17, "language_model": 0.27, "vl_components": 0.06, "denoise_step": 0.42, "preprocess": 0.03,
         "between stages": 0.05}  # fmt: skip
CARD = Card("NVIDIA Testing 9000", 1905.0, 480.0)
EAGER_MS, FLOOR_MS = 32.8, 2.0
NO_TIME = "no time: about 95 s, and 41 s of 540 s were left"


def make_measured() -> Record:
    out = new(device="cuda:0", gpu="NVIDIA Testing 9000", sm=90, driver="570.1", max_sm_clock_mhz=1980.0)
    out.command = "gr00t-trt measure --model_path nvidia/GR00T-N1.5-3B"
    out.results = [_result(row, place) for place, row in enumerate(planned("cuda", TARGETS, tensorrt=True))]
    out.drift = drift_of(out.results)
    out.peak_memory = PeakMemory("cuda allocator", peak_bytes=9_338_276_864)
    out.wall_s, out.host_adds_us = 537.0, 4210.0
    return plain(out)


def _result(row: Row, place: int) -> Result:
    empty = row.result("bf16")
    if row.absent:
        return empty
    if row.name.startswith(("searched", "several")):
        return replace(empty, status=Status.NO_TIME, why=NO_TIME)
    base = samples(EAGER_MS * _size(row) * _part(row))
    own = base if row.candidate == PLAIN else samples(base.p50 * _pace(row), count=row.calls)
    timed = replace(
        empty, status=Status.MEASURED, latency_ms=own, against=_against(row, base, own), card=CARD
    )  # fmt: skip
    if row.of == "split":
        return replace(timed, split=_split(own.p50))
    judged = replace(timed, accuracy=agreement(1e-5 + 1e-6 * place), gate=GATE, passed=True)
    return judged if row.of == "replay" else replace(judged, **_whole_call(row, own.p50, place))


def _against(row: Row, base: Samples, own: Samples) -> Against | None:
    """The original was timed in turn with one row; settings are held against what is without them."""
    if row.of == "replay":
        return Against.of(Baseline.FORM, samples(own.p50 * 1.06, count=2 * row.calls), own, row.name)
    return Against.of(Baseline.ORIGINAL, base, own, row.name) if row.name == "+ one CUDA graph" else None


def _split(ms: float) -> tuple[StageReplay, ...]:
    calls = {name: 4 if name == "denoise_step" else 1 for name in TARGETS}
    return tuple(StageReplay(name, calls[name], samples(PARTS.get(name, 0.01) * ms)) for name in TARGETS)


def _whole_call(row: Row, ms: float, place: int) -> dict[str, Any]:
    floor = FLOOR_MS * _size(row)
    kernel = Kernel("void gemm<__nv_bfloat16, 64>(int)", 60, 0.2 * ms)
    share = 100 * floor / ms if row.of == "model" else None
    graphed = row.candidate.graph
    return {
        "work": Work(
            996.0 * _size(row), 4_600_000_000, 3_500_000_000, 2466, 502, 3100 - 90 * place, 0.8 * ms, (kernel,),
            0.1 * ms, 0.95 * ms, 0.05 * ms,
        ),
        "roofline": Roofline("NVIDIA Testing 9000", "measured", floor, share),
        "stages_ms": {} if graphed else {name: part * ms for name, part in PARTS.items()},
        "launch": Launch(140.0, samples(0.9 * ms), samples(0.92 * ms)) if graphed else Launch(900.0 * ms),
    }  # fmt: skip


def _size(row: Row) -> float:
    work = row.workload
    return (0.6 + 0.1 * work.steps) * (0.6 + 0.4 * work.views) * (0.4 + 0.6 * work.batch)


def _part(row: Row) -> float:
    return 1.06 if row.of == "request" else 1.0


def _pace(row: Row) -> float:
    """Less with every optimization, with a compiler and with the graph; of a large batch, little is saved."""
    made = row.candidate
    pace = 0.94 ** len(made.optimizations) * {"eager": 1.0, "inductor": 0.55}.get(made.backend, 0.6)
    pace *= 1.1 if made.precision else 1.0
    pace *= (0.42 if made.backend != "eager" else 0.5) if made.graph else 1.0
    return max(pace, 0.12 if row.workload.batch > 1 else 0.0)


MEASURED = make_measured()
