"""Capturing with CUDA graphs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class CudaGraph:
    """A captured call and its result."""

    graph: torch.cuda.CUDAGraph
    output: Tensor

    def replay(self) -> None:
        """Launch every kernel of the call on the current stream; does not wait for them."""
        self.graph.replay()


class CudaCapturer:
    """Captures on a stream of its own and replays on the caller's; all its graphs share one memory pool.

    Sharing is safe because graphs of one capturer never overlap: each scope and each turn comes after the one before
    it, and what a replay leaves is copied out before the next. One thread at a time may be in either.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        # Made once: a new pair of events in every request is felt by the host.
        self._before, self._done = torch.cuda.Event(), torch.cuda.Event()
        self._last: Any = None
        self._pool: Any = None
        self._in_pool: weakref.WeakSet[CudaGraph] = weakref.WeakSet()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Work goes to this object's stream, after the caller's so far and before the caller's from then on."""
        caller = torch.cuda.current_stream(self._device)
        self._before.record(caller)
        self._stream.wait_event(self._before)
        self._stream.wait_event(self._done)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        finally:
            # Also what keeps tensors of either stream from being reused while the other still reads them.
            self._done.record(self._stream)
            caller.wait_event(self._done)
            self._last = caller

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Work stays on the caller's stream, after whatever was done in an earlier turn or scope."""
        caller = torch.cuda.current_stream(self._device)
        if caller != self._last:
            caller.wait_event(self._done)
        try:
            with torch.cuda.device(self._device):
                yield
        finally:
            self._done.record(caller)
            self._last = caller

    def capture(self, call: Callable[[], Tensor]) -> CudaGraph:
        """Raises: RuntimeError when `call` synchronises, copies from unpinned memory, or leaves the stream."""
        if not self._in_pool:
            # PyTorch ends a pool with its last graph, and refuses to capture into one that has ended.
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: another thread, such as a server's, may go on using CUDA meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                output = call()
        except Exception:
            # What a broken capture has left in a pool is not to be built on.
            self._in_pool = weakref.WeakSet()
            raise
        captured = CudaGraph(graph, output)
        self._in_pool.add(captured)
        return captured
