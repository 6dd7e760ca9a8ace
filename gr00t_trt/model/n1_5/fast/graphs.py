"""Whole requests as graphs: captured by shape, compared with the uncaptured model, then replayed on fixed memory.

A graph holds the kernels of one request and the addresses they read and write; replaying it costs the host one call.
Whatever else a request depends on is therefore part of what a graph is looked up by, or copied to those addresses.

A request like an earlier one is replayed first and looked at afterwards, while the device works: see
`RequestGraphs.launch`.
"""

from __future__ import annotations

import operator
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from ....errors import Gr00tError
from ...protocol import Inputs
from ..inputs import LOOKED_UP, PIXELS, STATE
from .captured import Captured, Capturer, Key, Known, Launch
from .constants import Embodiments
from .input_block import InputBlock
from .model import FastGr00tN1d5, Prepared
from .prompts import KEPT_PROMPTS, Prompt

LIMIT = 8
"""Graphs kept, unless more are asked for. Each owns the memory of its inputs, see `RequestGraphs.input_bytes`; what is
computed in between lies in one pool that all share."""

WARM_CALLS = 3
"""Calls before a capture: tables, compilers' choices and library workspaces must exist by then."""

_EMBODIMENTS = "embodiments"
"""The input of a graph of samples of different embodiments that says which."""

EVERY_TIME = ("pixel_values", "state", "noise")
"""Inputs that are new in every request, all fp32; the others follow from the prompt."""

FROM_PROMPT = ("embeds", "rotation", "image_rows", "key_mask", "query_mask")
"""Those: fields of `Prompt`."""


