"""Records as the programs write them. Their figures are made up, and none leaves the tests."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

from gr00t_trt.plans.load import Plan, plan_to_mapping
from gr00t_trt.plans.precisions import Gate
from gr00t_trt.plans.schema import OPTIMIZATIONS, SUBMODULES
from gr00t_trt.record.environment import Git
from gr00t_trt.record.files import dumps, record_from
from gr00t_trt.record.result import (
    REQUEST,
    Against,
    Agreement,
    Baseline,
    Build,
    Candidate,
    Result,
    Roofline,
    Status,
    Work,
    Workload,
)
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Inputs, ModelInfo, PeakMemory, Record, StageTime, new_record

COST = {"vision_model": 6.1, "language_model": 7.4, "vl_components": 1.9, "state_encoder": 0.21,
        "action_encoder": 0.35, "dit_model": 5.9, "action_decoder": 0.18}  # fmt: skip
PACE = {"eager": 1.0, "inductor": 0.62, "onnxruntime": 1.08, "torch_tensorrt": 0.41}
GATE = Gate(cosine=0.995, sqnr_db=18.0)


def samples(ms: float, count: int = 120) -> Samples:
    """Deterministic samples round `ms` with a tail, as clocks give them."""
    spread = (ms * (1 + 0.03 * math.sin(7.3 * i) + (0.18 if i % 29 == 0 else 0.0)) for i in range(count))
    return Samples(tuple(spread), timer="cuda_event", warmup=5, device="cuda:0")


def agreement(distance: float) -> Agreement:
    return Agreement(cosine=1.0 - distance, max_abs=40 * distance, exact=distance == 0.0, sqnr_db=50.0)


def new(*, device: str, precision: str = "bf16", **environment: Any) -> Record:
    out = new_record(
        "run_groot_torchtrt.py --compare all",
        device=device,
        plan=plan_to_mapping(Plan(precision=precision)),
        model=ModelInfo("nvidia/GR00T-N1.5-3B"),
        inputs=Inputs(1, 1, 296, 4, 0, "robot_sim.PickNPlace, episode 0, step 0", "pick the pear"),
    )
    out.environment = replace(out.environment, **environment)
    out.git = Git("0123456789abcdef0123456789abcdef01234567", False)
    out.exit_reason = "done"
    return out


def make_compared() -> Record:
    """A comparison of backends and a measuring run in one, on a GPU."""
    out = new(device="cuda:0", gpu="NVIDIA Testing 9000", sm=120, driver="570.1", max_sm_clock_mhz=2407.0)
    for subject in (*SUBMODULES, REQUEST):
        base = samples(COST.get(subject, 47.9))
        for backend, pace in PACE.items():
            taken = samples(base.p50 * pace)
            of = Baseline.ORIGINAL if subject == REQUEST else Baseline.STAGE
            engine = Build(31.4, engine_bytes=831_694_812, layers_before=601, layers_after=214, coverage_percent=100.0)
            built = backend == "torch_tensorrt"
            out.results.append(Result(
                "comparison", backend, subject, Candidate(backend, "bf16"), Workload(), Status.MEASURED,
                build=engine if built else Build(2.5), latency_ms=taken,
                against=None if backend == "eager" else Against.of(of, base, taken, backend),
                accuracy=agreement(0.0 if backend == "eager" else 3e-6 if built else 2e-5),
                gate=GATE, passed=True, peak_bytes=11_338_276_864,
            ))  # fmt: skip
        why = "tensorrt is not installed"
        out.results.append(
            Result("comparison", "tensorrt", subject, Candidate("tensorrt"), status=Status.UNAVAILABLE, why=why)
        )
    out.results += _steps()
    for views in (1, 2, 3):
        work, best = Workload(views=views), Candidate(optimizations=tuple(OPTIMIZATIONS), graph=True)
        out.results.append(
            Result("views", f"{views} views", "model", best, work, Status.MEASURED, latency_ms=samples(5 + 2.2 * views))
        )
    out.results.append(Result("views", "8 views", "model", status=Status.NO_TIME, why="no time was left"))
    out.stages = [
        StageTime(name, calls_per_request=1, latency_ms=samples(ms * 0.5), baseline_ms=samples(ms))
        for name, ms in (*COST.items(), ("between stages", 0.4), ("request", 22.5))
    ]
    out.peak_memory = PeakMemory("cuda allocator", peak_bytes=11_338_276_864)
    out.wall_s = 512.0
    return plain(out)


def _steps() -> list[Result]:
    """A waterfall whose rows do not say how the model was made; one of its steps costs more than it brings."""
    out, value, base = [], 47.9, samples(47.9)
    for place, name in enumerate(("eager", *OPTIMIZATIONS, "torch.compile", "one CUDA graph")):
        value *= 1.04 if name == "prompt_cache" else 0.93 if place else 1.0
        value *= 0.5 if place >= len(OPTIMIZATIONS) else 1.0
        out.append(Result(
            "waterfall", name, "model", workload=Workload(), status=Status.MEASURED, latency_ms=samples(value),
            against=Against.of(Baseline.ORIGINAL, base, samples(value), name) if place else None,
            accuracy=agreement(1e-6 * (place + 1)), gate=GATE, passed=True,
            stages_ms={"vision_model": value * 0.2, "language_model": value * 0.25, "denoise_loop": value * 0.5,
                       "between stages": value * 0.05},
            work=Work(gflop=996.0 - 8 * place, operators_per_step=502 - 20 * place),
            roofline=Roofline("NVIDIA Testing 9000", ms=2.06, percent=206 / value),
        ))  # fmt: skip
    return out


def make_built() -> Record:
    """Engines built on a machine without a GPU: no latency, and one NaN."""
    out = new(device="cpu", precision="fp16", gpu=None, cpu="Testing CPU", cpu_cores=2)
    made = Candidate("torch_tensorrt", "fp16", tuple(OPTIMIZATIONS))
    build = Build(32.55, operators=601, converted=601, coverage_percent=100.0, engines=1, engine_bytes=831_694_812)
    idle = Status.BUILT_NOT_RUN
    out.results = [
        Result(
            "run", "torch_tensorrt", name, made, Workload(), idle, build=build, accuracy=agreement(1e-6), passed=True,
            notes=("The engine was built without a GPU.",),
        )
        for name in SUBMODULES
    ]  # fmt: skip
    original = Against(Baseline.ORIGINAL, samples(6521.0, count=1))
    out.results.append(
        Result("run", "torch_tensorrt", REQUEST, made, Workload(), idle, against=original, first_call_ms=math.nan)
    )
    out.git = replace(out.git, dirty=True)
    out.skip("torch_tensorrt", "No CUDA device: engines are built and not run.")
    return plain(out)


def plain(record: Record) -> Record:
    """As it comes back from a file."""
    return record_from(json.loads(dumps(record)), "record.json")


def found(record: Record, name: str, subject: str | None = None) -> Result:
    """The first result of this name, and of this subject where one is given."""
    return next(r for r in record.results if r.name == name and subject in (None, r.subject))


def change(record: Record, result: Result, **fields: Any) -> None:
    """Give one result other fields."""
    record.results = [replace(r, **fields) if r is result else r for r in record.results]


COMPARED, BUILT = make_compared(), make_built()
