"""The report: right cells at every width, without colour, and never a claim that the record does not hold."""

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from gr00t_trt.plans.load import Plan, plan_to_mapping
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.record.files import dumps, read_record, record_from, write_record
from gr00t_trt.record.numbers import digits
from gr00t_trt.record.result import REQUEST, Against, Agreement, Baseline, Build, Candidate, Result, Status
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Inputs, ModelInfo, PeakMemory, StageTime, new_record
from gr00t_trt.report import terminal as report
from gr00t_trt.report.views import together

SLOW = Samples((2.7, 2.8, 2.75, 2.77, 2.9))
FAST = Samples((1.2, 1.21, 1.19, 1.22, 1.3))
GOOD = Agreement(cosine=0.9999987, max_abs=0.0031)
BUILD = Build(
    19.23, operators=1200, converted=1200, coverage_percent=100.0, engines=1, engine_bytes=1_210_000_000
)  # fmt: skip
MADE = Candidate("torch_tensorrt", "fp16")


def entry(name="dit_model", build=None, against=SLOW, **change):
    """One submodule; `against` is the latency of the same in eager PyTorch."""
    own = change.get("latency_ms", FAST)
    known = {
        "status": Status.MEASURED, "build": replace(BUILD, **build or {}), "latency_ms": own,
        "against": Against.of(Baseline.STAGE, against, own, "torch_tensorrt"), "accuracy": GOOD, "passed": True,
    }  # fmt: skip
    return Result("run", "torch_tensorrt", name, MADE, **{**known, **change})


def request(**change):
    original = Against.of(Baseline.ORIGINAL, SLOW, FAST, "torch_tensorrt")
    known = {"status": Status.MEASURED, "latency_ms": FAST, "against": original, "accuracy": GOOD, "passed": True}
    return Result("run", "torch_tensorrt", REQUEST, MADE, **{**known, **change})


@pytest.fixture
def record():
    out = new_record(
        "run.py",
        device="cpu",
        plan=plan_to_mapping(Plan()),
        plan_path="compile_configs/fp16.yaml",
        model=ModelInfo("synthetic"),
        inputs=Inputs(views=1, batch_size=2, sequence_length=296, instruction="pick the [red] cup"),
    )
    out.results = [*(entry(name) for name in SUBMODULES), request()]
    out.per_key = {"action.left_arm": Agreement(max_abs=1e-4)}
    return out


def shown(record, width=160, **console):
    out = io.StringIO()
    report.render(record, Console(file=out, width=width, **console))
    return out.getvalue()


def row(text, name):
    return " ".join(next(line for line in text.splitlines() if line.startswith(name)).split())


@pytest.mark.parametrize("width", [112, 120, 160, 200])
def test_one_line_per_submodule_where_it_fits(record, width):
    text = shown(record, width)
    assert row(text, "dit_model") == (
        "dit_model torch_tensorrt fp16 100 % 1210 19.2 2.77 1.21 2.29x 0.999998 3.1e-03 pass"
    )
    assert row(text, "whole request") == "whole request 8470 135 2.77 1.21 2.29x 0.999998 3.1e-03 pass"


def test_two_lines_per_submodule_at_80(record):
    lines = shown(record, 80).splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("action_encoder"))
    assert lines[at].split() == ["action_encoder", "100", "%", "19.2", "2.77", "1.21", "2.29x", "0.999998", "pass"]
    assert lines[at + 1].split() == ["torch_tensorrt", "fp16", "1210", "3.1e-03"]


@pytest.mark.parametrize("width", [80, 120, 200])
def test_nothing_is_cut_off_or_coloured(record, width):
    notes = ("one", "two", "three")
    record.results[0] = entry(SUBMODULES[0], status=Status.BUILT_NOT_RUN, latency_ms=None, notes=notes)
    text = shown(record, width)
    assert "…" not in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    for name in SUBMODULES:
        assert name in text


def test_the_header_says_what_ran_on_what(record):
    text = shown(record)
    for part in (
        "synthetic",
        "no GPU used",
        "compile_configs/fp16.yaml, torch_tensorrt, fp16",
        "1 view, batch 2, 296 tokens",
        '"pick the [red] cup"',
    ):
        assert part in text
    record.environment = replace(record.environment, gpu="NVIDIA H200", driver="570.1")
    assert "NVIDIA H200, driver 570.1" not in shown(record)
    assert "NVIDIA H200, driver 570.1" in shown(replace(record, device="cuda:0"))


def test_built_but_not_run_is_a_dash_with_a_footnote(record):
    record.results = [entry(status=Status.BUILT_NOT_RUN, latency_ms=None, notes=("checked in PyTorch [only]",))]
    text = shown(record)
    assert row(text, "dit_model").endswith("2.77 - - (2) 0.999998 3.1e-03 pass")
    assert "(1) checked in PyTorch [only]" in text
    assert "(2) built, not run: what was built cannot run on this machine" in text
    assert text.rstrip().endswith("Engines were built, not run: no latency is claimed for them.")


def test_an_engine_from_the_cache_has_no_build_time(record):
    kept = entry(build={"from_cache": True})
    record.results = [kept, entry("vl_components", build={"seconds": 3.0})]
    text = shown(record)
    assert " cached " in row(text, "dit_model")
    assert " 3 " in row(text, "whole request")
    assert "1 of 2 engines came from the cache." in " ".join(text.split())
    record.results = [kept]
    assert " cached " in row(shown(record), "whole request")


