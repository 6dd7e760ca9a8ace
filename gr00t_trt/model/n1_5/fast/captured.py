"""A captured request: its graph, the memory that the graph reads, and what leads to it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...protocol import Inputs
from .constants import Embodiments
from .input_block import InputBlock
from .prompts import Prompt


class Graph(Protocol):
    """One captured call."""

    @property
    def output(self) -> Tensor:
        """What the call returned; every replay writes it again."""
        ...

    def replay(self) -> None: ...


class Capturer(Protocol):
    """How calls become graphs."""

    def scope(self) -> AbstractContextManager[None]:
        """What is done inside comes after the caller's work on the device and before what the caller does next."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """As `scope`, for a replay: nothing is captured inside."""
        ...

    def capture(self, call: Callable[[], Tensor]) -> Graph:
        """Record what `call` does on the device. Raises: whatever stands in the way, such as a synchronisation."""
        ...


@dataclass
class Captured:
    """A graph that was compared and found right.

    Attributes:
        key: What it is looked up by.
        inputs: Name -> the memory that the graph reads, noise included.
        every_time: Those of `EVERY_TIME`.
        prompt: Whose values are in `inputs` now; None while they change.
        embodiments: Likewise, where the graph serves samples of different ones in any combination.
        depends_on: What the graph was captured with, as `FastGr00tN1d5.dependencies`.
        constants: Tensors behind addresses in the graph that nothing else may be holding: a replay that is launched
            before the weights are looked at may read memory that the model has given up.
        max_rel_error: The largest difference to the uncaptured call that the comparison saw, over the larger of 1 and
            the largest action.
    """

    key: Key
    graph: Graph
    inputs: dict[str, Tensor]
    every_time: InputBlock
    prompt: Prompt | None
    embodiments: Embodiments | None
    depends_on: tuple[object, ...]
    constants: object
    max_rel_error: float


@dataclass(frozen=True)
class Key:
    """Everything that shapes a graph.

    Attributes:
        shapes: Name, shape and dtype of every input.
        embodiments: As `Embodiments.key`; empty for a graph of any combination of different ones.
    """

    shapes: tuple[tuple[str, tuple[int, ...], torch.dtype], ...]
    embodiments: tuple[int, ...]
    horizon: int
    steps: int
    loop: str


@dataclass(frozen=True, eq=False)
class Known:
    """What the lookups of a request led to, and the tensors that were looked up.

    Attributes:
        given: Ids, mask and embodiments.
    """

    given: tuple[object, ...]
    kept: Captured
    prompt: Prompt
    embodiments: Embodiments


@dataclass(frozen=True, eq=False)
class Launch:
    """A replay that the device may still be working on.

    Attributes:
        noise: [B, T, 32], the caller's, or fp32 drawn on the model's device.
        actions: fp32 [B, T, 32], not to be given out before `stands`.
    """

    known: Known
    noise: Tensor
    actions: Tensor

    def stands(self, prompt: Prompt, embodiments: Embodiments, depends_on: tuple[object, ...]) -> bool:
        """Whether the request, looked at as any other, leads to the same prompt and graph, still of this model.

        Args:
            depends_on: As `FastGr00tN1d5.dependencies`, now.
        """
        same = prompt is self.known.prompt and embodiments.key == self.known.embodiments.key
        return same and self.known.kept.depends_on == depends_on


class Replayer(Protocol):
    """What a model needs of its `graphs` to have a request replayed before it is looked at."""

    def launch(self, inputs: Inputs, noise: object) -> Launch | None: ...
    def forget(self) -> None: ...
