"""torch.compile's modes: those with CUDA graphs want a GPU, and their results outlive the next call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_submodules import needs_no_gpu
from torch import nn

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor.backend import GRAPHED_MODES, InductorBackend, _Announced
from gr00t_trt.errors import BackendError, PlanError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.schema import BuildOptions


@pytest.mark.parametrize("mode", GRAPHED_MODES)
def test_without_a_gpu_they_are_refused_before_anything_is_compiled(mode: str) -> None:
    target = Target("state_encoder", nn.Linear(2, 2), (torch.zeros(1, 2),), ("state",), ({},))
    said: list[str] = []
    with pytest.raises(BackendError, match=f"state_encoder: mode {mode} replays CUDA graphs, and there is no GPU"):
        InductorBackend(mode).build(target, BuildOptions(), BuildContext(None, said.append))
    assert not said


@pytest.mark.parametrize("copies", [False, True])
def test_a_graph_s_own_buffer_is_not_handed_out(copies: bool) -> None:
    buffer = torch.zeros(3)

    def replay(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (buffer.copy_(x),)

    call = _Announced("dit_model", replay, copies=copies)
    (first,) = call(torch.ones(3))
    call(torch.full((3,), 2.0))
    assert first.tolist() == ([1.0] * 3 if copies else [2.0] * 3)


def test_an_unknown_mode() -> None:
    with pytest.raises(PlanError, match="reduce-overhead"):
        InductorBackend("fastest")


class _Echo(InductorBackend):
    """Traces as torch.compile does, and compiles nothing."""

    def compiled(self, module: Callable[..., Any], *, on_gpu: bool) -> Callable[..., Any]:
        return torch.compile(module, backend=lambda graph, _: graph, fullgraph=True)


@needs_no_gpu
def test_one_stage_may_be_compiled_in_more_ways_than_pytorchs_limit() -> None:
    torch._dynamo.reset()
    made = []
    for _ in range(torch._dynamo.config.recompile_limit + 2):
        target = Target("state_encoder", nn.Linear(2, 2).requires_grad_(False), (torch.zeros(1, 2),), ("state",), ({},))
        made.append(_Echo().build(target, BuildOptions(), BuildContext(None, lambda _: None)))
    torch._dynamo.reset()
    assert all(one.runs for one in made)
