"""Bundles of the tiny model, and starts without one to hold them against."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from gr00t_trt.common.progress import Steps
from gr00t_trt.deploy.bundle.make import Made, make_bundle
from gr00t_trt.deploy.bundle.start import Started, open_bundle, start
from gr00t_trt.deploy.deploy import deploy
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, Resolved, resolve
from gr00t_trt.policy.policy import Gr00tPolicy
from gr00t_trt.policy.source import Source

QUIET = Steps(Console(file=io.StringIO()), None)
CPU = torch.device("cpu")


def resolved(**settings: Any) -> Resolved:
    return resolve(plan_from_mapping({"backend": "eager", "precision": "fp32", **settings}, "test"), Machine("cpu"))


def source(**settings: Any) -> Source:
    return Source(**{"model_path": "synthetic", "dataset_path": None, **settings})


def made(out: Path, plan: Resolved | None = None, **settings: Any) -> Made:
    return make_bundle(source(**settings), plan or resolved(), out, CPU, QUIET, engine_cache="off", command="test")


def started(folder: Path) -> Started:
    return start(open_bundle(folder), None, QUIET)


def normal(plan: Resolved, **settings: Any) -> Gr00tPolicy:
    """The policy of a start without a bundle."""
    policy = source(**settings).policy(CPU, QUIET)
    deploy(policy, plan, QUIET, engine_cache="off")
    return policy


def actions(policy: Gr00tPolicy, seed: int = 5) -> dict[str, np.ndarray]:
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed))
    return policy.get_action(policy.example(), noise=noise)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


@contextmanager
def own_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
