"""Other weights in a deployment on a GPU: the bits of a fresh start, compiled stages as they are, graphs anew."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from trained_pair import write_pair

from gr00t_trt.common.progress import Steps
from gr00t_trt.compile.build import set_precision
from gr00t_trt.deploy.deploy import Deployment, deploy
from gr00t_trt.deploy.weights import swap
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.policy import Gr00tPolicy, load_policy

NOISE = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(3))
QUIET = Steps(Console(file=io.StringIO()), None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("weights"))


def actions(deployment: Deployment, device: torch.device) -> dict[str, np.ndarray]:
    policy = deployment.policy
    return policy.get_action(policy.example(), noise=NOISE.to(device))


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("graph", ["none", "startup"])
def test_the_bits_are_those_of_a_fresh_start(pair: Path, gpu: torch.device, backend: str, graph: str) -> None:
    settings: dict[str, Any] = {"precision": "bf16", "loop": "denoise_loop", "cuda_graph": graph}
    resolved = resolve(plan_from_mapping({"backend": backend, **settings}, "test"), Machine(str(gpu)))

    def load(name: str) -> Gr00tPolicy:
        return load_policy(pair / name, dtype=partial(set_precision, plan=resolved.plan), device=gpu)

    served, fresh = (deploy(load(name), resolved, QUIET) for name in ("old", "new"))
    before, expected = actions(served, gpu), actions(fresh, gpu)
    addresses = {name: p.data_ptr() for name, p in served.policy.model.named_parameters()}
    swapped = swap(served, partial(load, "new"), QUIET)
    after = actions(served, gpu)
    assert addresses == {name: p.data_ptr() for name, p in served.policy.model.named_parameters()}
    assert swapped.rebuilt == ()
    for key, value in expected.items():
        np.testing.assert_array_equal(after[key], value)
    assert any((before[key] != value).any() for key, value in expected.items())
    if graph == "startup":
        assert len(served.policy.model.graphs) == 1
