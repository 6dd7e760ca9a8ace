"""The tables of measuring runs say what the records say, and a plot of another record is noticed."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from gr00t_trt.measure.rows import planned
from gr00t_trt.record.files import write_record
from gr00t_trt.record.result import (
    REQUEST,
    Against,
    Agreement,
    Baseline,
    Build,
    Candidate,
    Result,
    Roofline,
    StageReplay,
    Status,
    Work,
    Workload,
)
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Inputs, ModelInfo, PeakMemory, Record, new_record

ROOT = Path(__file__).resolve().parents[1]
EAGER = Samples(tuple(46.0 + i % 7 for i in range(120)))


def row(name: str, factor: float, group: str = "waterfall") -> Result:
    own = Samples(tuple(value / factor for value in EAGER.samples))
    return Result(
        group,
        name,
        "model",
        Candidate("inductor" if "compile" in name else "eager", None, () if name == "eager PyTorch" else ("all",)),
        Workload(),
        Status.MEASURED,
        latency_ms=own,
        against=None if factor == 1 else Against.of(Baseline.ORIGINAL, EAGER, own, name),
        accuracy=Agreement(cosine=0.99999987, max_abs=0.0031),
        work=Work(gflop=898.7, bytes=6_851_000_000, operators=1946, operators_per_step=249, kernels=815),
        roofline=Roofline("NVIDIA H200", ms=1.78, percent=178 / own.p50),
    )


def empty(device: str, precision: str, wall_s: float, kind: str) -> Record:
    inputs = Inputs(views=1, batch_size=1, sequence_length=296, denoising_steps=4)
    model = ModelInfo("synthetic:full")
    record = new_record("measure", device=device, plan={"precision": precision}, model=model, inputs=inputs)
    record.environment = replace(record.environment, gpu="NVIDIA H200")
    record.wall_s, record.peak_memory = wall_s, PeakMemory(kind, peak_bytes=12_000_000_000)
    return record


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is rendered, with one more record."""
    shutil.copytree(ROOT / "bench", tmp_path / "bench")
    shutil.copy(ROOT / "README.md", tmp_path)
    record = empty("cuda:0", "bf16", 480.0, "cuda allocator")
    late = "no time: about 90 s, and 3 s of 520 s were left"
    record.results = [
        row("eager PyTorch", 1),
        row("+ embodiment_weights", 1.5),
        row("+ timestep_tables", 1.51),
        row("+ torch.compile", 4),
        row("plain, torch.compile default", 2, "compile"),
        Result("views", "3 views", "model", status=Status.NO_TIME, why=late),
    ]
    write_record(record, tmp_path / "bench" / "records" / "measured-h200.json")
    return tmp_path


@dataclass(frozen=True)
class Ended:
    """What a run of the script came to."""

    returncode: int
    stdout: str


def render(checkout: Path, *flags: str) -> Ended:
    """The checkout's own script and the modules beside it, in this process, which has matplotlib by now."""
    said, bench = StringIO(), checkout / "bench"
    beside = [path.stem for path in bench.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(bench), *sys.path])
        patch.setattr(sys, "argv", ["bench/render.py", *flags])
        for name in beside:
            patch.delitem(sys.modules, name, raising=False)
        with redirect_stdout(said), pytest.raises(SystemExit) as ended:
            runpy.run_path(str(bench / "render.py"), run_name="__main__")
        for name in beside:
            sys.modules.pop(name, None)
    return Ended(ended.value.code, said.getvalue())


def test_a_measuring_run_is_rendered_and_checked(checkout: Path) -> None:
    pytest.importorskip("matplotlib")
    assert render(checkout, "--check").returncode == 1
    done = render(checkout)
    assert done.returncode == 0
    assert render(checkout, "--check").returncode == 0

    full = (checkout / "bench" / "README.md").read_text()
    assert (
        "| + torch.compile | 120 | 49 | 12.2 | 13 | 1.06 | 4.00× | 0.999999 | 3.1e-03 | 899 | 6851 | 1946 | 249 | 815"
        in full
    )
    assert "Not measured: 3 views (no time: about 90 s, and 3 s of 520 s were left)." in full
    for kind in ("waterfall", "roofline"):
        assert f"](plots/measured-h200-{kind}.png)" in full
    assert "measured-h200-stages.png" not in full  # no row has its stages timed
    short = (checkout / "README.md").read_text()
    assert "| + torch.compile | 12.2 | 4.00× | 0.999999 |" in short, "of the GPU's run that was taken last"
    assert "![One action chunk, step by step](bench/plots/front.png)" in short
    assert "plain, torch.compile default" not in short

    log = (checkout / "bench" / "LOG.md").read_text()
    assert "| timestep_tables | speed-up | 1.50× | 1.51× | 1.01× | [measured-h200]" in log
    assert "| plain, torch.compile default, against the best of the waterfall | speed-up | 4.00× | 2.00× | 0.50×" in log
    assert "embodiment_weights | speed-up" not in log

    (checkout / "bench" / "plots" / "measured-h200-waterfall.png").write_bytes(b"")
    (checkout / "bench" / "plots" / "of-no-record.png").write_bytes(b"")
    stale = render(checkout, "--check")
    assert stale.returncode == 1
    assert "measured-h200-waterfall.png: stale" in stale.stdout
    assert "of-no-record.png: stale" in stale.stdout
    assert render(checkout).returncode == 0
    assert not (checkout / "bench" / "plots" / "of-no-record.png").exists()
    assert render(checkout, "--check").returncode == 0


