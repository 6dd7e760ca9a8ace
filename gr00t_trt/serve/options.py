"""What a request may say beside its observation; servers and clients that do not know a key ignore it. No torch.

timings         true: where the time of this answer went comes with it
served_by       true: what runs each submodule, and the commit, come with it
seed            integer from 0 to 2^63 - 1: the starting noise; the same seed and observation give the same action
noise           array [T, action_dim], or [B, T, action_dim] for a batch: the starting noise itself
timeout_ms      how much longer the client waits for the answer; later nothing is computed for it
client_id       text of up to 64 characters: who asks, also by way of another connection
embodiment_tag  of the robot that asks, where a server drives several kinds
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .refusal import Refusal
from .wire import Message

KEYS = ("timings", "served_by", "seed", "noise", "timeout_ms", "client_id", "embodiment_tag")
MAX_ID = 64
LONGEST_MS = 1e12


@dataclass(frozen=True)
class Options:
    """The keys above, checked as far as they can be without a policy. `timeout_s`: in seconds."""

    timings: bool = False
    served_by: bool = False
    seed: int | None = None
    noise: np.ndarray | None = None
    timeout_s: float | None = None
    client_id: str | None = None
    embodiment_tag: str | None = None


def options_of(message: Message) -> Options:
    """The options of a request. Raises: Refusal naming the key and the value."""
    seed, noise = message.get("seed"), message.get("noise")
    timeout_ms = message.get("timeout_ms")
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63):
        raise _refused("seed", seed, "an integer from 0 to 2^63 - 1")
    if noise is not None and not isinstance(noise, np.ndarray):
        raise _refused("noise", noise, "an array [T, action_dim] or [B, T, action_dim]")
    if seed is not None and noise is not None:
        raise Refusal("seed and noise exclude each other: send one of them", http_status=400)
    is_number = isinstance(timeout_ms, int | float) and not isinstance(timeout_ms, bool)
    if timeout_ms is not None and not (is_number and 0 < timeout_ms <= LONGEST_MS):
        raise _refused("timeout_ms", timeout_ms, f"milliseconds above 0, up to {LONGEST_MS:g}")
    for key in ("client_id", "embodiment_tag"):
        name = message.get(key)
        if name is not None and not (isinstance(name, str) and 0 < len(name) <= MAX_ID):
            raise _refused(key, name, f"text of 1 to {MAX_ID} characters")
    return Options(
        timings=message.get("timings") is True,
        served_by=message.get("served_by") is True,
        seed=seed,
        noise=noise,
        timeout_s=None if timeout_ms is None else timeout_ms / 1e3,
        client_id=message.get("client_id"),
        embodiment_tag=message.get("embodiment_tag"),
    )


def _refused(key: str, value: object, known: str) -> Refusal:
    return Refusal(f"{key} is {str(value)[:60]!r}, not {known}", http_status=400)
