"""Between host arrays and a device: one copy there for a request, one copy back for its actions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes that each array starts at a multiple of, inside a packed buffer; float64 needs 8."""


def on_host(x: Tensor) -> bool:
    """Whether a tensor can be handed on as a numpy array without a copy that waits for a device."""
    return x.device.type == "cpu"


def unit_interval(levels: Tensor) -> Tensor:
    """uint8 levels to float32 in [0, 1], with the same bits on any device."""
    x = levels.to(torch.float32)
    # By a tensor: CUDA multiplies by the reciprocal of a plain number, which rounds differently from a division.
    return x.div_(torch.full((), 255.0, device=x.device))


class DeviceTransfer:
    """Takes a request's arrays to a device in one copy, and its actions back in one.

    Host memory is pinned where the device is a GPU, and kept: it grows to the largest request and is written again
    only after the copy that reads it has ended. What is returned belongs to the caller.

    Args:
        device: Where the tensors go. The host itself is accepted; everything is copied all the same.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._there, self._back = _Staging(self.device), _Staging(self.device)

    def send(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """`data` with its numpy arrays replaced by tensors on the device, same shapes and dtypes; does not wait."""
        arrays = {key: value for key, value in data.items() if isinstance(value, np.ndarray)}
        starts, size = [], 0
        for array in arrays.values():
            starts.append(size)
            size += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        host = self._there.take(size)
        packed = host.numpy()
        for start, array in zip(starts, arrays.values(), strict=True):
            packed[start : start + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
        sent = self._there.copy(host, torch.empty(size, dtype=torch.uint8, device=self.device))
        out = dict(data)
        for start, (key, array) in zip(starts, arrays.items(), strict=True):
            dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
            out[key] = sent[start : start + array.nbytes].view(dtype).view(array.shape)
        return out

    def fetch(self, tensor: Tensor) -> Tensor:
        """A tensor on the device in host memory, same shape and dtype; waits once."""
        size = tensor.numel() * tensor.element_size()
        host = self._back.take(size).view(tensor.dtype).view(tensor.shape)
        self._back.copy(tensor, host)
        self._back.wait()
        # Memory of its own, so that the next request cannot change it.
        return host.clone()


class _Staging:
    """Host memory for copies in one direction, with an event that says when the last of them ended."""

    def __init__(self, device: torch.device):
        self._device = device
        self._pinned = device.type == "cuda"
        self._bytes = torch.empty(0, dtype=torch.uint8)
        self._done = torch.cuda.Event() if self._pinned else None

    def take(self, size: int) -> Tensor:
        """uint8 [size] that no copy reads or writes any more."""
        self.wait()
        if self._bytes.numel() < size:
            self._bytes = torch.empty(size, dtype=torch.uint8, pin_memory=self._pinned)
        return self._bytes[:size]

    def copy(self, source: Tensor, target: Tensor) -> Tensor:
        """Start a copy on the device's current stream; gives the target."""
        target.copy_(source, non_blocking=True)
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(self._device))
        return target

    def wait(self) -> None:
        """Return when the last copy has ended."""
        if self._done is not None:
            self._done.synchronize()
