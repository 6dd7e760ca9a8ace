"""The tiny model and its requests, loaded once."""

from __future__ import annotations

import pytest

from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.policy.policy import Gr00tPolicy, load_policy


@pytest.fixture(scope="package")
def policy() -> Gr00tPolicy:
    return load_policy("synthetic")


@pytest.fixture(scope="package")
def requests_(policy: Gr00tPolicy) -> Requests:
    dataset = LeRobotDataset(synthetic_dataset(), data_config("fourier_gr1_arms_only").modality_config())
    return Requests(policy, [dataset.step(0, i) for i in range(3)], seed=0)
