"""What speed-ups are against: one baseline a table, and a mark where that baseline moved within the run."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console
from sample_records import COST, agreement, new, plain, samples

from gr00t_trt.record.result import REQUEST, Against, Baseline, Build, Candidate, Result, Status, Workload
from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Record, drift_of
from gr00t_trt.report import markdown, tables
from gr00t_trt.report import page as html
from gr00t_trt.report.terminal import render
from gr00t_trt.report.views import Loaded, View, together

NAME = "torch_tensorrt"
MARK = "he baseline drifted within the run"


def terminal(one: Loaded) -> str:
    out = io.StringIO()
    render(one.record, Console(file=out, width=300))
    return out.getvalue()


def full(one: Loaded) -> str:
    return markdown.section(one, "records/")


def page(one: Loaded) -> str:
    return html.page([one], "A title")


WRITERS = (terminal, full, page)
Writer = Callable[[Loaded], str]


def alone(record: Record) -> Loaded:
    (one,) = together([("record.json", plain(record))])
    return one


def timed(group: str, subject: str, of: Baseline, base: Samples, own: Samples, work: Workload | None = None) -> Result:
    return Result(
        group, NAME, subject, Candidate(NAME, "bf16"), work or Workload(), Status.MEASURED, build=Build(1.0),
        latency_ms=own, against=Against.of(of, base, own, NAME), accuracy=agreement(1e-6), passed=True,
    )  # fmt: skip


def held(*ms: float, of: Baseline = Baseline.ORIGINAL, work: Workload | None = None) -> Result:
    """A result whose baseline took these times."""
    return timed("waterfall", "model", of, Samples(ms), Samples((1.0,)), work)


@pytest.mark.parametrize(("percent", "marked"), [(4.0, False), (6.0, True)])
def test_a_baseline_that_moves_by_more_than_five_percent_marks_the_record(percent: float, marked: bool) -> None:
    moved = 100.0 + percent
    between = [held(100.0, 100.0, 100.0), held(moved, moved, moved)]
    within = [held(*[100.0] * 4, *[moved] * 4)]
    for results in (between, between[::-1], within):
        drift = drift_of(results)
        assert drift is not None
        assert (drift.lowest_ms, drift.highest_ms, drift.drifted) == (100.0, moved, marked)
        assert drift.percent == pytest.approx(percent)


def test_only_the_same_work_of_the_original_can_drift() -> None:
    assert drift_of([held(100.0)]) is None
    assert drift_of([held(100.0), held(200.0, work=Workload(views=2))]) is None
    assert drift_of([held(100.0, of=Baseline.STAGE), held(200.0, of=Baseline.STAGE)]) is None


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("group", ["run", "comparison", "waterfall"])
def test_drift_is_told_wherever_the_record_is_shown(group: str, writer: Writer) -> None:
    for percent in (4.0, 6.0):
        record = new(device="cuda:0")
        base = Samples((100.0,) * 8 + (100.0 + percent,) * 8)
        subject = "model" if group == "waterfall" else REQUEST
        record.results = [timed(group, subject, Baseline.ORIGINAL, base, Samples((50.0,) * 16))]
        record.drift = drift_of(record.results)
        text = writer(alone(record))
        assert (MARK in text) == (percent > 5)
        assert ("took 100 to 106 ms for the same work (6 % apart)" in text) == (percent > 5)


def chosen() -> Record:
    """A run whose submodules were timed, beside the comparison that they were chosen from."""
    record = new(device="cuda:0")
    parts = [("run", name, Baseline.STAGE, ms) for name, ms in COST.items()]
    whole = [(group, REQUEST, Baseline.ORIGINAL, 47.9) for group in ("run", "comparison")]
    for group, subject, of, ms in (*parts, *whole):
        record.results.append(timed(group, subject, of, samples(ms), samples(ms / 2)))
    return record


@pytest.mark.parametrize("writer", WRITERS)
def test_no_table_has_two_baselines(writer: Writer, compared, built, measured, monkeypatch) -> None:
    seen: list[set[Baseline]] = []
    table = tables.table

    def watched(title, views, keys, **more):
        views: list[View] = list(views)
        if {"speed_up", "baseline"} & set(keys):
            seen.append({view.result.against.baseline for view in views if view.result.against})
        return table(title, views, keys, **more)

    for module in (tables, markdown, html):
        monkeypatch.setattr(module, "table", watched)
    for record in (compared, built, measured, chosen()):
        writer(alone(record))
    assert {Baseline.ORIGINAL} in seen
    assert {Baseline.STAGE} in seen or {Baseline.FORM} in seen
    assert all(len(baselines) <= 1 for baselines in seen)
