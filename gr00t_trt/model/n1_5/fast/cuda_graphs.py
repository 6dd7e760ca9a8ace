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
    """Captures and replays on a stream of its own; all its graphs share one memory pool.

    Sharing is safe because graphs of one capturer never overlap: they run on one stream, and what a replay leaves is
    copied out before the next.

    Args:
        device: A CUDA device.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._pool: Any = None
        self._in_pool: weakref.WeakSet[CudaGraph] = weakref.WeakSet()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Work goes to this object's stream, after the caller's so far and before the caller's from then on."""
        caller = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(caller)
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        finally:
            # Also what keeps tensors of either stream from being reused while the other still reads them.
            caller.wait_stream(self._stream)

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
