"""Backends side by side: every one is tried, none harms the others, and the record says what became of each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_backends
import pytest
from fake_backends import PLAIN_MS, Clock, Fake, failure
from gr00t_trt.record.records import WHOLE_REQUEST
from rich.console import Console

from gr00t_trt.errors import PlanError
from gr00t_trt.plans.load import plan_from_mapping, resolve
from gr00t_trt.plans.schema import GROUPS, Plan
from gr00t_trt.record import records
from gr00t_trt.report.terminal import render, summary
from gr00t_trt.run.job import Job, failures, run
from gr00t_trt.run.program import main

JOB = Job(model_path="synthetic", dataset_path="synthetic", device="cpu", fn_name="action_head")
NAMES = GROUPS["action_head"]
CALLS = {"action_encoder": 4, "dit_model": 4, "action_decoder": 4}


def plan(**settings: Any) -> Plan:
    return plan_from_mapping({"precision": "fp32", "benchmark": {"timer": "python_timer"}, **settings}, "test")


def silent() -> Console:
    return Console(file=io.StringIO())


def by_backend(record: dict[str, Any], subject: str) -> dict[str, dict[str, Any]]:
    return {e["backend"]: e for e in record["comparison"] if e["subject"] == subject}


def p50(entry: dict[str, Any]) -> float | None:
    return None if entry["latency_ms"] is None else round(entry["latency_ms"]["p50"], 3)


@pytest.fixture(scope="module")
def fakes() -> dict[str, Fake]:
    clock = Clock()
    return {
        fake.name: fake
        for fake in (
            Fake("eager", clock, {"": 8.0}),
            Fake("quick", clock, {"": 2.0, "state_encoder": 8.0}),
            Fake("wrong", clock, {"": 1.0}, error=0.5),
            Fake("breaks", clock, {"": 4.0}, breaks={"dit_model": failure("dit_model"), "vl_components": OSError()}),
            Fake("absent", clock, {}, absent="pip install it"),
            Fake("torch_tensorrt", clock, {"": 0.1}, runs=False),
        )
    }


@pytest.fixture(scope="module")
def record(fakes: dict[str, Fake], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One comparison of all of them, on the restructured model."""
    clock = fakes["eager"].clock
    with pytest.MonkeyPatch.context() as monkeypatch:
        names = fake_backends.install(monkeypatch, clock, *fakes.values())
        folder = tmp_path_factory.mktemp("engines")
        return run(replace(JOB, compare=names, engine_dir=folder), plan(), silent())


def test_every_backend_has_an_entry_for_every_submodule_and_the_request(record, fakes, tmp_path: Path) -> None:
    for subject in NAMES:
        assert list(by_backend(record, subject)) == list(fakes)
    assert list(by_backend(record, WHOLE_REQUEST)) == ["plain", *fakes]
    assert len(records.read_record(records.write_record(record, tmp_path / "r.json"))["comparison"]) == 6 * 5 + 7


def test_what_runs_is_timed_and_held_against_eager(record) -> None:
    own = by_backend(record, "dit_model")
    assert (p50(own["eager"]), p50(own["quick"]), own["eager"]["verdict"]) == (8.0, 2.0, None)
    assert own["quick"]["verdict"]["winner"] == "quick"
    assert own["quick"]["verdict"]["ratio"] == pytest.approx(4.0, rel=1e-3)
    assert own["quick"]["accuracy"]["exact"]
    assert own["quick"]["peak_bytes"] >= 0
    whole = by_backend(record, WHOLE_REQUEST)
    assert p50(whole["eager"]) == 8.0 * sum(CALLS.get(name, 1) for name in NAMES)
    assert p50(whole["quick"]) == 2.0 * (sum(CALLS.get(name, 1) for name in NAMES) - 1) + 8.0
    assert whole["eager"]["verdict"]["winner"] == "eager"  # against plain
    assert p50(whole["plain"]) == PLAIN_MS
    assert whole["quick"]["verdict"]["text"].startswith("quick is ")
    assert whole["quick"]["build_s"] == 2.0 * len(NAMES)


def test_the_best_is_the_fastest_that_passes_and_nothing_is_where_it_is_open(record) -> None:
    best = {e["subject"]: e["backend"] for e in record["comparison"] if e["best"]}
    assert best == {**dict.fromkeys((*NAMES, WHOLE_REQUEST), "quick"), "state_encoder": "breaks"}


def test_an_inaccurate_backend_fails_and_is_named(record) -> None:
    for name in NAMES:
        own = by_backend(record, name)["wrong"]
        assert (own["passed"], own["best"], p50(own)) == (False, False, 1.0)
        assert own["failures"][0].startswith(f"{name}: cosine")
    assert not by_backend(record, WHOLE_REQUEST)["wrong"]["passed"]
    assert record["exit_reason"] == "gate failed"
    assert {line.split(":")[0] for line in failures(record)} == {"wrong"}