def test_backends_side_by_side_are_one_line_a_submodule(checkout: Path) -> None:
    record = empty("cpu", "fp16", 300.0, "process resident")

    def entry(name: str, subject: str, status: Status, **known: Any) -> Result:
        return Result("comparison", name, subject, Candidate(name), status=status, **known)

    timed = {"status": Status.MEASURED, "latency_ms": EAGER, "accuracy": Agreement(cosine=0.9999991)}
    engine = Build(31.04, engine_bytes=1_111_000_000, layers_before=1520)
    record.results = [
        entry("eager", "dit_model", build=Build(0.0), **timed),
        entry("tensorrt", "dit_model", Status.BUILT_NOT_RUN, build=engine, accuracy=timed["accuracy"]),
        entry("onnxruntime", "dit_model", Status.UNAVAILABLE, why="not installed"),
        entry("eager", REQUEST, **timed),
    ]
    write_record(record, checkout / "bench" / "records" / "compared.json")
    assert render(checkout).returncode == 0
    full = (checkout / "bench" / "README.md").read_text()
    assert (
        "| submodule | eager: p50 ms | eager: cosine to fp32 | tensorrt: build s | tensorrt: MB | tensorrt: layers"
        in full
    )
    assert "| dit_model | 49 | 0.999999 | 31.0 | 1111 | 1520 → – | 0.999999 |" in full
    assert "tensorrt: built and not run, so without a latency." in full
    assert "Not tried: onnxruntime, dit_model: not installed" in full


def test_uncaptured_steps_are_judged_by_their_kernels(checkout: Path) -> None:
    path = checkout / "bench" / "records" / "measured-h200.json"
    record = json.loads(path.read_text())
    times = {"eager PyTorch": 9.0, "+ embodiment_weights": 8.9, "+ timestep_tables": 8.0, "+ torch.compile": 5.0}
    for entry in record["results"]:
        if entry["name"] in times:
            entry["work"]["kernel_ms"] = times[entry["name"]]
            entry["work"]["busiest_kernels"] = [{"name": "void a::gemm<int, 4>(float*)", "launches": 60, "ms": 1.25}]
    path.write_text(json.dumps(record))
    assert render(checkout).returncode == 0
    assert "| `a::gemm` | 60 | 1.250 | 25 % |" in (checkout / "bench" / "README.md").read_text()
    log = (checkout / "bench" / "LOG.md").read_text()
    assert "| embodiment_weights | ms in kernels | 9.00 | 8.90 | 1.01× | [measured-h200]" in log
    assert "| timestep_tables | ms in kernels | 8.90" not in log  # though the call was hardly faster
    assert "| kernels | ms in them | of roofline |" in (checkout / "bench" / "README.md").read_text()


def test_the_time_budget_is_filled_by_the_newest_record_of_a_gpu_with_a_split(checkout: Path) -> None:
    assert render(checkout).returncode == 0
    text = (checkout / "bench" / "README.md").read_text()
    assert "| of one call, ms | launches | so far | measured | floor H200 |" in text
    assert "| vision tower, 27 layers | 192 | 1.25 | – |" in text

    made = Candidate("inductor", "bf16", ("all",), graph=True)

    def timed(ms: float) -> Samples:
        return Samples((ms,) * 5, timer="cuda_event", device="cuda:0")

    def measured(created: str, ms: float) -> Record:
        record = empty("cuda:0", "bf16", 400.0, "cuda allocator")
        record.created_utc = created
        stages = {"vision_model": 1.0, "language_model": 0.9, "vl_components": 0.4, "state_encoder": 0.01,
                  "denoise_step": ms}  # fmt: skip
        split = tuple(StageReplay(name, 1, timed(each)) for name, each in stages.items())
        whole = Result(
            "split", "split", "replay", made, Workload(), Status.MEASURED, latency_ms=timed(5.5), split=split
        )
        call = Result("waterfall", "+ one CUDA graph", "model", made, Workload(), Status.MEASURED,
                      latency_ms=timed(5.9), work=Work(gaps_ms=0.3))  # fmt: skip
        forms = (
            Result("forms", row.name, "model", row.candidate, Workload(), Status.MEASURED, latency_ms=timed(ms + 1))
            for row in planned("cuda", ())
            if row.group == "forms"
        )
        record.results = [call, whole, *forms]
        return record

    write_record(measured("2026-01-01T00:00:00Z", 3.5), checkout / "bench" / "records" / "older.json")
    write_record(measured("2026-01-02T00:00:00Z", 3.0), checkout / "bench" / "records" / "newer.json")
    assert render(checkout).returncode == 0
    text = (checkout / "bench" / "README.md").read_text()
    assert "[record](records/newer.json); every stage" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    told = {row[0]: row[3] for row in rows if len(row) == 8}
    assert told["of one call, ms"] == "measured, NVIDIA H200"
    assert told["host, before the first kernel"] == "0.400"
    assert told["gaps between kernels"] == "(0.300)"
    assert told["diffusion transformer, 16 blocks, 4 steps"] == "3"
    assert told["connector, state, assembly"] == "0.200"  # the state encoder, and what lies between the stages
    assert told["**sum**"] == "5.90"
    whole = {row[0]: row[1:3] for row in reversed(rows) if len(row) == 4}  # the budget stands first
    assert whole["one CUDA graph"] == ["7.15 so far", "5.90"]
    assert whole["the DiT on its own Triton kernels"] == ["4.66 planned", "4"]
    assert whole["DiT and all attention kernels"] == ["4.15 planned", "4"]
    assert whole["FP8, DiT and all attention kernels"] == ["3.07 planned", "4"]


