"""Whole requests as graphs: captured by shape, compared with the uncaptured model, then replayed on fixed memory.

A graph holds the kernels of one request and the addresses they read and write; replaying it costs the host one call.
Whatever else a request depends on is therefore part of what a graph is looked up by, or copied to those addresses.
"""

from __future__ import annotations

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ....errors import Gr00tError
from .model import FastGr00tN1d5, Prepared

LIMIT = 8
"""Graphs kept, unless more are asked for. Each owns the memory of its inputs, see `RequestGraphs.input_bytes`; what is
computed in between lies in one pool that all share."""

WARM_CALLS = 3
"""Calls before a capture: tables, compilers' choices and library workspaces must exist by then."""

EVERY_TIME = ("pixel_values", "state", "noise")
"""Inputs that are new in every request; the others follow from the prompt."""


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

    def capture(self, call: Callable[[], Tensor]) -> Graph:
        """Record what `call` does on the device. Raises: whatever stands in the way, such as a synchronisation."""
        ...


@dataclass
class _Captured:
    """A graph that was compared and found right.

    Attributes:
        inputs: Name -> the memory that the graph reads, noise included.
        prompt: Whose values are in `inputs` now; None while they change.
        depends_on: What the graph was captured with, as `FastGr00tN1d5.dependencies`.
        constants: Tensors behind addresses in the graph that nothing else may be holding.
        max_rel_error: The largest difference to the uncaptured call that the comparison saw, over the larger of 1 and
            the largest action.
    """

    graph: Graph
    inputs: dict[str, Tensor]
    prompt: object
    depends_on: tuple[object, ...]
    constants: object
    max_rel_error: float


