"""Which device a program runs on, and with how many threads. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import PlanError


def choose_device(wanted: str | None) -> torch.device:
    """The device asked for, else the first GPU, else the CPU. Raises: PlanError for one that is not there."""
    if wanted is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    known = "cpu, cuda, cuda:0, cuda:1, ..."
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise PlanError(f"--device: {wanted!r} is not a device", known=known) from None
    if device.type not in ("cpu", "cuda"):
        raise PlanError(f"--device: {wanted!r} is not supported", known=known)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA devices" if count else "no CUDA device"
        raise PlanError(f"--device: {wanted!r}, but PyTorch sees {found} here", fix="leave --device out, or use cpu")
    return torch.device("cpu" if device.type == "cpu" else f"cuda:{device.index or 0}")


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, PyTorch computes on one thread of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Work on a CUDA stream of our own: on the default one, engines fork to another and join it at every call."""
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
