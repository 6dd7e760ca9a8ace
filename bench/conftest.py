"""A policy and one observation for the benchmarks; every submodule with the inputs that it really gets.

GR00T_BENCH_MODEL   model to time [synthetic]; synthetic:full for the released geometry
GR00T_BENCH_DTYPE   fp32, fp16 or bf16 [fp32 on a CPU, bf16 on a GPU]
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from rich.console import Console

import gr00t_trt
from gr00t_trt.common.progress import Steps
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.measure.harness import Harness
from gr00t_trt.measure.reference import take_reference
from gr00t_trt.measure.timers import drain
from gr00t_trt.measure.workloads import one_request
from gr00t_trt.plans.schema import Plan


@dataclass(frozen=True)
class Subject:
    """What is timed: the harness of every other program, with its reference taken once."""

    harness: Harness

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        """`call`, returning only when the GPU, if there is one, has done the work."""

        def run() -> object:
            result = call()
            drain(self.harness.device)
            return result

        return run


@pytest.fixture(scope="session")
def subject() -> Subject:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    precision = os.environ.get("GR00T_BENCH_DTYPE", "bf16" if device.type == "cuda" else "fp32")
    policy = gr00t_trt.load_policy(os.environ.get("GR00T_BENCH_MODEL", "synthetic"), device=device)
    config = data_config("fourier_gr1_arms_only")
    observation = LeRobotDataset(synthetic_dataset(), config.modality_config()).step(0, 0)
    steps = Steps(Console(file=io.StringIO()), None)
    reference = take_reference(policy, one_request(policy, observation, 0), [()], steps)
    return Subject(Harness(reference, Plan(precision=precision, optimizations=()), steps))
