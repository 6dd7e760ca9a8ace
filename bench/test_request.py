"""A whole request: from the observation, from model inputs, and the two steps around the model."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("part", ["get_action", "model", "preprocess", "postprocess"])
def test_request(benchmark, subject, part: str) -> None:
    harness = subject.harness
    policy, base = harness.policy, harness.reference.base
    actions = harness.check(harness.original, base).actions
    calls = {
        "get_action": harness.call(harness.original, base, "request"),
        "model": harness.call(harness.original, base),
        "preprocess": lambda: policy.preprocess(base.observation),
        "postprocess": lambda: policy.postprocess(actions, batched=base.batched),
    }
    benchmark.group = "request"
    with torch.no_grad():
        benchmark(subject.timed(calls[part]))
