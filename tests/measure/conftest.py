"""The tiny model and its requests, loaded once."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from gr00t_trt.common.progress import Steps
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.reference import take_reference
from gr00t_trt.measure.rows import ALL
from gr00t_trt.measure.workloads import Requests
from gr00t_trt.plans.schema import Plan
from gr00t_trt.policy.policy import Gr00tPolicy, load_policy
from gr00t_trt.record.result import Workload


@pytest.fixture(scope="package")
def policy() -> Gr00tPolicy:
    return load_policy("synthetic")


@pytest.fixture(scope="package")
def requests_(policy: Gr00tPolicy) -> Requests:
    dataset = LeRobotDataset(synthetic_dataset(), data_config("fourier_gr1_arms_only").modality_config())
    return Requests(policy, [dataset.step(0, i) for i in range(3)], seed=0)


@pytest.fixture(scope="package")
def make_harness() -> Callable[..., Harness]:
    """make(requests, precision, workloads) -> a harness of the requests' policy, which it casts."""

    def make(requests: Requests, precision: str, workloads: list[Workload]) -> Harness:
        steps = Steps(Console(file=io.StringIO()), None)
        base, *further = map(requests.get, workloads)
        reference = take_reference(requests._policy, base, [(), ALL], steps, further=further)
        return Harness(reference, Plan(precision=precision), steps)

    return make
