"""A whole request: from the observation, from model inputs, and the two steps around the model."""

from __future__ import annotations

import pytest
import torch


@pytest.mark.parametrize("part", ["get_action", "model", "preprocess", "postprocess"])
def test_request(benchmark, subject, part: str) -> None:
    policy = subject.policy
    actions = policy.model.get_action(subject.inputs, noise=subject.noise)["action_pred"]
    calls = {
        "get_action": lambda: policy.get_action(subject.observation, noise=subject.noise),
        "model": lambda: policy.model.get_action(subject.inputs, noise=subject.noise),
        "preprocess": lambda: policy.preprocess(subject.observation),
        "postprocess": lambda: policy.postprocess(actions, batched=False),
    }
    benchmark.group = "request"
    with torch.no_grad():
        benchmark(subject.timed(calls[part]))
