"""From numpy to numpy through a GPU: the host's own bits going in, its actions coming out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import gr00t_trt
from gr00t_trt.data import LeRobotDataset, data_config

CONFIG = "fourier_gr1_arms_only"


@pytest.fixture(scope="module")
def dataset(demo: Path) -> LeRobotDataset:
    return LeRobotDataset(demo, data_config(CONFIG).modality_config())


@pytest.mark.usefixtures("exact")
def test_model_inputs_have_the_hosts_bits_and_actions_agree(dataset: LeRobotDataset, gpu, noise) -> None:
    metadata = dataset.metadata("gr1")
    here, there = (
        gr00t_trt.load_policy("synthetic", data_config=CONFIG, metadata=metadata, device=device)
        for device in ("cpu", gpu)
    )
    for episode, row in ((0, 0), (1, 37), (2, 5)):
        observation = dataset.step(episode, row)
        expected, _ = here.preprocess(observation)
        got, _ = there.preprocess(observation)
        assert set(got) == set(expected)
        for key, value in expected.items():
            assert got[key].dtype == value.dtype
            if key == "state":  # sines and cosines of a GPU may differ in the last bit
                torch.testing.assert_close(got[key].cpu(), value, atol=1e-14, rtol=1e-14)
            else:
                assert torch.equal(got[key].cpu(), value), key
        assert got["eagle_pixel_values"].device.type == "cuda"
        actions = there.get_action(observation, noise=noise())
        for key, value in here.get_action(observation, noise=noise()).items():
            assert isinstance(actions[key], np.ndarray)
            assert (actions[key].dtype, actions[key].shape) == (value.dtype, value.shape)
            np.testing.assert_allclose(actions[key], value, atol=1e-4)
