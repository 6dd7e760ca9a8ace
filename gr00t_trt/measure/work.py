"""The work of one call, counted and not timed: FLOPs, bytes, operators, kernels."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import fast, submodules
from ..compile import DTYPES, Model
from ..model import Gr00tConfig, Gr00tN1d5
from ..model.inputs import EMBODIMENT
from ..roofline import Trace, trace
from .rows import Candidate, Workload

STEP = ("action_encoder", "dit_model", "action_decoder")


@dataclass(frozen=True)
class Subject:
    """What decides how much work a call is; how it is compiled does not."""

    optimisations: tuple[str, ...]
    work: Workload

    @staticmethod
    def of(candidate: Candidate, work: Workload) -> Subject:
        return Subject(candidate.optimisations, work)


class Counter:
    """Counts on a model without weights, on the meta device; each count is made once.

    Args:
        precision: The dtype of all weights.
        inputs: Host inputs of a workload, as `Requests.inputs` gives them.
    """

    def __init__(self, config: Gr00tConfig, precision: str, inputs: Callable[[Workload], dict[str, Tensor]]):
        self._config, self._dtype, self._inputs = config, DTYPES[precision], inputs
        self._traces: dict[Subject, Trace] = {}
        self._steps: dict[tuple[str, ...], int] = {}

    def trace(self, subject: Subject) -> Trace:
        """Everything that one call computes; what the restructured model keeps between calls is kept before."""
        if subject not in self._traces:
            model = _without_weights(self._config, self._dtype)
            model.denoising_steps = subject.work.steps
            self._traces[subject] = _traced(model, subject.optimisations, self._inputs(subject.work))
        return self._traces[subject]

    def operators_per_step(self, optimisations: tuple[str, ...]) -> int:
        """ATen operators of the exported graph of one denoising step; of its three stages for the plain model.

        Views count, as they are nodes of the graph; picking one of several results does not. The plain model's
        stages leave token assembly and the Euler step to PyTorch, which are not counted; in the restructured one's
        graph they are.
        """
        if optimisations not in self._steps:
            self._steps[optimisations] = self._exported(optimisations)
        return self._steps[optimisations]

    def _exported(self, optimisations: tuple[str, ...]) -> int:
        # The towers take no part in a step, so one layer of each does.
        eagle = self._config.eagle
        shallow = replace(
            self._config,
            eagle=replace(eagle, vision=replace(eagle.vision, num_hidden_layers=1)),
            backbone=replace(self._config.backbone, select_layer=1),
        )
        plain = _without_weights(shallow, torch.float32)
        inputs, noise = self._inputs(Workload()), _noise(plain, 1)
        if not optimisations:
            recording = submodules.record(plain, inputs, noise)[0]
            return sum(_nodes(plain.eager_stage(name), recording[name][0].inputs) for name in STEP)
        model = fast.restructure(plain, optimisations=optimisations)
        recording = fast.record(model, inputs, noise)[0]
        return _nodes(model.eager_stage("denoise_step"), recording["denoise_step"][0].inputs)


def _without_weights(config: Gr00tConfig, dtype: torch.dtype) -> Gr00tN1d5:
    with torch.device("meta"):
        return Gr00tN1d5(config).to(dtype).eval().requires_grad_(False)


def _noise(model: Model, batch: int) -> Tensor:
    return torch.zeros(batch, model.action_horizon, model.config.action_head.action_dim, device="meta")


def _traced(plain: Gr00tN1d5, optimisations: tuple[str, ...], inputs: dict[str, Tensor]) -> Trace:
    noise = _noise(plain, len(inputs[EMBODIMENT]))
    if not optimisations:
        resident = {name: value.to("meta") for name, value in inputs.items()}
        return trace(lambda: plain.get_action(resident, noise=noise), (*resident.values(), noise))
    model = fast.restructure(plain, optimisations=optimisations)
    prepared = model.prepare(inputs)
    model.get_action(prepared, noise=noise)
    return trace(
        lambda: model.get_action(prepared, noise=noise),
        (prepared.pixel_values, prepared.state, prepared.prompt.ids, noise),
    )


def _nodes(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with torch.no_grad():
        program = torch.export.export(module, inputs, strict=False)
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return sum(called is not operator.getitem for called in calls)


def kernels(call: Callable[[], object]) -> int | None:
    """Kernels that one call starts on the GPU, those inside a CUDA graph included; None without a GPU, or when the
    profiler sees none.
    """
    if not torch.cuda.is_available():
        return None
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    found = [event for event in seen.events() or () if event.device_type == torch.autograd.DeviceType.CUDA]
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in found) or None
