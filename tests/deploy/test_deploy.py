"""A policy put into service: what it says of itself, and when it is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from rich.console import Console

import gr00t_trt
from gr00t_trt.common.progress import Steps
from gr00t_trt.data import example_observation
from gr00t_trt.deploy.deploy import deploy
from gr00t_trt.errors import AccuracyError, PlanError
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, Resolved, resolve
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.record.result import REQUEST, Status

QUIET = Steps(Console(file=io.StringIO()), None)


def plan(**settings) -> Resolved:
    return resolve(plan_from_mapping({"backend": "eager", **settings}, "test"), Machine("cpu"))


def test_the_deployed_policy_answers_as_before_in_its_precision() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    observation = example_observation(policy.modality_config, policy.metadata)
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(1))
    before = policy.get_action(observation, noise=noise)
    done = deploy(policy, plan(precision="bf16", denoising_steps=4), QUIET)
    assert done.backends == dict.fromkeys(SUBMODULES, "eager bf16")
    after = done.policy.get_action(observation, noise=noise)
    for key, value in before.items():
        scale = np.abs(value).max()
        assert not np.array_equal(after[key], value)
        np.testing.assert_allclose(after[key], value, atol=0.05 * scale)


def test_the_start_is_checked_and_not_timed() -> None:
    record = deploy(gr00t_trt.load_policy("synthetic"), plan(precision="fp32"), QUIET).record
    assert [result.subject for result in record.results] == [*SUBMODULES, REQUEST]
    for result in record.results:
        assert (result.status, result.passed, result.latency_ms) == (Status.CHECKED, True, None), result.subject
        assert result.accuracy.cosine is not None
    assert record.request.first_call_ms > 0


def test_the_restructured_model_is_what_the_policy_is_left_with() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    plain = policy.model
    done = deploy(policy, plan(precision="fp32", loop="denoise_loop"), QUIET)
    assert done.policy.model is not plain
    assert done.backends["denoise_loop"] == "eager fp32"
    assert "dit_model" not in done.backends


def test_a_policy_that_misses_its_gate_is_refused() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    impossible = {"vision_model": {"gate": {"sqnr_db": 200.0}}}
    with pytest.raises(AccuracyError, match="vision_model"):
        deploy(policy, plan(precision="bf16", submodules=impossible), QUIET)


def test_a_plan_that_is_not_decided_yet_is_refused() -> None:
    undecided = plan(submodules={"dit_model": {"backend": "auto"}})
    with pytest.raises(PlanError, match=r"auto \(dit_model\)"):
        deploy(gr00t_trt.load_policy("synthetic"), undecided, QUIET)


def test_denoising_steps_are_the_plans() -> None:
    done = deploy(gr00t_trt.load_policy("synthetic"), plan(precision="fp32", denoising_steps=2), QUIET)
    assert done.policy.denoising_steps == 2


def test_padded_prompts_deploy_the_language_model_as_well() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    batch = example_observation(policy.modality_config, policy.metadata, batch=2)
    annotation = next(key for key in batch if key.startswith("annotation."))
    batch[annotation] = ["lift the cup", "lift the cup and put it on the shelf next to the window"]
    before = policy.get_action(batch, noise=torch.zeros(2, 16, 32))
    done = deploy(policy, plan(precision="fp32"), QUIET, observation=batch)
    assert [r.passed for r in done.record.submodules if r.subject == "language_model"] == [True]
    assert any(skipped.what == "language_model_padded" for skipped in done.record.skipped)
    after = done.policy.get_action(batch, noise=torch.zeros(2, 16, 32))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-4)