def test_a_service_under_load_is_rendered(checkout: Path) -> None:
    good = {"answered": 700, "lost": 0, "mixed_up": 0}
    record = {
        "environment": {"cpu_cores": 2},
        "startup": {
            "first_s": 12.3, "first_engines": {"built": 5, "from_cache": 0}, "peak_bytes": 5_432_100_000,
            "again_s": 4.5, "again_engines": {"built": 1, "from_cache": 4},
        },
        "overhead": {
            "overhead_ms": {"p50": 0.61, "p99": 1.9}, "policy_ms": {"p50": 33.3}, "ping_ms": {"p50": 0.3},
            "split_ms": {"client_encoding": 0.1, "server_queue": 0.05, "client_decoding": 0.08, "rest": 0.38},
        },
        "load": {
            "clients": 8, "answered": 1800, "seconds": 60.0, "lost": 0, "mixed_up": 0,
            "round_trip_ms": {"p50": 260.0}, "rss_bytes": {"quarter": 6e8, "end": 6.01e8},
        },
        "hostile": {
            "messages": 10000, "unanswered_or_wrong": {}, "good_client": good,
            "before": {"rss_bytes": 6e8}, "after": {"rss_bytes": 6.1e8},
        },
        "restart": {"clients": 8, "recovered": 8, "lost": 3},
        "attacks": {"unfinished_heads": {
            "p99_ms": 31.4, "times_alone": 1.25, "slowest_health_ms": 7.9, "lost": 1, "mixed_up": 1,
        }},
        "soak": [{
            "max_batch": 8, "seconds": 1200.4, "answered": 9000, "lost": 0, "mixed_up": 2, "hostile": {"deep": 7},
            "round_trip_ms": {"p50": 29.6, "p99": 130.2}, "rss_bytes_by_minute": [n * 1e6 for n in range(350, 371)],
        }],
    }  # fmt: skip
    shutil.rmtree(checkout / "bench" / "service", ignore_errors=True)
    (checkout / "bench" / "service").mkdir()
    (checkout / "bench" / "service" / "loopback.json").write_text(json.dumps(record))
    assert render(checkout).returncode == 0
    full = (checkout / "bench" / "README.md").read_text()
    assert "([record](service/loopback.json))" in full
    assert "| overhead of a request | p50 0.61 ms, p99 1.90 ms, beside 33.3 ms of the policy |" in full
    assert "| the server's own | 0.43 ms without the client's own work |" in full
    assert "| where it goes | the client's encoding 0.10 ms, the server's queue 0.05 ms" in full
    assert (
        "| start-up | 12.3 s to ready (engines: 5 built), 4.5 s again (engines: 1 built, 4 from the cache); "
        "at most 5.43 GB of memory until it was ready |" in full
    )
    assert "| hostile messages | 10000, of which 0 unanswered or answered wrongly;" in full
    assert "| unfinished heads | 31 | 1.2 | 8 | 2 |" in full
    assert "| 8 | 20 | 9000 | 0 | 2 | 30 | 130 | 7 | 350, after 5 minutes 355, at the end 370 |" in full

    del (
        record["overhead"]["split_ms"],
        record["startup"]["first_engines"],
        record["startup"]["again_engines"],
        record["startup"]["peak_bytes"],
    )  # an older record
    record["restart"], record["startup"]["again_s"] = None, None  # and one of a run that was ended
    (checkout / "bench" / "service" / "loopback.json").write_text(json.dumps(record))
    assert render(checkout).returncode == 0
    full = (checkout / "bench" / "README.md").read_text()
    assert "where it goes" not in full
    assert "| start-up | 12.3 s to ready |" in full
    assert "| kill -9 and restart | not measured: the run ended before |" in full
