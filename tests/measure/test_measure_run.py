"""A whole run on the tiny model: rows fail alone, what does not fit says so, and the record outlives a kill."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from gr00t_trt.errors import RecordError
from gr00t_trt.measure import job, timers
from gr00t_trt.measure.budget import Budget
from gr00t_trt.measure.job import Wanted
from gr00t_trt.measure.program import main
from gr00t_trt.measure.rows import ALL, COMPILED, OURS, PLAIN, Row
from gr00t_trt.measure.sweep import Sweep
from gr00t_trt.model import load_config
from gr00t_trt.policy.source import Source
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import Baseline, Candidate, Result, Status, Workload
from gr00t_trt.record.schema import Record
from gr00t_trt.report.terminal import render

ROOT = Path(__file__).resolve().parents[2]

GRAPHED = Candidate("inductor", optimizations=ALL, loop="denoise_step", mode="reduce-overhead")
TINY = Source("synthetic", "synthetic")
TWO_STEPS = Workload(steps=2)
ROWS = [
    Row("request", "eager PyTorch", PLAIN, 1, "request", calls=5),
    Row("request", "restructured", OURS, 0, "request", calls=5),
    Row("loop", "denoising loop", OURS, 2, "loop"),
    Row("loop", "denoising loop, CUDA graphs", GRAPHED, 4, "loop"),
    Row("compile", "reduce-overhead", GRAPHED, 3),
    Row("compile", "one CUDA graph", Candidate(optimizations=ALL, graph=True), 3),
    Row("steps", "2 denoising steps", OURS, 3, workload=TWO_STEPS, calls=5),
    Row("percentiles", "1,000 calls", OURS, 5, "request", Workload(batch=8), calls=1000),
]


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


@pytest.fixture(scope="module")
def record(tmp_path_factory) -> Record:
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "rows_for", lambda kind: ROWS)
        result, path = job.run(Wanted(folder, 120, TINY, "cpu", command="measure"), console())
    assert path.parent == folder
    written = read_record(path)
    assert written.results == result.results
    return written


def entry(record: Record, name: str) -> Result:
    (found,) = (row for row in record.measured if row.name == name)
    return found


def test_rows_keep_their_order_and_their_settings(record: Record) -> None:
    assert [(row.group, row.name) for row in record.measured] == [(r.group, r.name) for r in ROWS]
    row = entry(record, "2 denoising steps")
    assert (row.workload.steps, row.candidate.backend, row.candidate.optimizations) == (2, "eager", ALL)
    assert row.candidate.precision == "fp32"
    assert record.inputs.denoising_steps == 4
    assert record.plan["precision"] == "fp32"
    assert row.gate.cosine is not None  # what every row was held against


@pytest.mark.parametrize("name", ["restructured", "2 denoising steps"])
def test_a_row_holds_latency_work_accuracy_and_stages(record: Record, name: str) -> None:
    row = entry(record, name)
    assert (row.why, row.status) == (None, Status.MEASURED)
    assert row.against.baseline is Baseline.ORIGINAL
    assert len(row.latency_ms.samples) == len(row.against.latency_ms.samples) == 5
    assert row.accuracy.max_abs < 1e-5
    assert row.accuracy.cosine > 0.99999
    assert (row.passed, row.failures) == (True, ())
    assert row.work.gflop > 0
    assert row.work.bytes > row.work.weight_bytes > 0
    assert row.roofline is None
    assert sum(row.stages_ms.values()) == pytest.approx(row.latency_ms.p50, rel=0.3)


def test_eager_is_the_one_that_was_timed_in_turn(record: Record) -> None:
    eager = entry(record, "eager PyTorch")
    assert eager.latency_ms == entry(record, "restructured").against.latency_ms
    assert eager.accuracy.exact is True
    assert eager.against is None
    assert eager.work.operators > 1.4 * entry(record, "restructured").work.operators


def test_the_loop_is_a_part_of_the_same_calls(record: Record) -> None:
    loop, whole = entry(record, "denoising loop"), entry(record, "restructured")
    for part, of in ((loop.latency_ms, whole.latency_ms), (loop.against.latency_ms, whole.against.latency_ms)):
        for some, all_ in zip(part.samples, of.samples, strict=True):
            assert 0 < some < all_


def test_rows_fail_alone_and_say_why(record: Record) -> None:
    first = entry(record, "reduce-overhead")
    assert "replays CUDA graphs, and there is no GPU" in first.why
    assert "could not be built" in entry(record, "denoising loop, CUDA graphs").why
    assert "one CUDA graph: the model is not on a GPU" in entry(record, "one CUDA graph").why
    for name in ("reduce-overhead", "one CUDA graph"):
        assert entry(record, name).latency_ms is None
        assert entry(record, name).status is Status.FAILED
    assert record.exit_reason == "a row failed"
    assert entry(record, "2 denoising steps").why is None  # taken after them


def test_what_does_not_fit_is_left_out_and_says_so(record: Record) -> None:
    row = entry(record, "1,000 calls")
    assert row.status is Status.NO_TIME
    assert row.why.startswith("no time: about ")


def test_the_terminal_shows_every_row(record: Record) -> None:
    out = console()
    render(record, out)
    text = out.file.getvalue()
    assert all(row.name in " ".join(text.split()) for row in ROWS)
    assert "No time was left for: 1,000 calls." in text
    assert max(map(len, text.partition(", CUDA graphs: failed")[0].splitlines()[:-1])) <= 80


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep on a model of the released geometry that is never called: one call takes 50 ms."""
    monkeypatch.setattr(Sweep, "_seconds_of_a_call", lambda self: 0.05)
    plain = SimpleNamespace(config=load_config("synthetic:full"))
    harness: Any = SimpleNamespace(device=torch.device("cpu"), original=None, plain=plain)
    nothing: Any = None
    return Sweep(harness, nothing, nothing, Budget(1e9, lambda: 0.0))


