"""A candidate replayed as one graph, with graphs that need no GPU: captured per workload, right, and really used."""

from __future__ import annotations

import pytest
import torch
from fake_graphs import FakeCapturer

from gr00t_trt.compile import capture
from gr00t_trt.errors import BackendError
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.rows import OURS
from gr00t_trt.measure.variants import Variants
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.record.result import REQUEST, Candidate, Workload

WORKLOADS = [Workload(), Workload(steps=2), Workload(views=2), Workload(batch=2)]


@pytest.fixture
def fake(monkeypatch) -> FakeCapturer:
    capturer = FakeCapturer()
    monkeypatch.setattr(capture, "capturer_for", lambda device: capturer)
    return capturer


@pytest.fixture
def harness(make_harness, requests_: Requests) -> Harness:
    return make_harness(requests_, "fp32", WORKLOADS)


def test_each_workload_is_captured_once_and_then_replayed(fake, harness: Harness, requests_: Requests) -> None:
    variant = harness.graphed(harness.variant(OURS))
    for count, work in enumerate(WORKLOADS, 1):
        request = requests_.get(work)
        harness.capture(variant, request)
        call = harness.call(variant, request)
        assert fake.captured == count
        before = fake.replays
        for _ in range(3):
            torch.testing.assert_close(call(), harness.expected(request), atol=1e-5, rtol=0)
        assert fake.replays == before + 3
        assert fake.captured == count
    request = requests_.get(WORKLOADS[0])
    harness.capture(variant, request)
    harness.call(variant, request)()
    assert fake.captured == len(WORKLOADS)


def test_every_candidates_own_graph_is_captured(fake, harness: Harness, requests_: Requests) -> None:
    request = requests_.get(Workload())
    for count in (1, 2):
        harness.capture(harness.graphed(harness.variant(OURS)), request)
        assert fake.captured == count


def test_the_same_model_without_a_graph_is_not_replayed(fake, harness: Harness, requests_: Requests) -> None:
    request, plain = requests_.get(Workload()), harness.variant(OURS)
    graphed = harness.graphed(plain)
    harness.capture(graphed, request)
    harness.call(graphed, request)()
    replays = fake.replays
    uncaptured = harness.call(plain, request)
    torch.testing.assert_close(uncaptured(), harness.expected(request), atol=1e-5, rtol=0)
    assert fake.replays == replays


def test_a_whole_request_is_replayed_too(fake, harness: Harness, requests_: Requests) -> None:
    variant, request = harness.graphed(harness.variant(OURS)), requests_.get(Workload())
    harness.capture(variant, request)
    harness.call(variant, request, REQUEST)()
    harness.restore()
    assert fake.captured == 1
    assert fake.replays > 2


def test_what_cannot_be_captured_is_an_error_and_not_a_slower_row(fake, harness: Harness, requests_: Requests) -> None:
    fake.fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(BackendError, match="one CUDA graph: RuntimeError: operation not permitted"):
        harness.capture(harness.graphed(harness.variant(OURS)), requests_.get(Workload()))


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_there_is_no_such_candidate(harness: Harness) -> None:
    variants = Variants(harness)
    for _ in range(2):  # and it is not tried again
        with pytest.raises(BackendError, match="the model is not on a GPU"):
            variants.get(Candidate(optimizations=OURS.optimizations, graph=True))
