"""Candidates of one model: the reference is fp32 whatever they compute in, and they are called with what they want."""

from __future__ import annotations

import pytest
import torch

from gr00t_trt.errors import BackendError
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.rows import ALL, OURS, PLAIN
from gr00t_trt.measure.variants import Variants
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.policy.policy import load_policy
from gr00t_trt.record.result import Candidate, Workload

WORK = [Workload(), Workload(views=2, steps=2)]


@pytest.fixture(scope="module")
def requests_half(requests_: Requests) -> Requests:
    return Requests(load_policy("synthetic"), requests_._observations, seed=0)


@pytest.fixture(scope="module")
def half(make_harness, requests_half: Requests) -> Harness:
    return make_harness(requests_half, "bf16", WORK)


@pytest.fixture
def variants(half: Harness) -> Variants:
    return Variants(half)


@pytest.mark.parametrize("candidate", [PLAIN, OURS])
@pytest.mark.parametrize("work", WORK)
def test_half_precision_is_held_against_fp32(make_harness, half, requests_half, requests_, candidate, work) -> None:
    assert half.plain.dtype == torch.bfloat16
    full = make_harness(requests_, "fp32", WORK)
    torch.testing.assert_close(
        half.expected(requests_half.get(work)), full.expected(requests_.get(work)), atol=1e-6, rtol=0
    )
    checked = half.check(half.variant(candidate), requests_half.get(work))
    assert not checked.agreement.exact
    assert checked.agreement.cosine > 0.999


def test_what_was_not_looked_at_before_the_cast_is_no_reference(half: Harness, requests_half: Requests) -> None:
    with pytest.raises(RuntimeError, match="no reference was taken"):
        half.expected(requests_half.get(Workload(steps=8)))
    with pytest.raises(RuntimeError, match="no stages were recorded"):
        half.recording(ALL[:1])


def test_a_model_that_was_loaded_in_half_precision_gives_its_reference_when_it_is_asked_for(
    make_harness, requests_: Requests
) -> None:
    loaded = make_harness(
        Requests(load_policy("synthetic", dtype=torch.bfloat16), requests_._observations, 0), "bf16", WORK
    )
    full, more = make_harness(requests_, "fp32", WORK), Workload(steps=8)
    request = requests_.get(more)
    assert torch.equal(loaded.expected(request), full.expected(request))
    assert loaded.plain.dtype == torch.bfloat16


def test_the_restructured_model_finds_its_lookups_on_the_host(half: Harness, requests_half: Requests) -> None:
    model = half.model(ALL)
    inputs = requests_half.get(WORK[0]).resident(model)
    assert model.prepare(inputs).embodiments.key is not None


def test_variants_that_no_row_needs_are_let_go(variants: Variants) -> None:
    made = variants.get(OURS)
    variants.keep_only({PLAIN, Candidate(optimizations=OURS.optimizations, graph=True)})
    assert variants.get(OURS) is made  # its graph is still to be made
    variants.keep_only({PLAIN})
    assert variants.get(OURS) is not made


def test_a_candidate_that_cannot_be_built_is_not_built_twice(variants: Variants) -> None:
    graphed = Candidate("inductor", optimizations=OURS.optimizations, loop="denoise_step", mode="reduce-overhead")
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    with pytest.raises(BackendError, match="there is no GPU"):
        variants.get(graphed)
    with pytest.raises(BackendError, match="could not be built: BackendError: vision_model"):
        variants.get(graphed)