def test_estimates_grow_with_the_work(idle: Sweep) -> None:
    plain = Row("steps", "", OURS, 3, calls=50)
    seconds = [
        idle._estimate_s(row)
        for row in (
            plain,
            Row("steps", "", OURS, 3, workload=Workload(views=3), calls=50),
            Row("steps", "", OURS, 3, workload=Workload(batch=8), calls=50),
            Row("percentiles", "", OURS, 3, calls=1000),
        )
    ]
    assert seconds == sorted(seconds)
    assert idle._estimate_s(Row("compile", "", COMPILED, 3)) > idle._estimate_s(plain) + 30


def test_a_first_call_that_loads_libraries_does_not_count_as_a_typical_one() -> None:
    waits, cpu = iter((0.3, 0.3, *[0.01] * 9)), torch.device("cpu")
    assert timers.typical_seconds(lambda: time.sleep(next(waits)), cpu) < 0.1
    slow: list[float] = []
    assert timers.typical_seconds(lambda: slow.append(time.sleep(0.02) or 0.0), cpu, slow_s=0.01) > 0.01
    assert len(slow) == 2


def test_a_candidate_that_was_timed_is_estimated_by_its_own_time(idle: Sweep) -> None:
    row = Row("percentiles", "1,000 calls", OURS, 3, calls=1000, alone=True)
    before = idle._estimate_s(row)
    idle._estimates.learn(row, 0.005)
    assert before == pytest.approx(10 * idle._estimate_s(row))


def test_a_budget_that_ends_before_the_first_row(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--model_path", "synthetic", "--device", "cpu", "--budget_s", "0.02"]) == 1
    path = capsys.readouterr().out.strip()
    record = read_record(path)
    assert record.exit_reason == "the budget of 0.02 s ended before the first row"
    assert {(row.status, row.why) for row in record.measured} == {(Status.NOT_REACHED, job.NOT_REACHED)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "missing: FOLDER"),
        (["x", "--precision", "fp17"], "fp16"),
        (["x", "--budget_s", "0"], "no time at all"),
        (["x", "--budget_s", "nan"], "no time at all"),
        (["x", "--seed", "-1"], "out of range"),
        (["--list", "gpu"], "cuda"),
        (["x", "--budgets", "3"], "--budget_s"),
        (["x", "--model_path", "synthetic", "--device", "cpu", "--cache", "/"], "a folder, not a file"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys) -> None:
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        job.run(Wanted(tmp_path / "file", 9, TINY, "cpu"), console())


def test_the_list_is_what_a_gpu_would_be_asked(capsys) -> None:
    assert main(["--list", "cuda"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("+ one CUDA graph", "searched products", "batch 8", "get_action, numpy to numpy", "at s", "build s"):
        assert name in text
    assert "on an H200 that has compiled nothing yet, of 555 s" in text


def test_the_list_fits_a_narrow_terminal(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--list", "cuda"]) == 0
    table, _, _ = capsys.readouterr().out.partition("All of it")
    assert max(map(len, table.splitlines())) <= 80
    assert "…" not in table


def test_a_killed_run_leaves_a_whole_record(tmp_path: Path) -> None:
    command = [sys.executable, "bench/measure.py", str(tmp_path), "--model_path", "synthetic", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        done: list[Result] = []
        while not done and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            for path in tmp_path.glob("*.json"):
                done = [row for row in read_record(path).measured if row.why is None]
        process.send_signal(signal.SIGKILL)
    record = read_record(next(tmp_path.glob("*.json")))
    assert record.exit_reason is None
    (row, *_) = (row for row in record.measured if row.why is None)
    assert row.name == "+ prompt_cache"
    assert row.latency_ms.p50 > 0
    assert job.NOT_REACHED in {row.why for row in record.measured}
