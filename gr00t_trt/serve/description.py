"""What a server tells of itself: the table of its start, its first latency, and the status page."""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.table import Table
from rich.text import Text

from ..common.interface import Observation
from ..deploy.deploy import Deployment
from ..policy.policy import Gr00tPolicy
from ..record.numbers import cosine, digits
from ..record.result import Agreement
from .limits import Limits
from .wire import KeyForm, Message


def start_table(deployment: Deployment) -> Table:
    """What runs each submodule, how long it took to build, and how near it is to eager fp32."""
    table = Table(title="What serves each submodule", title_justify="left", title_style="")
    for head, justify in (("submodule", "left"), ("served by", "left"), ("build s", "right"), ("cosine", "right")):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    built = {result.subject: result for result in deployment.record.submodules}
    for name, text in deployment.backends.items():
        result = built.get(name)
        seconds = result.build.seconds if result and result.build else None
        table.add_row(*(Text(cell) for cell in (name, text, digits(seconds), cosine(result and result.accuracy))))
    table.add_section()
    table.add_row("actions", "", "", cosine(_actions(deployment)))
    return table


def _actions(deployment: Deployment) -> Agreement | None:
    """How near the actions are to eager fp32; None where the start was told not to compare."""
    whole = deployment.record.request
    return None if whole is None else whole.accuracy


def cosine_to_fp32(deployment: Deployment) -> float | None:
    """Of the actions; None where the start was told not to compare."""
    accuracy = _actions(deployment)
    return None if accuracy is None else accuracy.cosine


def status_page(args: argparse.Namespace, policy: Gr00tPolicy, deployment: Deployment, limits: Limits) -> Message:
    """What `Service` says of a server, as JSON."""
    record, found = deployment.record, deployment.record.environment
    builds = [result.build for result in record.submodules if result.build is not None]
    from_cache = [build.from_cache for build in builds if build.engine_bytes is not None]
    distributions = {name: version for name, version in found.distributions.items() if version is not None}
    bounds = {n: getattr(args, n) for n in ("max_request_mb", "request_timeout_s", "max_queue", "max_batch")}
    return {
        "model": args.bundle or args.model_path,
        "data_config": policy.config_name,
        "embodiment_tag": policy.metadata.embodiment_tag,
        "denoising_steps": policy.denoising_steps,
        "device": record.device,
        "gpu": found.gpu,
        "commit": record.git.commit,
        "versions": {"python": found.python, **distributions},
        "submodules": deployment.backends,
        "engines": {"built": from_cache.count(False), "from_cache": from_cache.count(True)},
        "action_cosine_to_fp32": cosine_to_fp32(deployment),
        "observation": keys_of(policy.example()),
        "limits": {**bounds, "samples": limits.max_samples, "tokens": limits.max_tokens},
    }


def keys_of(observation: Observation) -> dict[str, KeyForm]:
    """For the status page."""
    return {
        key: {"dtype": str(value.dtype), "shape": list(value.shape)}
        if isinstance(value, np.ndarray)
        else {"dtype": "str", "shape": [len(value)]}
        for key, value in observation.items()
    }


def first_latency(policy: Gr00tPolicy, observation: Observation, compared_ms: float | None) -> str:
    """The latency of ten requests, numpy to numpy; of fewer where they take longer than a second.

    Args:
        compared_ms: Of the request that the start compared with fp32; beyond a second, no other is run.
    """
    if compared_ms is not None and compared_ms > 1e3:
        return (
            f"one request at a time: {compared_ms:.0f} ms, the model alone; the one that was compared with eager fp32"
        )
    spent_ms: list[float] = []
    while not spent_ms or (len(spent_ms) < 10 and sum(spent_ms) < 1e3):
        start = time.perf_counter()
        policy.get_action(observation)
        spent_ms.append((time.perf_counter() - start) * 1e3)
    return f"one request at a time: p50 {np.median(spent_ms):.2f} ms of {len(spent_ms)}"
