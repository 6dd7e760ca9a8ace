"""The trace of one request: spans of the stages, as often as the timer counts them, with operators inside."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from gr00t_trt.errors import RecordError
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.rows import OURS, PLAIN
from gr00t_trt.measure.trace import write_trace
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.plans.schema import BenchmarkOptions
from gr00t_trt.policy.policy import load_policy
from gr00t_trt.record.result import Workload


@pytest.fixture(scope="module")
def harness(make_harness, requests_: Requests) -> Harness:
    return make_harness(Requests(load_policy("synthetic"), requests_._observations, 0), "fp32", [Workload()])


@pytest.mark.parametrize("candidate", [PLAIN, OURS])
def test_a_trace_has_the_stages_that_a_request_passes_through(harness: Harness, candidate, tmp_path: Path) -> None:
    variant, request = harness.variant(candidate), harness.reference.base
    before, policy_stages = dict(variant.model.stages), dict(harness.policy.stages)
    path = write_trace(harness, variant, request, tmp_path / "new" / "trace.json")
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    spans = [event for event in events if event.get("cat") == "user_annotation" and event["ph"] == "X"]
    seen = Counter(event["name"] for event in spans)
    timed = harness.time({"it": variant}, request, BenchmarkOptions(iterations=1, warmup=0))
    rows = {row.stage: row.calls_per_request for row in timed.stages["it"] if row.calls_per_request is not None}
    assert {name: seen[name] for name in rows} == rows
    (whole,) = (event for event in spans if event["name"] == "request")
    inside = [event for event in events if event.get("cat") == "cpu_op"]
    assert len(inside) > 100
    end = whole["ts"] + whole["dur"] + 1
    assert all(whole["ts"] - 1 <= event["ts"] <= end for event in spans if event["name"] in rows)
    assert policy_stages == dict(harness.policy.stages)
    assert before.keys() == variant.model.stages.keys()


def test_a_path_that_cannot_be_written_is_refused(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="--trace"):
        write_trace(harness, harness.original, harness.reference.base, tmp_path / "file" / "trace.json")