def test_a_failed_build_ends_only_itself(record) -> None:
    why = {name: by_backend(record, name)["breaks"]["why_not"] for name in NAMES}
    assert why["dit_model"] == "dit_model: no kernel for this"
    assert why["vl_components"] == "OSError"
    assert why["state_encoder"] is None
    assert by_backend(record, WHOLE_REQUEST)["breaks"]["why_not"] == "vl_components: OSError"


def test_what_is_not_installed_is_shown_as_such(record, fakes) -> None:
    for name in NAMES:
        own = by_backend(record, name)["absent"]
        assert (own["why_not"], own["runs"], own["passed"]) == ("not available here: pip install it", None, None)
    assert fakes["absent"].built == []


def test_engines_that_cannot_run_are_built_checked_and_dropped_without_a_latency(record, fakes) -> None:
    own = by_backend(record, "dit_model")["torch_tensorrt"]
    assert (own["runs"], p50(own), own["best"], own["passed"], own["coverage_percent"]) == (
        False,
        None,
        None,
        True,
        100,
    )
    whole = by_backend(record, WHOLE_REQUEST)["torch_tensorrt"]
    assert (whole["runs"], p50(whole), whole["engine_bytes"]) == (False, None, 1_000_000 * len(NAMES))
    assert fakes["torch_tensorrt"].alive_at_next_build == [False] * (len(NAMES) - 1)
    assert all(fakes["quick"].alive_at_next_build)


def test_each_backend_has_an_engine_folder_of_its_own(record, fakes) -> None:
    assert {folder.name for folder in fakes["torch_tensorrt"].folders} == {"torch_tensorrt"}
    assert {folder.name for folder in fakes["quick"].folders} == {"quick"}


def test_build_times_are_those_of_building_not_of_the_cache(record, fakes) -> None:
    assert set(fakes["torch_tensorrt"].caches) == {None}


def test_a_comparison_runs_no_plan(record) -> None:
    assert record["submodules"] == []
    assert record["plan"]["backend"] is None
    assert record["end_to_end"]["latency_ms"] is None


@pytest.mark.parametrize("width", [80, 120, 200])
def test_the_tables_tell_it_all(record, width: int) -> None:
    out = io.StringIO()
    render(record, Console(file=out, width=width))
    text = out.getvalue()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    row = next(line.split() for line in text.splitlines() if line.startswith("dit_model"))
    assert row == ["dit_model", "8.00", "2.00", "*", "1.00", "FAIL", "-", "-", "built", "(1)"]
    flat = " ".join(text.split())
    assert "(1) built, and cannot run on this machine: it has no latency" in flat
    assert "not run: absent: not available here: pip install it" in flat
    assert "not run: breaks (dit_model): dit_model: no kernel for this" in flat
    assert "FAIL wrong: action_decoder: cosine" in flat
    assert "Fastest whole request: quick, p50 34.0 ms." in flat
    assert summary(record)[0] is False


def test_a_comparison_that_left_nothing_to_time_says_so(record) -> None:
    alone = {**record, "comparison": [e for e in record["comparison"] if e["backend"] in ("eager", "torch_tensorrt")]}
    assert "Only one backend could run the whole request here" in summary(alone)[1]
    tied = [{**e, "best": False} for e in record["comparison"]]
    assert "No backend makes the fastest request beyond doubt" in summary({**record, "comparison": tied})[1]


def test_backends_of_the_plan_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    names = fake_backends.install(monkeypatch, clock, Fake("eager", clock, {"": 2.0}), Fake("quick", clock, {"": 1.0}))
    own = plan(submodules={"state_encoder": {"backend": "inductor", "precision": "fp16"}}, optimizations="none")
    result = run(replace(JOB, fn_name="state_encoder", compare=names), own, silent())
    entries = by_backend(result, "state_encoder")
    assert list(entries) == ["eager", "quick"]
    assert entries["quick"]["precision"] == "fp16"
    assert resolve(own, "state_encoder").backend == "inductor"
    assert "plain" not in by_backend(result, WHOLE_REQUEST)


def test_real_backends_compare_alike(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Real calls on the real clock: nothing is said of who wins."""
    argv = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--device", "cpu", "--precision", "fp32",
            "--fn_name", "state_encoder", "--num_iterations", "6", "--warmup_iterations", "1",
            "--record", str(tmp_path / "r.json")]  # fmt: skip
    assert main([*argv, "--compare", "inductor"]) == 0
    result = records.read_record(tmp_path / "r.json")
    for subject in ("state_encoder", WHOLE_REQUEST):
        entries = by_backend(result, subject)
        assert [name for name in entries if name != "plain"] == ["eager", "inductor"]
        assert all(e["latency_ms"]["iterations"] == 6 and e["passed"] and e["runs"] for e in entries.values())
        assert entries["inductor"]["verdict"]["ratio"] > 0
        assert entries["inductor"]["build_s"] > 0
    assert "state_encoder" in capsys.readouterr().err


def test_weights_are_not_moved_away_under_a_comparison() -> None:
    offloading = plan(backend="torch_tensorrt", build={"cpu_offload": True})
    with pytest.raises(PlanError, match="whose weights it would move away"):
        run(replace(JOB, compare=("eager", "inductor")), offloading, silent())
