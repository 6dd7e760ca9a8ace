"""The work of one call, counted and not timed: FLOPs, bytes, operators."""

from __future__ import annotations

import multiprocessing
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..compile.build import torch_dtype
from ..model import Gr00tConfig, Gr00tN1d5
from ..model.n1_5.inputs import EMBODIMENT
from ..model.protocol import Model
from ..plans.precisions import PRECISIONS
from ..quantize.layers import linear_layers, quantizable, with_replaced
from ..quantize.linear import QuantLinear
from ..record.environment import usable_cores
from ..record.result import REQUEST, Candidate, Workload
from .roofline import Trace, trace
from .rows import Row

MOST_WORKERS = 8
"""Processes that count, at most; half the cores at most, since weights are loaded meanwhile."""

COUNTED_PER_STEP = ("waterfall", "loop")
"""Groups of rows that tell how many operators a denoising step has."""


@dataclass(frozen=True)
class Counted:
    """What decides how much work a call is; how it is compiled does not. The precision None is the counter's."""

    optimizations: tuple[str, ...]
    work: Workload
    precision: str | None = None

    @staticmethod
    def of(candidate: Candidate, work: Workload) -> Counted:
        return Counted(candidate.optimizations, work, candidate.precision)


class Counter:
    """Counts on a model without weights, on the meta device; each count is made once.

    Args:
        precision: Of all weights; a quantised one needs the restructured model.
        inputs: Host inputs of a workload, as `workloads.Requests.inputs` gives them.
    """

    def __init__(self, config: Gr00tConfig, precision: str, inputs: Callable[[Workload], dict[str, Tensor]]):
        self._config, self._precision, self._inputs = config, precision, inputs
        self._traces: dict[Counted, Trace] = {}
        self._steps: dict[tuple[str, ...], int] = {}

    @contextmanager
    def ahead(self, questions: Iterable[Counted], optimizations: Iterable[tuple[str, ...]]) -> Iterator[None]:
        """Count in other processes while the block runs, and wait for them at its end, before anything is timed.

        Each count takes seconds on one core, in which a GPU would have nothing to do. Where cores are few nothing is
        done ahead.
        """
        workers = min(MOST_WORKERS, (usable_cores() or 1) // 2)
        if workers < 2:
            yield
            return
        # Spawned: a process that has used CUDA cannot be forked.
        pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
        try:
            traces: dict[Counted, Future[Trace]] = {}
            steps: dict[tuple[str, ...], Future[int]] = {}
            for asked in questions:
                traces[asked] = pool.submit(_traced, self._config, self._precision, asked, self._inputs(asked.work))
            for names in optimizations:
                steps[names] = pool.submit(_operators_per_step, self._config, names, self._inputs(Workload()))
            yield
            self._traces.update((question, future.result()) for question, future in traces.items())
            self._steps.update((names, future.result()) for names, future in steps.items())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def trace(self, question: Counted) -> Trace:
        """Everything that one call computes; what the restructured model keeps between calls is kept before."""
        if question not in self._traces:
            self._traces[question] = _traced(self._config, self._precision, question, self._inputs(question.work))
        return self._traces[question]

    def operators_per_step(self, optimizations: tuple[str, ...]) -> int:
        """ATen operators of the exported graph of one denoising step; of its three stages for the plain model.

        Views count, as they are nodes of the graph; picking one of several results does not. The plain model's
        stages leave token assembly and the Euler step to PyTorch, which are not counted; in the restructured one's
        graph they are.
        """
        if optimizations not in self._steps:
            self._steps[optimizations] = _operators_per_step(self._config, optimizations, self._inputs(Workload()))
        return self._steps[optimizations]


def _without_weights(config: Gr00tConfig, dtype: torch.dtype) -> Gr00tN1d5:
    with torch.device("meta"):
        return Gr00tN1d5(config).to(dtype).eval().requires_grad_(False)


def _noise(model: Model, batch: int) -> Tensor:
    return torch.zeros(batch, model.action_horizon, model.config.action_head.action_dim, device="meta")


def _traced(config: Gr00tConfig, precision: str, question: Counted, inputs: dict[str, Tensor]) -> Trace:
    precision = question.precision or precision
    plain = _without_weights(config, torch_dtype(precision))
    plain.denoising_steps = question.work.steps
    noise = _noise(plain, len(inputs[EMBODIMENT]))
    if not question.optimizations:
        resident = {name: value.to("meta") for name, value in inputs.items()}
        return trace(lambda: plain.get_action(resident, noise=noise), (*resident.values(), noise))
    model = plain.architecture.restructured(plain, question.optimizations)
    if PRECISIONS[precision].quantized:
        _quantize(model, precision)
    prepared = model.prepare(inputs)
    model.get_action(prepared, noise=noise)
    given = (prepared.pixel_values, prepared.state, prepared.prompt.ids, noise)
    return trace(lambda: model.get_action(prepared, noise=noise), given)


def _quantize(model: Model, form: str) -> None:
    """Put layers without values in the place of those that the format takes."""
    layers = quantizable(linear_layers(model)).values()
    made: dict[int, nn.Module] = {}
    for layer in layers:
        seen = torch.ones(layer.in_features, device="meta")
        made[id(layer)] = QuantLinear(layer, form, seen, smoothing=0.0)
    for name in model.stages:
        model.stages[name] = with_replaced(model.eager_stage(name), made)


def _operators_per_step(config: Gr00tConfig, optimizations: tuple[str, ...], inputs: dict[str, Tensor]) -> int:
    # The towers take no part in a step, so one layer of each does.
    eagle = config.eagle
    shallow = replace(
        config,
        eagle=replace(eagle, vision=replace(eagle.vision, num_hidden_layers=1)),
        backbone=replace(config.backbone, select_layer=1),
    )
    plain = _without_weights(shallow, torch.float32)
    noise = _noise(plain, 1)
    if not optimizations:
        recording = plain.record(inputs, noise)[0]
        return sum(_nodes(plain.eager_stage(name), recording[name][0].inputs) for name in plain.architecture.step)
    model = plain.architecture.restructured(plain, optimizations)
    recording = model.record(inputs, noise)[0]
    return _nodes(model.eager_stage("denoise_step"), recording["denoise_step"][0].inputs)


def _nodes(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return sum(called is not operator.getitem for called in calls)


def to_count(rows: Sequence[Row]) -> tuple[list[Counted], list[tuple[str, ...]]]:
    """What taking these rows will ask of a `Counter`, each question once."""
    whole = [Counted.of(row.candidate, row.workload) for row in rows if row.of in ("model", REQUEST)]
    steps = [row.candidate.optimizations for row in rows if row.group in COUNTED_PER_STEP]
    return list(dict.fromkeys(whole)), list(dict.fromkeys(steps))
