"""The batches that a server makes have their graphs before it reports ready."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fake_graphs import FakeCapturer, NotCapturable

import gr00t_trt
from gr00t_trt.errors import UsageError
from gr00t_trt.model.n1_5.fast import RequestGraphs, restructure
from gr00t_trt.policy.policy import Gr00tPolicy
from gr00t_trt.serve.batching import Batcher, buckets_up_to
from gr00t_trt.serve.warm import warm_batches


@pytest.fixture
def policy() -> Gr00tPolicy:
    return gr00t_trt.load_policy("synthetic", denoising_steps=1)


def replayed(policy: Gr00tPolicy, capturer: FakeCapturer, **settings: Any) -> None:
    """As a plan with `cuda_graph: startup` leaves a policy."""
    model: Any = restructure(policy.model)
    graphs = RequestGraphs(model, capturer, tolerance=1e-4, **settings)
    inputs, _ = policy.preprocess(policy.example())
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0))
    assert graphs.capture(model.prepare(inputs), noise) is None
    model.graphs = graphs
    policy.model = model


def batcher_of(policy: Gr00tPolicy) -> Batcher:
    return Batcher(policy.modality_config, lambda text: len(policy.prompter.tokenizer.encode(text)))


def test_buckets_are_powers_of_two() -> None:
    assert [buckets_up_to(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4], [1, 2, 4, 8]]


def test_each_bucket_has_its_graph_and_is_answered_by_it(policy: Gr00tPolicy) -> None:
    batcher, one, capturer = batcher_of(policy), policy.example(), FakeCapturer()
    noise = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    alone = [policy.get_action(one, noise=noise[i : i + 1]) for i in range(2)]
    replayed(policy, capturer)
    notes: list[str] = []
    warm_batches(policy, batcher, one, [2, 4], notes.append)
    assert (capturer.captured, notes) == (3, [])
    before = capturer.replays
    together = batcher.part(policy.get_action(batcher.join([one, one]), noise=noise), 2)
    assert (capturer.captured, capturer.replays) == (3, before + 1)
    for own, part in zip(alone, together, strict=True):
        for key, value in own.items():
            np.testing.assert_allclose(part[key], value, atol=1e-4 * np.abs(value).max())


def test_batches_push_no_prompt_out(policy: Gr00tPolicy) -> None:
    """A graph is kept for each size of a batch: as many prompts stay as without batches."""
    capturer = FakeCapturer()
    replayed(policy, capturer, limit=2)
    warm_batches(policy, batcher_of(policy), policy.example(), [2, 4], print)
    assert (capturer.captured, len(policy.model.graphs)) == (3, 3)


def test_what_cannot_be_captured_is_told(policy: Gr00tPolicy) -> None:
    capturer, notes = FakeCapturer(), []
    replayed(policy, capturer)
    capturer.fails = NotCapturable("no room")
    warm_batches(policy, batcher_of(policy), policy.example(), [2], notes.append)
    assert notes == ["batches of 2 run kernel by kernel: NotCapturable: no room"]


def test_what_keeps_a_single_graph_is_refused(policy: Gr00tPolicy) -> None:
    replayed(policy, FakeCapturer(), one_shape=True)
    with pytest.raises(UsageError, match="keeps 1 graphs"):
        warm_batches(policy, batcher_of(policy), policy.example(), [2], print)


def test_without_graphs_each_size_is_called_once(policy: Gr00tPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    key = policy.modality_config["video"].modality_keys[0]
    monkeypatch.setattr(policy, "get_action", lambda joined: sizes.append(len(joined[key])))
    warm_batches(policy, batcher_of(policy), policy.example(), [2, 4], print)
    assert sizes == [2, 4]
