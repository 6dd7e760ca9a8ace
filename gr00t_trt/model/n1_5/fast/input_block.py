"""The memory that a graph reads its pixels, state and noise from: one block, filled in one call."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

ALIGNED = 64
"""fp32 numbers that each tensor starts at a multiple of: 256 bytes, as an allocation of its own would be."""


class InputBlock:
    """One block of memory, and tensors inside it that a graph reads.

    What lies on the model's device already is copied there by one call. What lies in host memory goes to a GPU by way
    of pinned memory, everything in one copy where all of it is in host memory.

    Args:
        like: fp32 tensors whose shapes, device and values the block takes over.
        pinned: Whether the device is a GPU, for which pinned host memory is kept beside the block.
    Attributes:
        tensors: In the order of `like`.
    """

    def __init__(self, like: Sequence[Tensor], *, pinned: bool):
        starts = list(accumulate((-(-t.numel() // ALIGNED) * ALIGNED for t in like), initial=0))
        self._places = [(start, start + t.numel(), tuple(t.shape)) for start, t in zip(starts, like, strict=False)]
        self._block = torch.zeros(starts[-1], dtype=torch.float32, device=like[0].device)
        self.tensors = self._inside(self._block)
        self._sent = torch.cuda.Event() if pinned else None
        self._host, self._host_tensors = torch.empty(0), list[Tensor]()
        torch._foreach_copy_(self.tensors, list(like))

    def fill(self, values: Sequence[Tensor]) -> None:
        """Copy floating tensors of the same shapes in, wherever they lie, on the device's current stream."""
        if self._sent is None or not any(here := [value.is_cpu for value in values]):
            torch._foreach_copy_(self.tensors, list(values))
            return
        # What was sent before has left this memory by now, unless nobody has read its answer.
        self._sent.synchronize()
        if not self._host_tensors:
            self._host = torch.empty(self._block.shape, dtype=torch.float32, pin_memory=True)
            self._host_tensors = self._inside(self._host)
        staged = [host for host, is_here in zip(self._host_tensors, here, strict=True) if is_here]
        torch._foreach_copy_(staged, [value for value, is_here in zip(values, here, strict=True) if is_here])
        if all(here):
            self._block.copy_(self._host, non_blocking=True)
        else:
            pairs = zip(self._host_tensors, values, here, strict=True)
            sources = [host if is_here else value for host, value, is_here in pairs]
            torch._foreach_copy_(self.tensors, sources, non_blocking=True)
        self._sent.record(torch.cuda.current_stream(self._block.device))

    def _inside(self, block: Tensor) -> list[Tensor]:
        return [block[start:end].view(shape) for start, end, shape in self._places]
