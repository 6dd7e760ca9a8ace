"""Records as the programs write them. Their figures are made up, and none leaves the tests."""

from __future__ import annotations

import json
import math

from gr00t_trt.measure.timers import Samples, verdict
from gr00t_trt.plans.load import Plan, plan_to_mapping
from gr00t_trt.plans.schema import OPTIMIZATIONS, SUBMODULES
from gr00t_trt.record import records

NO_ENGINE = "needs a GPU; the engine was built and can be run elsewhere"
COST = {"vision_model": 6.1, "language_model": 7.4, "vl_components": 1.9, "state_encoder": 0.21,
        "action_encoder": 0.35, "dit_model": 5.9, "action_decoder": 0.18}  # fmt: skip
PACE = {"eager": 1.0, "inductor": 0.62, "onnxruntime": 1.08, "torch_tensorrt": 0.41}


def samples(ms: float, count: int = 120) -> Samples:
    """Deterministic samples round `ms` with a tail, as clocks give them."""
    spread = (ms * (1 + 0.03 * math.sin(7.3 * i) + (0.18 if i % 29 == 0 else 0.0)) for i in range(count))
    return Samples(tuple(spread), timer="cuda_event", warmup=5, device="cuda:0")


def agreement(distance: float) -> dict:
    return {"cosine": 1.0 - distance, "max_abs": 40 * distance, "exact": distance == 0.0, "sqnr_db": 50.0}


def new(*, device: str, precision: str = "bf16", **environment) -> dict:
    out = records.new_record(
        "run_groot_torchtrt.py --compare all",
        device=device,
        plan=plan_to_mapping(Plan(precision=precision)),
        model={"path": "nvidia/GR00T-N1.5-3B"},
        workload={"views": 1, "batch_size": 1, "sequence_length": 296, "denoising_steps": 4, "seed": 0,
                  "dataset": "robot_sim.PickNPlace, episode 0, step 0", "instruction": "pick the pear"},
    )  # fmt: skip
    out["environment"].update(environment)
    out["git"] = {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False}
    out["exit_reason"] = "done"
    return out


def make_compared() -> dict:
    """A comparison of backends and a measuring run in one, on a GPU."""
    out = new(device="cuda:0", gpu="NVIDIA Testing 9000", sm=120, driver="570.1", max_sm_clock_mhz=2407.0)
    eager = {name: samples(ms) for name, ms in COST.items()}
    for subject in (*SUBMODULES, "whole request"):
        base = eager.get(subject) or samples(47.9)
        for backend, pace in PACE.items():
            taken = samples(base.p50 * pace)
            built = backend == "torch_tensorrt"
            out["comparison"].append(records.comparison_entry(
                subject, backend, precision="bf16", runs=True, latency_ms=taken,
                verdict=None if backend == "eager" else verdict(base, taken, names=("eager", backend)),
                build_s=31.4 if built else 2.5, engine_bytes=831_694_812 if built else None,
                layers_before=601 if built else None, layers_after=214 if built else None,
                coverage_percent=100.0 if built else None, peak_bytes=11_338_276_864,
                accuracy=agreement(0.0 if backend == "eager" else 3e-6 if built else 2e-5), passed=True,
            ))  # fmt: skip
        out["comparison"].append(records.comparison_entry(subject, "tensorrt", why_not="tensorrt is not installed"))
    value, gflop = 47.9, 996.0
    steps = ["eager", *OPTIMIZATIONS, "torch.compile", "one CUDA graph"]
    for place, name in enumerate(steps):
        value = value * (1.04 if name == "prompt_cache" else 0.93 if place else 1.0) * (0.5 if place > 9 else 1.0)
        out["measurements"].append(records.measurement_entry(
            "waterfall", name, latency_ms=samples(value), accuracy=agreement(1e-6 * (place + 1)),
            stages={"vision_model": value * 0.2, "language_model": value * 0.25, "denoise_loop": value * 0.5,
                    "between stages": value * 0.05},
            work={"gflop": gflop - 8 * place, "operators_per_step": 502 - 20 * place},
            roofline={"device": "NVIDIA Testing 9000", "ms": 2.06, "percent": 206 / value},
        ))  # fmt: skip
        if place:
            base = samples(47.9)
            judged = verdict(base, samples(value), names=("eager", "this"))
            out["measurements"][-1].update(eager_latency_ms=base, verdict=judged)
    for views in (1, 2, 3):
        out["measurements"].append(
            records.measurement_entry("views", f"{views} views", latency_ms=samples(5 + 2.2 * views))
        )
    out["measurements"].append(records.measurement_entry("views", "8 views", why_not="no time was left"))
    out["stages"] = [
        records.stage_entry(name, calls_per_request=1, latency_ms=samples(ms * 0.5), eager_latency_ms=samples(ms))
        for name, ms in (*COST.items(), ("between stages", 0.4), ("request", 22.5))
    ]
    out["accuracy"].update(
        normalised=agreement(3e-6), gate={"cosine": 0.995, "max_abs": None, "sqnr_db": 18.0}, passed=True
    )
    out["peak_memory"] = {"kind": "cuda allocator", "peak_bytes": 11_338_276_864}
    out["wall_s"] = 512.0
    return plain(out)


def make_built() -> dict:
    """Engines built on a machine without a GPU: no latency, and one NaN."""
    out = new(device="cpu", precision="fp16", gpu=None, cpu="Testing CPU", cpu_cores=2)
    out["submodules"] = [
        records.submodule_entry(
            name, "torch_tensorrt", "fp16", operators=601, converted=601, coverage_percent=100.0, engines=1,
            engine_bytes=831_694_812, runs=False, build_s=32.55, accuracy=agreement(1e-6), passed=True,
            notes=["The engine was built without a GPU."],
        )
        for name in SUBMODULES
    ]  # fmt: skip
    out["end_to_end"]["eager_latency_ms"] = samples(6521.0, count=1)
    out["end_to_end"]["first_call_ms"] = math.nan
    out["git"]["dirty"] = True
    records.skip(out, "torch_tensorrt", "No CUDA device: engines are built and not run.")
    return plain(out)


def plain(record: dict) -> dict:
    """As it stands in a file."""
    return json.loads(records.dumps(record))


COMPARED, BUILT = make_compared(), make_built()
