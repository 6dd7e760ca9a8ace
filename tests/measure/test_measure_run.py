"""A whole run on the tiny model: rows fail alone, what does not fit says so, and the record outlives a kill."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from gr00t_trt.measure.table import render
from gr00t_trt.record.records import read_record
from rich.console import Console

from gr00t_trt.errors import RecordError
from gr00t_trt.measure import bench, run
from gr00t_trt.measure.program import main
from gr00t_trt.measure.rows import ALL, COMPILED, OURS, PLAIN, Candidate, Row, Workload

ROOT = Path(__file__).resolve().parents[2]

GRAPHED = Candidate("inductor", ALL, "denoise_step", mode="reduce-overhead")
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
def record(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "rows_for", lambda kind: ROWS)
        request = run.Request(folder, budget_s=120, model_path="synthetic", device="cpu", command="measure")
        result, path = run.run(request, console())
    assert path.parent == folder
    written = read_record(path)
    assert [m["why_not"] for m in written["measurements"]] == [m["why_not"] for m in result["measurements"]]
    return written


def entry(record: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (row for row in record["measurements"] if row["name"] == name)
    return found


def test_rows_keep_their_order_and_their_settings(record: dict[str, Any]) -> None:
    assert [(row["group"], row["name"]) for row in record["measurements"]] == [(r.group, r.name) for r in ROWS]
    settings = entry(record, "2 denoising steps")["settings"]
    assert (settings["steps"], settings["backend"], settings["optimizations"]) == (2, "eager", list(ALL))
    assert record["workload"]["denoising_steps"] == 4
    assert record["plan"]["precision"] == "fp32"
    assert record["accuracy"]["gate"]["cosine"] is not None  # what every row was held against


@pytest.mark.parametrize("name", ["restructured", "2 denoising steps"])
def test_a_row_holds_latency_work_accuracy_and_stages(record: dict[str, Any], name: str) -> None:
    row = entry(record, name)
    assert row["why_not"] is None
    assert len(row["latency_ms"]["samples"]) == len(row["eager_latency_ms"]["samples"]) == 5
    assert row["accuracy"]["max_abs"] < 1e-5
    assert row["accuracy"]["cosine"] > 0.99999
    assert not any("outside the gate" in note for note in row["notes"])
    assert row["work"]["gflop"] > 0
    assert row["work"]["bytes"] > row["work"]["weight_bytes"] > 0
    assert row["roofline"] is None
    assert sum(row["stages"].values()) == pytest.approx(row["latency_ms"]["p50"], rel=0.3)


def test_eager_is_the_one_that_was_timed_in_turn(record: dict[str, Any]) -> None:
    eager = entry(record, "eager PyTorch")
    assert eager["latency_ms"] == entry(record, "restructured")["eager_latency_ms"]
    assert eager["accuracy"]["exact"] is True
    assert eager["verdict"] is None
    assert eager["work"]["operators"] > 1.4 * entry(record, "restructured")["work"]["operators"]


def test_the_loop_is_a_part_of_the_same_calls(record: dict[str, Any]) -> None:
    loop, whole = entry(record, "denoising loop"), entry(record, "restructured")
    for latency in ("latency_ms", "eager_latency_ms"):
        for part, sample in zip(loop[latency]["samples"], whole[latency]["samples"], strict=True):
            assert 0 < part < sample


def test_rows_fail_alone_and_say_why(record: dict[str, Any]) -> None:
    first = entry(record, "reduce-overhead")
    assert "replays CUDA graphs, and there is no GPU" in first["why_not"]
    assert "could not be built" in entry(record, "denoising loop, CUDA graphs")["why_not"]
    assert "one CUDA graph: the model is not on a GPU" in entry(record, "one CUDA graph")["why_not"]
    for name in ("reduce-overhead", "one CUDA graph"):
        assert entry(record, name)["latency_ms"] is None
    assert record["exit_reason"] == "a row failed"
    assert entry(record, "2 denoising steps")["why_not"] is None  # taken after them


def test_what_does_not_fit_is_left_out_and_says_so(record: dict[str, Any]) -> None:
    assert entry(record, "1,000 calls")["why_not"].startswith("no time: about ")


def test_the_terminal_shows_every_row(record: dict[str, Any]) -> None:
    out = console()
    render(record, out)
    text = out.file.getvalue()
    assert all(row.name in " ".join(text.split()) for row in ROWS)
    assert "No time was left for: 1,000 calls." in text
    assert max(map(len, text.partition(", CUDA graphs: failed")[0].splitlines()[:-1])) <= 80


def test_estimates_grow_with_the_work(monkeypatch) -> None:
    class Forms:
        precision = "fp32"
        plain = type("Plain", (), {"config": __import__("gr00t_trt.model").model.load_config("synthetic:full")})

        def has(self, candidate):
            return candidate == PLAIN

    from gr00t_trt.measure.budget import Budget

    monkeypatch.setattr(bench.Bench, "_seconds_of_a_call", lambda self: 0.05)
    taker = bench.Bench(Forms(), None, None, Budget(1e9, lambda: 0.0))
    plain = Row("steps", "", OURS, 3, calls=50)
    seconds = [
        taker._estimate_s(row)
        for row in (
            plain,
            Row("steps", "", OURS, 3, workload=Workload(views=3), calls=50),
            Row("steps", "", OURS, 3, workload=Workload(batch=8), calls=50),
            Row("percentiles", "", OURS, 3, calls=1000),
        )
    ]
    assert seconds == sorted(seconds)
    assert taker._estimate_s(Row("compile", "", COMPILED, 3)) > taker._estimate_s(plain) + 30


def test_a_first_call_that_loads_libraries_does_not_count_as_a_typical_one() -> None:
    waits = iter((0.3, 0.3, *[0.01] * 9))
    assert bench.typical_seconds(lambda: time.sleep(next(waits)), lambda: None) < 0.1
    slow: list[float] = []
    assert bench.typical_seconds(lambda: slow.append(time.sleep(0.02) or 0.0), lambda: None, slow_s=0.01) > 0.01
    assert len(slow) == 2


def test_a_form_that_was_timed_is_estimated_by_its_own_time(monkeypatch) -> None:
    from gr00t_trt.measure.timing import Taken

    from gr00t_trt.measure.budget import Budget
    from gr00t_trt.measure.timers import Samples

    monkeypatch.setattr(bench.Bench, "_seconds_of_a_call", lambda self: 0.05)
    forms = type("Forms", (), {"precision": "bf16", "has": lambda self, candidate: True})()
    taker = bench.Bench(forms, None, None, Budget(1e9, lambda: 0.0))
    row = Row("percentiles", "1,000 calls", OURS, 3, calls=1000, alone=True)
    before = taker._estimate_s(row)
    taker._taken["model", OURS, row.workload] = Taken(Samples((50.0,)), Samples((5.0,)), [], [])
    assert before == pytest.approx(10 * taker._estimate_s(row))


def test_a_budget_that_ends_before_the_first_row(tmp_path: Path, capsys) -> None:
    assert main([str(tmp_path), "--model_path", "synthetic", "--device", "cpu", "--budget_s", "0.02"]) == 1
    path = capsys.readouterr().out.strip()
    record = read_record(path)
    assert record["exit_reason"] == "the budget of 0.02 s ended before the first row"
    assert {row["why_not"] for row in record["measurements"]} == {run.NOT_REACHED}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "no FOLDER"),
        (["x", "--precision", "fp17"], "fp16"),
        (["x", "--budget_s", "0"], "no time at all"),
        (["x", "--budget_s", "nan"], "no time at all"),
        (["x", "--seed", "-1"], "out of range"),
        (["--list", "gpu"], "cuda"),
        (["x", "--budgets", "3"], "--budget_s"),
    ],
)
def test_bad_flags(flags: list[str], message: str, capsys) -> None:
    assert main(flags) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="cannot be written"):
        run.run(run.Request(tmp_path / "file", budget_s=9, model_path="synthetic", device="cpu"), console())


def test_the_list_is_what_a_gpu_would_be_asked(capsys) -> None:
    assert main(["--list", "cuda"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for name in ("+ one CUDA graph", "1,000 calls", "max-autotune", "batch 8", "get_action, numpy to numpy"):
        assert name in text


def test_a_killed_run_leaves_a_whole_record(tmp_path: Path) -> None:
    command = [sys.executable, "bench/measure.py", str(tmp_path), "--model_path", "synthetic", "--device", "cpu"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        done: list[dict[str, Any]] = []
        while not done and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
            for path in tmp_path.glob("*.json"):
                done = [row for row in read_record(path)["measurements"] if row["why_not"] is None]
        process.send_signal(signal.SIGKILL)
    record = read_record(next(tmp_path.glob("*.json")))
    assert record["exit_reason"] is None
    (row, *_) = (row for row in record["measurements"] if row["why_not"] is None)
    assert row["name"] == "+ unpadded_mask"
    assert row["latency_ms"]["p50"] > 0
    assert run.NOT_REACHED in {row["why_not"] for row in record["measurements"]}