class RequestGraphs:
    """Answers requests of a restructured model by replay where a graph of their shape exists, else as the model does.

    The key of a graph is everything that shapes it: the shapes and dtypes of all inputs (batch, views, exact prompt
    length, horizon), padding or none, the embodiments, the denoising steps and the loop. Prompts are not padded to
    common lengths: the vision-language layers attend to every position, so padding would change the actions. Images,
    prompts, state and noise are copied in for every request. Weights are read where they lie. When one behind kept
    values was written, when any was moved, cast or replaced, or an entry of `stages` has changed, the graph is captured
    anew.

    A request whose prompt or embodiments lie on the GPU is not looked up, which would stall it, and runs uncaptured.

    Args:
        model: Already cast, its stages in place. Set `model.graphs` to this object.
        on_demand: Capture at the first request of a new shape too, which takes as long as eight or so requests.
        tolerance: How far a replay may be from the uncaptured call, over the larger of 1 and the largest action.
        one_shape: The stages' compiler keeps state that depends on the shape last seen, as TensorRT's execution
            contexts do: one graph is kept, and given up when a request of another shape has run.
    """

    def __init__(
        self,
        model: FastGr00tN1d5,
        capturer: Capturer,
        *,
        tolerance: float,
        on_demand: bool = False,
        one_shape: bool = False,
        limit: int = LIMIT,
    ):
        self._model, self._capturer, self._tolerance = model, capturer, tolerance
        self._on_demand = on_demand and not one_shape
        self._one_shape, self._limit = one_shape, 1 if one_shape else limit
        self._kept: OrderedDict[Hashable, _Captured] = OrderedDict()
        self._asked: set[Hashable] = set()
        self._refused: dict[Hashable, tuple[object, ...]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def input_bytes(self) -> int:
        """Memory that the kept graphs read their inputs from."""
        return sum(t.numel() * t.element_size() for kept in self._kept.values() for t in kept.inputs.values())

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of the prompts that the kept graphs are of, in order."""
        return sorted({kept.inputs["embeds"].shape[1] for kept in self._kept.values()})

    @property
    def max_rel_error(self) -> float | None:
        """The largest difference between a kept graph and the uncaptured model when they were compared."""
        return max((kept.max_rel_error for kept in self._kept.values()), default=None)

    def __call__(self, x: Prepared, noise: Tensor) -> Tensor:
        """Actions fp32 [B, T, 32], owned by the caller.

        Args:
            noise: fp32 [B, T, 32] on the model's device.
        """
        key = self._key(x, noise)
        with self._lock:
            if key is None:
                return self._uncaptured(x, noise)
            depends_on = self._model.dependencies()
            kept = self._kept.get(key)
            if kept is None or kept.depends_on != depends_on:
                if not (self._on_demand or key in self._asked) or self._refused.get(key) == depends_on:
                    return self._uncaptured(x, noise)
                found = self._capture(key, x, noise, depends_on)
                if isinstance(found, str):
                    warnings.warn(f"no CUDA graph of this request: {found}", RuntimeWarning, stacklevel=2)
                    return self._uncaptured(x, noise)
                kept = found
            self._kept.move_to_end(key)
            return self._replay(kept, x, noise)

    @torch.no_grad()
    def capture(self, x: Prepared, noise: Tensor) -> str | None:
        """Capture requests of this shape now, and again whenever weights or stages have changed.

        Returns: Why that is impossible, in a sentence; None when it was done.
        Raises: PlanError for a request that is older than the weights.
        """
        self._model.check_prepared(x)
        key = self._key(x, noise)
        if key is None:
            return "its prompt or its embodiments were not given in host memory"
        with self._lock:
            found = self._capture(key, x, noise, self._model.dependencies())
        if isinstance(found, str):
            return found
        self._asked.add(key)
        return None

    def _key(self, x: Prepared, noise: Tensor) -> Hashable | None:
        if x.embodiments.key is None or x.prompt.image_rows is None:
            return None
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in _inputs(x, noise).items())
        return (shapes, x.embodiments.key, self._model.denoising_steps, self._model.loop)

    def _uncaptured(self, x: Prepared, noise: Tensor) -> Tensor:
        if self._one_shape:
            self._kept.clear()
        return self._model.run(x, noise)

    def _replay(self, kept: _Captured, x: Prepared, noise: Tensor) -> Tensor:
        actions = torch.empty_like(kept.graph.output)
        with self._capturer.scope():
            # A prompt is the same object as long as it is the same instruction.
            same, kept.prompt = kept.prompt is x.prompt, None
            for name, value in _inputs(x, noise).items():
                if not same or name in EVERY_TIME:
                    kept.inputs[name].copy_(value)
            kept.prompt = x.prompt
            kept.graph.replay()
            return actions.copy_(kept.graph.output)

    def _capture(self, key: Hashable, x: Prepared, noise: Tensor, depends_on: tuple[object, ...]) -> _Captured | str:
        # Room first: an old graph of this shape, or the one used longest ago, gives its memory back.
        self._kept.pop(key, None)
        while len(self._kept) >= self._limit:
            self._kept.popitem(last=False)
        # Tensors made in inference mode could not be written outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            try:
                found = self._capture_and_compare(x, noise, depends_on)
            except Gr00tError:
                raise
            except Exception as error:  # a driver, a compiler's runtime or a kernel: anything may refuse a capture
                found = _said(error)
        if isinstance(found, str):
            self._refused[key] = depends_on
        else:
            self._refused.pop(key, None)
            self._kept[key] = found
        return found

    def _capture_and_compare(self, x: Prepared, noise: Tensor, depends_on: tuple[object, ...]) -> _Captured | str:
        model = self._model
        given = _inputs(x, noise)
        with self._capturer.scope():
            fixed = {name: value.clone() for name, value in given.items()}
            on_fixed = _with(x, fixed)
            for _ in range(WARM_CALLS):
                model.run(on_fixed, fixed["noise"])
            # Found, not made: the warm calls made them. The captured call finds the same ones.
            constants = model.constants(on_fixed, noise.shape[1])
            graph = self._capturer.capture(lambda: model.run(on_fixed, fixed["noise"]))
            errors = []
            # Other values first: a graph that had kept the old ones would be found out.
            for inputs in (_otherwise(given), given):
                expected = model.run(_with(x, inputs), inputs["noise"])
                for name, value in inputs.items():
                    fixed[name].copy_(value)
                graph.replay()
                difference = (graph.output - expected).abs().amax() / expected.abs().amax().clamp_min(1.0)
                errors.append(float(difference))
        worst, allowed = max(errors), self._tolerance
        if not all(value <= allowed for value in errors):  # NaN is not either
            return f"its replay is off the uncaptured call by {worst:.2g}, more than {allowed:g}"
        return _Captured(graph, fixed, x.prompt, depends_on, (constants, x.embodiments), worst)


def _said(error: BaseException) -> str:
    """The first line of an error, and of the one before it: ending a broken capture raises an error of its own."""
    errors = [error, error.__context__] if error.__context__ is not None else [error]
    return ", after ".join(f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}" for e in errors)


def _inputs(x: Prepared, noise: Tensor) -> dict[str, Tensor]:
    """Everything that may differ between two requests of one key."""
    prompt = x.prompt
    optional = {"image_rows": prompt.image_rows, "key_mask": prompt.key_mask, "query_mask": prompt.query_mask}
    return {
        "pixel_values": x.pixel_values,
        "state": x.state,
        "noise": noise,
        "embeds": prompt.embeds,
        "rotation": prompt.rotation,
        **{name: value for name, value in optional.items() if value is not None},
    }


def _with(x: Prepared, inputs: Mapping[str, Tensor]) -> Prepared:
    """The request with its tensors replaced by those of `inputs`."""
    names = ("embeds", "rotation", "image_rows", "key_mask", "query_mask")
    prompt = replace(x.prompt, **{name: inputs[name] for name in names if name in inputs})
    return replace(x, pixel_values=inputs["pixel_values"], state=inputs["state"], prompt=prompt)


def _otherwise(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same shapes with other images, image positions, prompt, state and noise."""
    changed = {name: 0.5 - inputs[name] for name in ("pixel_values", "embeds", "state", "noise")}
    return {**inputs, **changed, "image_rows": inputs["image_rows"].flip(0)}
