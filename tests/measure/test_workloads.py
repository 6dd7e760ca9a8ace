"""Larger requests made of one observation: the model's own checks accept them, and they are what they claim."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import Prompter
from gr00t_trt.data.tokenizer import synthetic_tokenizer
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.model.n1_5.inputs import IDS, MASK, PIXELS, check_inputs
from gr00t_trt.record.result import Workload


@pytest.mark.parametrize("work", [Workload(), Workload(views=2), Workload(views=3), Workload(batch=5), Workload(2, 2)])
def test_the_model_takes_them(policy, requests_: Requests, work: Workload) -> None:
    inputs = check_inputs(requests_.inputs(work), policy.model.config)
    assert inputs[PIXELS].shape[0] == work.views * work.batch
    assert inputs[IDS].shape[0] == work.batch
    assert bool((inputs[MASK] == 1).all())
    assert requests_.get(work).noise.shape == (work.batch, 16, 32)


def test_further_views_make_the_prompt_as_long_as_the_prompter_makes_it(policy, requests_: Requests) -> None:
    config = policy.model.config
    words = synthetic_tokenizer(config.special_tokens, config.vocab_size)
    prompter = Prompter(words, words.special_tokens)
    text = "pick the pear"
    lengths = []
    for views in (1, 2):
        images = np.zeros((1, 1, views, 224, 224, 3), np.uint8)
        lengths.append(prompter(images, [text])[IDS].shape[1])
    ours = [requests_.inputs(Workload(views=views))[IDS].shape[1] for views in (1, 2)]
    numbered = len(words.encode("<image 2>"))
    assert ours[1] - ours[0] == lengths[1] - lengths[0] - numbered


def test_a_batch_is_of_several_observations(requests_: Requests) -> None:
    pixels = requests_.inputs(Workload(batch=5))[PIXELS]
    assert not torch.equal(pixels[0], pixels[1])
    torch.testing.assert_close(pixels[3], pixels[0])  # three observations, from the start again


def test_noise_is_the_same_for_every_candidate_and_differs_within_a_batch(requests_: Requests) -> None:
    noise = requests_.get(Workload(batch=2)).noise
    torch.testing.assert_close(noise, requests_.get(Workload(batch=2, steps=8)).noise)
    assert not torch.equal(noise[0], noise[1])
