"""Every random number of a training as a function of the seed, its purpose and where it is used.

Nothing is drawn from a running sequence: a run that is resumed needs no saved state, any number of workers gives the
same batches, and the ranks of a job draw different numbers without having to agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

TIME_RANGE = 0.999
"""The original's scale of flow time: its clean end is cut off a little."""


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A generator on the CPU whose state is a function of the arguments alone.

    PyTorch's generator has 2^32 beginnings, so that two of a million samples may share one.

    Args:
        purpose: What is drawn, so that two uses of the same numbers differ: ``noise``, ``crop``.
        numbers: Where: step, rank, position, number of the dataset.
    """
    digest = hashlib.sha256(repr((seed, purpose, numbers)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def noise(seed: int, position: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of one sample, float32 of `shape`, on the CPU.

    Args:
        position: Number of the sample since step 0, over all ranks.
    """
    return torch.randn(tuple(shape), generator=generator(seed, "noise", position))


def flow_time(seed: int, position: int) -> float:
    """Flow time of one sample, in [-0.00101, 1): 0 is noise, 1 is data.

    With s from Beta(1.5, 1) it is (0.999 - s) / 0.999, a little below 0 for one sample in 700.

    Args:
        position: As in `noise`.
    """
    # 1 less a number of [0, 1) with 24 bits: never 0, so that the time stays below 1 in float32 as well.
    uniform = 1.0 - torch.rand((), generator=generator(seed, "time", position)).item()
    return (TIME_RANGE - uniform ** (1 / 1.5)) / TIME_RANGE