def test_overlapping_spreads_name_no_winner(record):
    record.results = [entry(latency_ms=SLOW)]
    text = shown(record)
    assert "1.00x (1)" in text
    assert "(1) no winner: too few samples, or the spreads (p10 to p90) overlap" in text


def test_a_failed_gate_is_a_word_and_a_reason(record):
    record.results[3] = entry("state_encoder", passed=False, failures=("cosine 0.9971 is below the gate 0.999",))
    text = shown(record, 80)
    assert row(text, "state_encoder").endswith(" FAIL")
    assert "FAIL state_encoder: cosine 0.9971 is below the gate 0.999" in text
    assert "FAIL: outside the gate: state_encoder (7 of 8 pass)." in text


def test_partial_coverage_never_reads_as_full(record):
    record.results = [entry(build={"coverage_percent": 99.97, "engines": 3, "unsupported": {"aten.nonzero": 2}})]
    text = shown(record)
    assert "99.9 %" in text
    assert "left to PyTorch: aten.nonzero (2)" in text
    assert "3 engines instead of one" in text


def test_everything_unmeasured_is_a_dash():
    empty = new_record("run.py")
    empty.results = [Result("run", "eager", "dit_model", Candidate("eager", "fp32"))]
    text = shown(empty)
    assert row(text, "dit_model") == "dit_model eager fp32" + " -" * 9
    assert row(text, "whole request") == "whole request" + " -" * 8
    assert "Nothing was checked against eager fp32. No speed-up was measured for the whole request." in text


def test_the_split_of_a_request(record):
    def stage(name, ms, **known):
        return StageTime(name, latency_ms=Samples((ms,)), **known)

    record.stages = [
        stage("vision_model", 1.0, calls_per_request=1),
        stage("dit_model", 2.5, calls_per_request=4),
        stage("inner", 2.0, calls_per_request=4, within="dit_model"),
        stage("between stages", 0.5),
        stage("request", 4.0, calls_per_request=1),
    ]
    text = shown(record).split("Where a compiled request spends its time")[1]
    assert row(text, "vision_model") == "vision_model 1 1 25 % " + "█" * 5
    assert row(text, "dit_model") == "dit_model 4 2.50 62 % " + "█" * 12
    assert row(text, "between stages") == "between stages - 0.500 12 % " + "█" * 2
    assert row(text, "  inner") == "inner 4 2 50 %"
    assert text.index("dit_model") < text.index("inner") < text.index("between stages")
    assert "\nrequest" not in text


def test_what_was_skipped_and_the_robot_units_are_told(record):
    record.skip("GPU latency", "no CUDA device")
    note = Samples((1.0,), note="cuda_event needs a CUDA device; cpu was timed with python_timer")
    record.results[-1] = request(latency_ms=note, failures=("actions: max_abs 2 is above the gate 1",))
    text = shown(record)
    assert "note: GPU latency: no CUDA device" in text
    assert "largest difference from eager fp32: action.left_arm 1.0e-04" in text
    assert "FAIL actions: max_abs 2 is above the gate 1" in text
    assert text.count("timer: cuda_event needs a CUDA device") == 1


def test_a_run_that_ended_early_says_so(record):
    record.exit_reason = "interrupted"
    (one,) = together([("record.json", record_from(json.loads(dumps(record)), "record.json"))])
    assert report.summary(one)[1].startswith("Ended early (interrupted). ")


def test_a_pipe_that_knows_no_unicode(record):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    record.stages = [StageTime("dit_model", latency_ms=FAST, calls_per_request=4)]
    report.render(record, Console(file=out, width=80))
    out.flush()
    assert b"#" * 20 in raw.getvalue()


def test_the_report_of_a_file_is_the_report_of_the_record(record, tmp_path):
    path = write_record(record, tmp_path / "r.json")
    assert shown(read_record(path)) == shown(record)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0, "0"), (4, "4"), (0.1524, "0.152"), (2.774, "2.77"), (47.94, "47.9"), (220.4, "220"),
     (1210.3, "1210"), (0.00001, "1.0e-05"), (2.5, "2.50")],
)  # fmt: skip
def test_three_significant_digits(value, text):
    assert digits(value) == text


def test_an_instruction_cannot_command_the_terminal(record):
    record.inputs = replace(record.inputs, instruction="pick\x1b[2J the pear")
    text = shown(record)
    assert "\x1b" not in text
    assert "pick?[2J the pear" in text


def test_the_restructured_model_is_named_in_the_header(record):
    record.plan = {"backend": "eager", "precision": "fp32", "optimizations": ["a", "b"], "loop": "denoise_loop"}
    assert "restructured by 2 optimizations, loop as denoise_loop" in " ".join(shown(record).split())


def test_peak_memory_and_the_time_of_the_run_are_told_once_known(record):
    record.peak_memory, record.wall_s = None, None
    assert "Peak memory" not in shown(record)
    record.peak_memory, record.wall_s = PeakMemory("process resident", peak_bytes=11_267_624_960), 330.4
    assert "Peak memory 11.3 GB (process resident); 330 s in all." in shown(record)
