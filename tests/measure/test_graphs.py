"""A form that is replayed as one graph, with graphs that need no GPU: captured per workload, right, and really used."""

from __future__ import annotations

import pytest
import torch
from fake_graphs import FakeCapturer
from gr00t_trt.measure.forms import Forms

from gr00t_trt.errors import BackendError
from gr00t_trt.measure import graphs
from gr00t_trt.measure.rows import OURS, Candidate, Workload, replace
from gr00t_trt.measure.workloads import Requests

GRAPHED = replace(OURS, graph=True)
WORKLOADS = [Workload(), Workload(steps=2), Workload(views=2), Workload(batch=2)]


@pytest.fixture
def fake(monkeypatch):
    capturer = FakeCapturer()
    monkeypatch.setattr(graphs, "capturer_for", lambda device: capturer)
    return capturer


@pytest.fixture
def forms(policy, requests_: Requests) -> Forms:
    return Forms(policy, requests_, "fp32", WORKLOADS, lambda _: None)


def test_each_workload_is_captured_once_and_then_replayed(fake, forms: Forms) -> None:
    form = forms.get(GRAPHED)
    for count, work in enumerate(WORKLOADS, 1):
        call = forms.model_call(form, work)
        assert fake.captured == count
        before = fake.replays
        for _ in range(3):
            torch.testing.assert_close(call(), forms.reference(work), atol=1e-5, rtol=0)
        assert fake.replays == before + 3
        assert fake.captured == count
    forms.model_call(form, WORKLOADS[0])()
    assert fake.captured == len(WORKLOADS)


def test_the_same_model_without_a_graph_is_not_replayed(fake, forms: Forms) -> None:
    forms.model_call(forms.get(GRAPHED), Workload())()
    replays = fake.replays
    uncaptured = forms.model_call(forms.get(OURS), Workload())
    torch.testing.assert_close(uncaptured(), forms.reference(Workload()), atol=1e-5, rtol=0)
    assert fake.replays == replays


def test_a_whole_request_is_replayed_too(fake, forms: Forms) -> None:
    forms.request_call(forms.get(GRAPHED), Workload())()
    forms.restore()
    assert fake.captured == 1
    assert fake.replays > 2


def test_what_cannot_be_captured_is_an_error_and_not_a_slower_row(fake, forms: Forms) -> None:
    fake.fails = RuntimeError("operation not permitted when stream is capturing")
    with pytest.raises(BackendError, match="one CUDA graph: RuntimeError: operation not permitted"):
        forms.model_call(forms.get(GRAPHED), Workload())


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_there_is_no_such_form(forms: Forms) -> None:
    for _ in range(2):  # and it is not tried again
        with pytest.raises(BackendError, match="the model is not on a GPU"):
            forms.get(Candidate(optimizations=OURS.optimizations, graph=True))
