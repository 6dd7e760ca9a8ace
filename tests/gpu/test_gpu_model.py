"""On a GPU the models compute what the original implementation computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gr00t_trt.measure import accuracy
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.fast import CudaCapturer, RequestGraphs, restructure
from gr00t_trt.plans.precisions import PRECISIONS
from gr00t_trt.plans.schema import LOOPS

CASES = ("b1_v1", "b2_v2", "b2_v1_leftpad")
TOLERANCE = 1e-4
"""Ten times what is asked of a CPU: a GPU adds up in another order."""


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden: Path) -> dict[str, Tensor]:
    return load_file(str(golden / f"case_{request.param}.safetensors"))


@pytest.fixture
def toy(golden: Path, gpu: torch.device) -> Gr00tN1d5:
    return load_model(golden / "checkpoint", device=gpu)


def inputs_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("in."): v for k, v in case.items() if k.startswith("in.")}


def off(actions: Tensor, case: dict[str, Tensor]) -> float:
    assert actions.device.type == "cuda"
    return float((actions.cpu() - case["out.action_pred"]).abs().max())


@pytest.mark.usefixtures("exact")
def test_the_plain_model_gives_the_recorded_actions(toy: Gr00tN1d5, case: dict[str, Tensor]) -> None:
    inputs = inputs_of(case)
    assert off(toy.get_action(inputs, noise=inputs["noise"])["action_pred"], case) < TOLERANCE


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_restructured_model_and_its_graph_give_them_too(toy, case, loop: str, gpu) -> None:
    model = restructure(toy)
    model.loop = loop
    inputs = inputs_of(case)
    assert off(model.get_action(inputs, noise=inputs["noise"])["action_pred"], case) < TOLERANCE
    model.graphs = RequestGraphs(model, CudaCapturer(gpu), tolerance=PRECISIONS["fp32"].graph_tolerance)
    assert model.graphs.capture(model.prepare(inputs), inputs["noise"].to(gpu)) is None
    for _ in range(2):
        assert off(model.get_action(inputs, noise=inputs["noise"])["action_pred"], case) < TOLERANCE


@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.999), (torch.float16, 0.9999)])
def test_half_precision_stays_near_them(golden: Path, gpu, case, dtype: torch.dtype, cosine: float) -> None:
    model = restructure(load_model(golden / "checkpoint", dtype=dtype, device=gpu))
    inputs = inputs_of(case)
    actions = model.get_action(inputs, noise=inputs["noise"])["action_pred"]
    assert actions.dtype == torch.float32
    assert accuracy.compare(actions.cpu(), case["out.action_pred"]).cosine > cosine
