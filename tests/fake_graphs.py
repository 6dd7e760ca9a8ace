"""CUDA graphs without CUDA: the operators of a call are written down as they run and executed again by a replay.

As on a GPU, a replay runs no Python of the model, reads and writes the very memory of the capture, and so knows
nothing of what the host has decided since. What a real capture refuses is refused here: reading a value on the host,
a result whose size depends on values, a tensor made from host data, a copy from one device to another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

HOST_DATA = {"aten::lift_fresh", "aten::lift", "aten::lift_fresh_copy"}
"""What `torch.tensor` and its like pass through."""


class NotCapturable(RuntimeError):
    """As CUDA's own 'operation not permitted when stream is capturing'."""


class Recorder(TorchDispatchMode):
    """Writes down every operator inside; refuses those that a stream under capture cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)]
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            raise NotCapturable(f"{name} waits for the device")
        if name in HOST_DATA:
            raise NotCapturable(f"{name}: a tensor from host data")
        if name.startswith("aten::index") and any(x.dtype == torch.bool for x in given[1:]):
            raise NotCapturable(f"{name} with a mask waits for the device")
        out = func(*args, **kwargs)
        # A host scalar as an operand is part of the launch; anything larger would have to be copied.
        devices = {x.device for x in (*given, *tree_iter(out)) if isinstance(x, Tensor) and x.dim()}
        if len(devices) > 1:
            raise NotCapturable(f"{name} between {devices}")
        # A graph has addresses: what becomes of a tensor that lies there, such as other memory, is nothing to it.
        self.calls.append((func, *tree_map_only(Tensor, Tensor.detach, (args, kwargs, out))))
        return out


class FakeGraph:
    def __init__(self, calls: list[Any], output: Tensor):
        self.calls, self.output = calls, output

    def replay(self) -> None:
        for func, args, kwargs, out in self.calls:
            arguments = func._schema.arguments
            writes = any(a.alias_info is not None and a.alias_info.is_write for a in arguments)
            if not writes and any(r.alias_info is not None for r in func._schema.returns):
                continue  # a view: the memory that it looks at is written by others
            again = func(*args, **kwargs)
            if not writes:
                for old, new in zip(tree_iter(out), tree_iter(again), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


class FakeCapturer:
    """Counts captures. `spoil` is applied to what a capture gives; `fails` is raised by the next captures."""

    def __init__(self) -> None:
        self.captured = 0
        self.replays = 0
        self.inside = 0
        self.spoil: Callable[[FakeGraph], None] | None = None
        self.fails: Exception | None = None

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    turn = scope

    def capture(self, call: Callable[[], Tensor]) -> FakeGraph:
        assert self.inside == 1
        if self.fails is not None:
            raise self.fails
        with Recorder() as recorder:
            output = call()
        self.captured += 1
        graph = FakeGraph(recorder.calls, output)
        if self.spoil is not None:
            self.spoil(graph)
        replay = graph.replay

        def counted() -> None:
            assert self.inside == 1
            self.replays += 1
            replay()

        graph.replay = counted  # type: ignore[method-assign]
        return graph
