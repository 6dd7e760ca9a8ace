"""Backends side by side: every one is tried, none harms the others, and the record says what became of each."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_backends
import pytest
from fake_backends import PLAIN_MS, Clock, Fake, failure
from rich.console import Console

from gr00t_trt.errors import PlanError
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import GROUPS, Plan
from gr00t_trt.plans.submodules import resolve_submodule
from gr00t_trt.policy.source import Source
from gr00t_trt.record.files import read_record, write_record
from gr00t_trt.record.result import REQUEST, Baseline, Result, Status
from gr00t_trt.record.schema import Record
from gr00t_trt.report.terminal import render, summary
from gr00t_trt.report.views import together
from gr00t_trt.run.job import Job, run
from gr00t_trt.run.program import main

CPU = Machine("cpu")
NAMES = GROUPS["action_head"]
CALLS = {"action_encoder": 4, "dit_model": 4, "action_decoder": 4}


def plan(**settings: Any) -> Plan:
    return plan_from_mapping({"precision": "fp32", "benchmark": {"timer": "python_timer"}, **settings}, "test")


def compared(wanted: Plan, fn_name: str, **how: Any) -> Record:
    resolved = resolve(wanted, CPU, fn_name, **how)
    return run(Job(Source("synthetic", "synthetic")), resolved, Console(file=io.StringIO()))


def by_backend(record: Record, subject: str) -> dict[str, Result]:
    return {r.name: r for r in record.of("comparison") if r.subject == subject}


def p50(entry: Result) -> float | None:
    return None if entry.latency_ms is None else round(entry.latency_ms.p50, 3)


def last_line(record: Record) -> tuple[bool | None, str]:
    (one,) = together([("r.json", record)])
    return summary(one)


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
def record(fakes: dict[str, Fake], tmp_path_factory: pytest.TempPathFactory) -> Record:
    """One comparison of all of them, on the restructured model."""
    clock = fakes["eager"].clock
    with pytest.MonkeyPatch.context() as monkeypatch:
        names = fake_backends.install(monkeypatch, clock, *fakes.values())
        return compared(plan(), "action_head", compare=names, engine_dir=tmp_path_factory.mktemp("engines"))


def test_every_backend_has_an_entry_for_every_submodule_and_the_request(record, fakes, tmp_path: Path) -> None:
    for subject in NAMES:
        assert list(by_backend(record, subject)) == list(fakes)
    assert list(by_backend(record, REQUEST)) == ["original", *fakes]
    assert len(read_record(write_record(record, tmp_path / "r.json")).of("comparison")) == 6 * 5 + 7


def test_what_runs_is_timed_and_held_against_eager(record) -> None:
    own = by_backend(record, "dit_model")
    assert (p50(own["eager"]), p50(own["quick"]), own["eager"].against) == (8.0, 2.0, None)
    assert (own["quick"].against.baseline, own["quick"].against.winner) == (Baseline.STAGE, "quick")
    assert own["quick"].ratio == pytest.approx(4.0, rel=1e-3)
    assert own["quick"].accuracy.exact
    assert own["quick"].peak_bytes >= 0
    whole = by_backend(record, REQUEST)
    assert p50(whole["eager"]) == 8.0 * sum(CALLS.get(name, 1) for name in NAMES)
    assert p50(whole["quick"]) == 2.0 * (sum(CALLS.get(name, 1) for name in NAMES) - 1) + 8.0
    assert (whole["eager"].against.baseline, whole["eager"].against.winner) == (Baseline.ORIGINAL, "eager")
    assert p50(whole["original"]) == PLAIN_MS
    assert whole["quick"].against.text.startswith("quick is ")
    assert whole["quick"].build.seconds == 2.0 * len(NAMES)


def test_the_best_is_the_fastest_that_passes_and_nothing_is_where_it_is_open(record) -> None:
    best = {r.subject: r.name for r in record.of("comparison") if r.best}
    assert best == {**dict.fromkeys((*NAMES, REQUEST), "quick"), "state_encoder": "breaks"}


def test_an_inaccurate_backend_fails_and_is_named(record) -> None:
    for name in NAMES:
        own = by_backend(record, name)["wrong"]
        assert (own.passed, own.best, p50(own)) == (False, False, 1.0)
        assert own.failures[0].startswith(f"{name}: cosine")
    assert not by_backend(record, REQUEST)["wrong"].passed
    assert record.exit_reason == "gate failed"
    assert {line.split(":")[0] for line in record.failures} == {"wrong"}


def test_a_failed_build_ends_only_itself(record) -> None:
    own = {name: by_backend(record, name)["breaks"] for name in NAMES}
    assert own["dit_model"].why == "dit_model: no kernel for this"
    assert own["vl_components"].why == "OSError"
    assert {own[name].status for name in ("dit_model", "vl_components")} == {Status.FAILED}
    assert (own["state_encoder"].why, own["state_encoder"].status) == (None, Status.MEASURED)
    assert by_backend(record, REQUEST)["breaks"].why == "vl_components: OSError"


def test_what_is_not_installed_is_shown_as_such(record, fakes) -> None:
    for name in NAMES:
        own = by_backend(record, name)["absent"]
        assert (own.why, own.status, own.passed) == (
            "not available here: pip install it", Status.UNAVAILABLE, None,
        )  # fmt: skip
    assert fakes["absent"].built == []


def test_engines_that_cannot_run_are_built_checked_and_dropped_without_a_latency(record, fakes) -> None:
    own = by_backend(record, "dit_model")["torch_tensorrt"]
    assert (own.status, p50(own), own.best, own.passed, own.build.coverage_percent) == (
        Status.BUILT_NOT_RUN, None, None, True, 100,
    )  # fmt: skip
    whole = by_backend(record, REQUEST)["torch_tensorrt"]
    assert (whole.status, p50(whole), whole.build.engine_bytes) == (
        Status.BUILT_NOT_RUN, None, 1_000_000 * len(NAMES),
    )  # fmt: skip
    assert fakes["torch_tensorrt"].alive_at_next_build == [False] * (len(NAMES) - 1)
    assert all(fakes["quick"].alive_at_next_build)


def test_each_backend_has_an_engine_folder_of_its_own(record, fakes) -> None:
    assert {folder.name for folder in fakes["torch_tensorrt"].folders} == {"torch_tensorrt"}
    assert {folder.name for folder in fakes["quick"].folders} == {"quick"}


def test_build_times_are_those_of_building_not_of_the_cache(record, fakes) -> None:
    assert set(fakes["torch_tensorrt"].caches) == {None}


def test_a_comparison_runs_no_plan(record) -> None:
    assert record.submodules == []
    assert record.plan["backend"] is None
    assert record.request is None


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
    assert last_line(record)[0] is False


def test_a_comparison_that_left_nothing_to_time_says_so(record) -> None:
    alone = replace(record, results=[r for r in record.results if r.name in ("eager", "torch_tensorrt")])
    assert "Only one backend could run the whole request here" in last_line(alone)[1]
    tied = replace(record, results=[replace(r, best=False) for r in record.results])
    assert "No backend makes the fastest request beyond doubt" in last_line(tied)[1]


def test_backends_of_the_plan_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    names = fake_backends.install(monkeypatch, clock, Fake("eager", clock, {"": 2.0}), Fake("quick", clock, {"": 1.0}))
    own = plan(submodules={"state_encoder": {"backend": "inductor", "precision": "fp16"}}, optimizations="none")
    result = compared(own, "state_encoder", compare=names)
    entries = by_backend(result, "state_encoder")
    assert list(entries) == ["eager", "quick"]
    assert entries["quick"].candidate.precision == "fp16"
    assert resolve_submodule(own, "state_encoder").backend == "inductor"
    assert "original" not in by_backend(result, REQUEST)


def test_real_backends_compare_alike(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Real calls on the real clock: nothing is said of who wins."""
    argv = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--device", "cpu", "--precision", "fp32",
            "--fn_name", "state_encoder", "--num_iterations", "6", "--warmup_iterations", "1",
            "--record", str(tmp_path / "r.json")]  # fmt: skip
    assert main([*argv, "--compare", "inductor"]) == 0
    result = read_record(tmp_path / "r.json")
    for subject in ("state_encoder", REQUEST):
        entries = by_backend(result, subject)
        assert [name for name in entries if name != "original"] == ["eager", "inductor"]
        for entry in entries.values():
            assert (len(entry.latency_ms.samples), entry.passed, entry.status) == (6, True, Status.MEASURED)
        assert entries["inductor"].ratio > 0
        assert entries["inductor"].build.seconds > 0
    assert "state_encoder" in capsys.readouterr().err


def test_weights_are_not_moved_away_under_a_comparison() -> None:
    offloading = plan(backend="torch_tensorrt", build={"cpu_offload": True})
    with pytest.raises(PlanError, match="whose weights it would move away"):
        resolve(offloading, CPU, compare=("eager", "inductor"))
