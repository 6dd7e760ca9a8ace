"""Requests that share a pass get what each would have got alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from puppet import CONFIG, observation

import gr00t_trt
from gr00t_trt.serve.batching import Batcher

BATCHER = Batcher(CONFIG, len)


def changed(**values: Any) -> dict[str, Any]:
    return {**observation(), **{key.replace("_", ".", 1): value for key, value in values.items()}}


def test_requests_of_one_form_can_be_joined() -> None:
    form = BATCHER.form(observation(1.0, "go"))
    assert form is not None
    assert BATCHER.form(observation(2.0, "ho")) == form
    for text in ("go", ("go",), np.array(["go"])):
        assert BATCHER.form(changed(annotation_task=text)) == form
    assert BATCHER.form({**observation(), "action.arm": 3}) == form  # not read, so it makes no difference


@pytest.mark.parametrize(
    "other",
    [
        changed(annotation_task=["a longer one"]),
        changed(video_webcam=np.zeros((1, 4, 4, 3), np.uint8)),
        changed(state_arm=np.zeros((1, 5), np.float32)),
    ],
)
def test_requests_of_other_forms_cannot(other: dict[str, Any]) -> None:
    assert BATCHER.form(other) not in (None, BATCHER.form(observation()))


@pytest.mark.parametrize(
    "other",
    [
        changed(video_webcam=np.zeros((2, 1, 8, 8, 3), np.uint8), state_arm=np.zeros((2, 1, 5))),
        changed(state_arm=[[0.0] * 5]),
        changed(annotation_task=["one", "two"]),
        changed(annotation_task=7),
        changed(annotation_other=["two instructions"]),
        {},
    ],
)
def test_what_is_out_of_the_ordinary_is_left_alone(other: dict[str, Any]) -> None:
    assert BATCHER.form(other) is None


def test_text_that_the_tokenizer_refuses_is_left_alone() -> None:
    def refuse(text: str) -> int:
        raise TypeError(text)

    assert Batcher(CONFIG, refuse).form(observation()) is None


def test_together_as_alone() -> None:
    policy = gr00t_trt.load_policy("synthetic")
    batcher = Batcher(policy.modality_config, lambda text: len(policy.prompter.tokenizer.encode(text)))
    random = np.random.default_rng(0)
    requests = []
    for text in ("push the red block", "pull the red block"):
        one = policy.example()
        for key, value in one.items():
            if key.startswith("state."):
                one[key] = value + random.normal(size=value.shape)
            elif key.startswith("annotation."):
                one[key] = [text]
        requests.append(one)
    if batcher.form(requests[0]) != batcher.form(requests[1]):  # unequal in tokens: the same text will do
        requests[1] = {**requests[1], **{k: v for k, v in requests[0].items() if k.startswith("annotation.")}}
    noise = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    together = batcher.part(policy.get_action(batcher.join(requests), noise=noise), 2)
    for i, request in enumerate(requests):
        alone = policy.get_action(request, noise=noise[i : i + 1])
        assert alone.keys() == together[i].keys()
        for key, value in alone.items():
            np.testing.assert_allclose(together[i][key], value, atol=1e-4 * np.abs(value).max())
