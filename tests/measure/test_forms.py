"""Forms of one model: the reference is fp32 whatever they compute in, and they are called with what they want."""

from __future__ import annotations

import pytest
import torch
from gr00t_trt.measure.forms import Forms

from gr00t_trt.errors import BackendError
from gr00t_trt.measure import accuracy
from gr00t_trt.measure.rows import OURS, PLAIN, Candidate, Workload
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.policy.policy import load_policy

WORK = [Workload(), Workload(views=2, steps=2)]


@pytest.fixture(scope="module")
def half(requests_: Requests) -> Forms:
    policy = load_policy("synthetic")
    return Forms(policy, Requests(policy, requests_._observations, seed=0), "bf16", WORK, lambda _: None)


@pytest.mark.parametrize("candidate", [PLAIN, OURS])
@pytest.mark.parametrize("work", WORK)
def test_half_precision_is_held_against_fp32(half: Forms, policy, requests_: Requests, candidate, work) -> None:
    assert half.plain.dtype == torch.bfloat16
    full = Forms(policy, requests_, "fp32", WORK, lambda _: None)
    torch.testing.assert_close(half.reference(work), full.reference(work), atol=1e-6, rtol=0)
    agreement = accuracy.compare(half.actions(half.get(candidate), work), half.reference(work))
    assert not agreement.exact
    assert agreement.cosine > 0.999


def test_the_restructured_model_finds_its_lookups_on_the_host(half: Forms) -> None:
    inputs = half.requests.resident(WORK[0], lookups_on_host=True)
    assert half.get(OURS).model.prepare(inputs).embodiments.key is not None


def test_forms_that_no_row_needs_are_let_go(half: Forms) -> None:
    half.get(OURS)
    half.keep_only({PLAIN, Candidate(optimizations=OURS.optimizations, graph=True)})
    assert half.has(OURS)  # its graph is still to be made
    half.keep_only({PLAIN})
    assert not half.has(OURS)


def test_a_form_that_cannot_be_built_is_not_built_twice(half: Forms) -> None:
    graphed = Candidate("inductor", OURS.optimizations, "denoise_step", mode="reduce-overhead")
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    with pytest.raises(BackendError, match="there is no GPU"):
        half.get(graphed)
    with pytest.raises(BackendError, match="could not be built: BackendError: vision_model"):
        half.get(graphed)
