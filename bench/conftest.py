"""A policy and one observation for the benchmarks; every submodule with the inputs that it really gets.

GR00T_BENCH_MODEL   model to time [synthetic]; synthetic:full for the released geometry
GR00T_BENCH_DTYPE   fp32, fp16 or bf16 [fp32 on a CPU, bf16 on a GPU]
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import gr00t_trt
from gr00t_trt.compile.build import DTYPES
from gr00t_trt.compile.submodules import dimension_ranges, record
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.measure.timers import drain
from gr00t_trt.model.targets import DimRange, Recording
from gr00t_trt.plans.schema import Ranges
from gr00t_trt.policy.policy import Gr00tPolicy


@dataclass(frozen=True)
class Subject:
    """What is timed, with everything recorded once."""

    policy: Gr00tPolicy
    observation: dict[str, Any]
    inputs: dict[str, torch.Tensor]
    noise: torch.Tensor
    recording: Recording
    dims: dict[str, DimRange]

    def timed(self, call: Callable[[], object]) -> Callable[[], object]:
        """`call`, returning only when the GPU, if there is one, has done the work."""

        def run() -> object:
            result = call()
            drain(self.policy.model.device)
            return result

        return run


@pytest.fixture(scope="session")
def subject() -> Subject:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dtype = DTYPES[os.environ.get("GR00T_BENCH_DTYPE", "bf16" if device.type == "cuda" else "fp32")]
    policy = gr00t_trt.load_policy(os.environ.get("GR00T_BENCH_MODEL", "synthetic"), dtype=dtype, device=device)
    config = data_config("fourier_gr1_arms_only")
    observation = LeRobotDataset(synthetic_dataset(), config.modality_config()).step(0, 0)
    inputs, _ = policy.preprocess(observation)
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(0)).to(device)
    recording, _ = record(policy.model, inputs, noise)
    dims = dimension_ranges(policy.model.config, Ranges(), recording)
    return Subject(policy, observation, inputs, noise, recording, dims)
