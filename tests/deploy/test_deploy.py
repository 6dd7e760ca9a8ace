"""A policy put into service: what it says of itself, and when it is refused."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from rich.console import Console

import gr00t_trt
from gr00t_trt.common import products
from gr00t_trt.common.products import Speed
from gr00t_trt.common.progress import Steps
from gr00t_trt.compile.build import set_precision
from gr00t_trt.data import example_observation
from gr00t_trt.deploy import deploy as deploying
from gr00t_trt.deploy.deploy import deploy
from gr00t_trt.errors import AccuracyError, PlanError
from gr00t_trt.measure import kept_reference
from gr00t_trt.model import example_inputs
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, Resolved, resolve
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.policy.policy import TensorPolicy
from gr00t_trt.record.result import REQUEST, Status
from gr00t_trt.record.schema import Record
from gr00t_trt.serve.description import first_latency

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
    assert [result.subject for result in record.results] == [REQUEST]
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
    assert done.record.request.passed
    assert any(skipped.what == "language_model_padded" for skipped in done.record.skipped)
    after = done.policy.get_action(batch, noise=torch.zeros(2, 16, 32))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-4)


def test_a_policy_loaded_in_the_plans_precisions_is_held_against_what_the_checkpoint_stores() -> None:
    resolved = plan(precision="bf16", submodules={"vision_model": {"precision": "fp32"}})
    cast = partial(set_precision, plan=resolved.plan)
    records = [
        deploy(gr00t_trt.load_policy("synthetic", dtype=dtype), resolved, QUIET).record
        for dtype in (torch.float32, cast)
    ]
    whole, straight = (record.request.accuracy for record in records)
    assert whole == straight
    assert not whole.exact


def test_a_start_without_a_check_says_so_and_claims_nothing() -> None:
    resolved = plan(precision="bf16", submodules={"vision_model": {"gate": {"sqnr_db": 200.0}}})
    done = deploy(gr00t_trt.load_policy("synthetic"), resolved, QUIET, check=False)
    assert "accuracy" in {skipped.what for skipped in done.record.skipped}
    for result in done.record.results:
        assert (result.accuracy, result.gate, result.passed, result.failures) == (None, None, None, ())
    assert done.policy.get_action(done.policy.example())


@pytest.mark.parametrize("faster", [True, False])
def test_fp32_on_a_cpu_is_computed_by_the_faster_library_and_as_exactly(
    monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    monkeypatch.setattr(products, "speed", lambda: Speed({"float32": 4.4}, 2.0 if faster else 4.3))
    monkeypatch.setattr(deploying, "speed", products.speed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        record = deploy(gr00t_trt.load_policy("synthetic"), plan(precision="fp32"), QUIET).record
        assert torch.get_float32_matmul_precision() == ("medium" if faster else "highest")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert ("fp32 products" in {skipped.what for skipped in record.skipped}) == faster
    if products.measured(products.ROWS, products.OUTPUTS, products.INPUTS).onednn_ms is not None:
        assert record.request.accuracy.max_abs < 1e-5


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Record]:
    """start(precision="bf16") -> the record of a start with weights that count as those of a file, ``weights``."""
    weights = tmp_path / "weights"
    weights.write_text("one")
    monkeypatch.setenv("GR00T_TRT_REFERENCES", str(tmp_path / "references"))
    monkeypatch.setattr(kept_reference, "source_of", lambda model: (weights,))

    def deployed(precision: str = "bf16", **submodules: Any) -> Record:
        resolved = plan(precision=precision, submodules=submodules)
        model = gr00t_trt.load_model("synthetic", dtype=partial(set_precision, plan=resolved.plan))
        return deploy(TensorPolicy(model, example_inputs(model.config)), resolved, QUIET).record

    return deployed


def told(record: Record) -> bool:
    """Whether the reference was kept from an earlier start."""
    return "reference" in {skipped.what for skipped in record.skipped}


def test_the_reference_is_kept_for_the_next_start(start: Callable[..., Record], tmp_path: Path) -> None:
    first, second, other = start(), start(), start("fp16")
    assert [told(record) for record in (first, second, other)] == [False, True, True]
    assert first.request.accuracy == second.request.accuracy
    (tmp_path / "weights").write_text("two!")
    assert not told(start())
    assert told(start())


def test_generated_weights_have_a_kept_reference_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR00T_TRT_REFERENCES", str(tmp_path))
    resolved = plan(precision="bf16")
    load = partial(gr00t_trt.load_model, "synthetic", dtype=partial(set_precision, plan=resolved.plan))
    records = []
    for _ in range(2):
        model = load()
        records.append(deploy(TensorPolicy(model, example_inputs(model.config)), resolved, QUIET).record)
    assert [told(record) for record in records] == [False, True]
    assert records[0].request.accuracy == records[1].request.accuracy


def test_a_slow_start_runs_no_second_request_to_tell_its_latency() -> None:
    done = deploy(gr00t_trt.load_policy("synthetic"), plan(precision="fp32"), QUIET)
    assert done.compared_ms == done.record.request.first_call_ms > 0
    asked = Mock(wraps=done.policy)
    assert "1234 ms, the model alone" in first_latency(asked, done.policy.example(), 1234.0)
    assert not asked.get_action.called
    assert "p50" in first_latency(asked, done.policy.example(), done.compared_ms)
    assert asked.get_action.called
    unlike = deploy(gr00t_trt.load_policy("synthetic"), plan(precision="fp32"), QUIET, check=False)
    assert unlike.compared_ms is None


def test_stages_that_are_held_against_recordings_get_a_reference_of_their_own(start: Callable[..., Record]) -> None:
    start()
    assert not told(start(vision_model={"gate": {"cosine": 0.9}}))


@pytest.mark.parametrize("damage", ["cut", "another key", "another value", "other actions"])
def test_kept_actions_are_never_believed_against_a_policy(
    start: Callable[..., Record], tmp_path: Path, damage: str
) -> None:
    first = start()
    (file,) = (tmp_path / "references").iterdir()
    content = json.loads(file.read_text())
    if damage == "another key":
        content["key"]["steps"] = 99
    elif damage == "another value":
        content["actions"][0] += 1.0
    elif damage == "other actions":
        content["actions"] = [-value for value in content["actions"]]
        content["sha256"] = kept_reference._digest(content["actions"], content["shape"])
    file.write_text(json.dumps(content)[: 100 if damage == "cut" else None])
    second = start()
    assert not told(second)
    assert second.request.passed
    assert second.request.accuracy == first.request.accuracy
    assert told(start())
