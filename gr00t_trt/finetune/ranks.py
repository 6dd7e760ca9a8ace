"""Data-parallel training: which rank this process is, and what all ranks have to agree on.

The environment is torchrun's, so that a job over several machines may be started with torchrun itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from ..common.devices import choose_device
from ..errors import Gr00tError, PlanError

T = TypeVar("T")
_LOST = re.compile(r"gloo|nccl|connection|peer", re.IGNORECASE)
"""What errors of the connections between processes, which have no class of their own, speak of."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: the first one may fill the frame cache alone."""


@dataclass(frozen=True)
class Ranks:
    """One process of a training.

    Attributes:
        rank: From 0. count: Of the processes. device: Of this one.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, *numbers: float) -> list[float]:
        """Each number summed over all processes (all-reduce), in double precision."""
        if self.count == 1:
            return list(numbers)
        # NaN stays NaN; a float64 tensor on the device, since NCCL knows no other place.
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        added: list[float] = total.tolist()
        return added

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes in rank order (all-gather)."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, what the devices and the connections between the processes can do is an error in plain words.

        Raises: PlanError where a GPU's memory does not suffice, Gr00tError where another process is gone.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            fix = "a smaller --batch_size with more --gradient_accumulation_steps, or --no_tune_diffusion_model"
            raise PlanError(f"{self.device}: out of memory", known=str(error).splitlines()[0][:200], fix=fix) from error
        except RuntimeError as error:
            if self.count == 1 or not _LOST.search(str(error)):
                raise
            what = f"process {self.rank} of {self.count} has lost the others: one of them has ended"
            raise Gr00tError(what, fix="go on from the last checkpoint with --resume") from error

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process. Raises: in all of them the error that the first of them had."""
        result: T | None = None
        error: Gr00tError | None = None
        try:
            result = work()
        except Gr00tError as e:
            error = e
        self.refuse(error)
        return result  # type: ignore[return-value]

    def refuse(self, error: Gr00tError | None) -> None:
        """Raises: in all processes the error that the first of them has; nothing where none has one."""
        failed = next((e for e in self.gather(error) if e is not None), None)
        if failed is not None:
            raise failed

    def in_turn(self, work: Callable[[], T]) -> T:
        """As `together`, the first process before the others: what it leaves on the disk they find there."""
        mine = self.together(lambda: work() if self.first else None)
        others = self.together(lambda: None if self.first else work())
        return mine if self.first else others  # type: ignore[return-value]

    def parallel(self, objective: nn.Module) -> nn.Module:
        """The objective whose gradients are averaged over all processes in the backward pass."""
        if self.count == 1:
            return objective
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(objective, gradient_as_bucket_view=True)


@contextmanager
def joined(device: str | None) -> Iterator[Ranks]:
    """The processes as the environment describes them, connected while the block runs; one where it says nothing.

    Args:
        device: As `choose_device`; of several processes each takes the GPU of its number.
    Raises: PlanError for more processes than GPUs.
    """
    count, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if count == 1:
        yield Ranks(0, 1, choose_device(device))
        return
    own = choose_device(device)
    if own.type == "cuda":
        own = choose_device(f"cuda:{int(os.environ.get('LOCAL_RANK', rank))}")
        torch.cuda.set_device(own)
    dist.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Ranks(rank, count, own)
    finally:
        dist.destroy_process_group()


def check_count(count: int, device: str | None) -> None:
    """Raises: PlanError for more processes than there are GPUs to run them."""
    own = choose_device(device)
    found = torch.cuda.device_count()
    if own.type == "cuda" and count > found:
        raise PlanError(f"--num_gpus {count}, but PyTorch sees {found} here", fix=f"--num_gpus {found}")