class RequestGraphs:
    """Answers requests of a restructured model by replay where a graph of their shape exists, else as the model does.

    The key of a graph is everything that shapes it: the shapes and dtypes of all inputs (batch, views, exact prompt
    length, horizon), padding or none, the embodiment of all samples, the denoising steps and the loop. Samples of
    different embodiments share one graph, whatever the combination: it gathers their weights. Prompts are not padded to
    common lengths: the vision-language layers attend to every position, so padding would change the actions. Images,
    prompts, state and noise are copied in for every request. Weights are read where they lie. When one behind kept
    values was written, when any was moved, cast or replaced, or an entry of `stages` has changed, the graph is captured
    anew; until that is noticed, graphs keep the memory alive that they read.

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
        # Has steps and horizon; a module's own modules are slow to reach.
        self._head = model.action_head
        self._on_demand = on_demand and not one_shape
        self._one_shape, self._limit = one_shape, 1 if one_shape else limit
        self._kept: OrderedDict[Key, Captured] = OrderedDict()
        # By the values that were looked up; and the one used last, whose tensors are often the very same objects.
        self._known: OrderedDict[Hashable, Known] = OrderedDict()
        self._last: Known | None = None
        self._asked: set[Key] = set()
        self._refused: dict[Key, tuple[object, ...]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def expect(self, batch_sizes: int) -> None:
        """Keep that many times as many graphs as were asked for, since each size of a batch has its own."""
        if not self._one_shape:
            self._limit *= batch_sizes

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

    def launch(self, inputs: Inputs, noise: object) -> Launch | None:
        """Replay a request whose prompt and embodiments an earlier one had, before anything else is looked at.

        The answer is not to be given out before `Launch.stands`: the caller looks at inputs and weights meanwhile.

        Args:
            noise: [B, T, 32] on any device; None draws it, as `StagedModel.start` does.
        Returns: None where no earlier request is like it, or pixels, state and noise have other shapes.
        """
        with self._lock:
            known = self._recalled(inputs)
            if known is None:
                return None
            fixed_pixels, fixed_state, fixed_noise = known.kept.every_time.tensors
            pixels, state = inputs.get(PIXELS), inputs.get(STATE)
            if not (_fits(pixels, fixed_pixels) and _fits(state, fixed_state)):
                return None
            start = noise
            if start is None:
                start = torch.randn(fixed_noise.shape, device=fixed_noise.device, dtype=torch.float32)
            if not _fits(start, fixed_noise):
                return None
            every_time = (pixels, state, start)
            return Launch(known, start, self._replay(known.kept, known.prompt, known.embodiments, every_time))

    def __call__(self, x: Prepared, noise: Tensor) -> Tensor:
        """Actions fp32 [B, T, 32], owned by the caller.

        Args:
            x: Prepared from the weights as they are.
            noise: fp32 [B, T, 32] on the model's device.
        """
        key = self._key(x, noise)
        with self._lock:
            if key is None:
                return self._uncaptured(x, noise)
            depends_on = self._model.dependencies()
            self._drop({old: kept for old, kept in self._kept.items() if kept.depends_on != depends_on})
            kept = self._kept.get(key)
            if kept is None:
                if not (self._on_demand or key in self._asked) or self._refused.get(key) == depends_on:
                    return self._uncaptured(x, noise)
                found = self._capture(key, x, noise, depends_on)
                if isinstance(found, str):
                    warnings.warn(f"no CUDA graph of this request: {found}", RuntimeWarning, stacklevel=2)
                    return self._uncaptured(x, noise)
                kept = found
            self._remember(x, kept)
            return self._replay(kept, x.prompt, x.embodiments, (x.pixel_values, x.state, noise))

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
            self._remember(x, found)
        return None

    def forget(self) -> None:
        """Give up every graph, and the memory that they read; what was asked for is captured again when it comes."""
        with self._lock:
            self._drop(self._kept)

    def _drop(self, which: Iterable[Key]) -> None:
        keys = list(which)
        for key in keys:
            del self._kept[key]
        if keys:
            self._known.clear()
            self._last = None

    def _key(self, x: Prepared, noise: Tensor) -> Key | None:
        if x.embodiments.key is None or x.prompt.image_rows is None:
            return None
        shapes = tuple((name, tuple(t.shape), t.dtype) for name, t in _inputs(x, noise).items())
        embodiments = () if x.embodiments.mixed else x.embodiments.key
        return Key(shapes, embodiments, noise.shape[1], self._model.denoising_steps, self._model.loop)

    def _recalled(self, inputs: Inputs) -> Known | None:
        """The earlier request that had the same prompt and embodiments, where it was asked for in the same way."""
        given = tuple(map(inputs.get, LOOKED_UP))
        known = self._last
        if known is None or not all(map(operator.is_, given, known.given)):
            values = _host_values(given)
            known = self._known.get(values) if values is not None else None
            if known is None:
                return None
            self._last = known = replace(known, given=given)
            self._known.move_to_end(values)
        key, head = known.kept.key, self._head
        alike = key.steps == head.steps and key.horizon == head.horizon and key.loop == self._model.loop
        return known if alike else None

    def _remember(self, x: Prepared, kept: Captured) -> None:
        self._kept.move_to_end(kept.key)
        values = _host_values(x.looked_up)
        if values is None:
            return
        self._known[values] = self._last = Known(x.looked_up, kept, x.prompt, x.embodiments)
        self._known.move_to_end(values)
        if len(self._known) > KEPT_PROMPTS:
            self._known.popitem(last=False)

    def _uncaptured(self, x: Prepared, noise: Tensor) -> Tensor:
        if self._one_shape:
            self._drop(self._kept)
        return self._model.run(x, noise)

    def _replay(self, kept: Captured, prompt: Prompt, embodiments: Embodiments, every_time: Sequence[Tensor]) -> Tensor:
        with self._capturer.turn():
            kept.every_time.fill(every_time)
            # A prompt is the same object as long as it is the same instruction.
            if kept.prompt is not prompt:
                kept.prompt = None
                values = _prompt_inputs(prompt)
                torch._foreach_copy_([kept.inputs[name] for name in values], list(values.values()))
                kept.prompt = prompt
            if _EMBODIMENTS in kept.inputs and kept.embodiments is not embodiments:
                kept.embodiments = None
                kept.inputs[_EMBODIMENTS].copy_(embodiments.ids)
                kept.embodiments = embodiments
            kept.graph.replay()
            return kept.graph.output.clone()

    def _capture(self, key: Key, x: Prepared, noise: Tensor, depends_on: tuple[object, ...]) -> Captured | str:
        # Room first: an old graph of this shape, or the ones used longest ago, give their memory back.
        older = [old for old in self._kept if old != key]
        self._drop([*older[: max(len(older) + 1 - self._limit, 0)], *([key] if key in self._kept else [])])
        # Tensors made in inference mode could not be written outside of it later.
        with torch.inference_mode(False), torch.no_grad():
            try:
                found = self._capture_and_compare(key, x, noise, depends_on)
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

    def _capture_and_compare(
        self, key: Key, x: Prepared, noise: Tensor, depends_on: tuple[object, ...]
    ) -> Captured | str:
        model = self._model
        given = _inputs(x, noise)
        with self._capturer.scope():
            block = InputBlock([given[name] for name in EVERY_TIME], pinned=noise.device.type == "cuda")
            every_time = dict(zip(EVERY_TIME, block.tensors, strict=True))
            fixed = {name: every_time[name] if name in every_time else value.clone() for name, value in given.items()}
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
        held = (constants, x.embodiments)
        return Captured(key, graph, fixed, block, x.prompt, x.embodiments, depends_on, held, worst)


def _said(error: BaseException) -> str:
    """The first line of an error, and of the one before it: ending a broken capture raises an error of its own."""
    errors = [error, error.__context__] if error.__context__ is not None else [error]
    return ", after ".join(f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}" for e in errors)


def _fits(value: object, fixed: Tensor) -> TypeGuard[Tensor]:
    """Whether a value can be copied to fixed memory as `prepare` would have, which casts it too."""
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.shape == fixed.shape


def _host_values(tensors: Sequence[object]) -> Hashable | None:
    """What several tensors hold, and their shapes and dtypes; None where one is not in host memory."""
    arrays = [t.numpy() for t in tensors if isinstance(t, Tensor) and t.is_cpu]
    return tuple((a.shape, a.dtype, a.tobytes()) for a in arrays) if len(arrays) == len(tensors) else None


def _inputs(x: Prepared, noise: Tensor) -> dict[str, Tensor]:
    """Everything that may differ between two requests of one key."""
    mixed = {_EMBODIMENTS: x.embodiments.ids} if x.embodiments.mixed else {}
    return {"pixel_values": x.pixel_values, "state": x.state, "noise": noise, **_prompt_inputs(x.prompt), **mixed}


def _prompt_inputs(prompt: Prompt) -> dict[str, Tensor]:
    """What follows from the prompt among them."""
    return {name: value for name in FROM_PROMPT if (value := getattr(prompt, name)) is not None}


def _with(x: Prepared, inputs: Mapping[str, Tensor]) -> Prepared:
    """The request with its tensors replaced by those of `inputs`."""
    prompt = replace(x.prompt, **{name: inputs[name] for name in FROM_PROMPT if name in inputs})
    embodiments = replace(x.embodiments, ids=inputs.get(_EMBODIMENTS, x.embodiments.ids))
    return replace(
        x, pixel_values=inputs["pixel_values"], state=inputs["state"], prompt=prompt, embodiments=embodiments
    )


def _otherwise(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same shapes with other images, image positions, prompt, embodiments, state and noise."""
    changed = {name: 0.5 - inputs[name] for name in ("pixel_values", "embeds", "state", "noise")}
    turned = {name: inputs[name].roll(1, 0) for name in (_EMBODIMENTS,) if name in inputs}
    return {**inputs, **changed, **turned, "image_rows": inputs["image_rows"].flip(0)}
