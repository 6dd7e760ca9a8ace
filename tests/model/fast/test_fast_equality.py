"""Every optimization alone, each left out, all and none: the same actions as the plain model, at each granularity."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from gr00t_trt.errors import PlanError
from gr00t_trt.measure.accuracy import compare
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.fast import restructure
from gr00t_trt.plans.schema import LOOPS, OPTIMIZATIONS

CASES = ("b1_v1", "b2_v2", "b2_v1_leftpad")
TOLERANCE = 1e-5
SETS = {"none": frozenset(), "all": frozenset(OPTIMIZATIONS)}
SETS |= {f"only {name}": frozenset({name}) for name in OPTIMIZATIONS}
SETS |= {f"without {name}": frozenset(OPTIMIZATIONS) - {name} for name in OPTIMIZATIONS}

Request = dict[str, Tensor]


@pytest.fixture(scope="module")
def toy(golden: Path) -> Gr00tN1d5:
    return load_model(golden / "checkpoint")


@pytest.fixture(scope="module")
def cases(golden: Path) -> dict[str, tuple[Request, Tensor]]:
    """Case -> its inputs, and the actions that the original implementation made of them."""
    out = {}
    for name in CASES:
        tensors = load_file(str(golden / f"case_{name}.safetensors"))
        inputs = {k.removeprefix("in."): v for k, v in tensors.items() if k.startswith("in.")}
        out[name] = (inputs, tensors["out.action_pred"])
    return out


@pytest.mark.parametrize("names", SETS.values(), ids=SETS)
def test_golden_cases(toy: Gr00tN1d5, cases: dict[str, tuple[Request, Tensor]], names: frozenset[str]) -> None:
    model = restructure(copy.deepcopy(toy), optimizations=names)
    worst = {}
    for model.loop in LOOPS:
        for case, (inputs, original) in cases.items():
            actions = model.get_action(inputs, noise=inputs["noise"])["action_pred"]
            plain = toy.get_action(inputs, noise=inputs["noise"])["action_pred"]
            assert actions.dtype == torch.float32
            worst[model.loop, case] = max(float((actions - x).abs().max()) for x in (plain, original))
    print(f"max abs difference {max(worst.values()):.1e}")
    assert {k: d for k, d in worst.items() if not d < TOLERANCE} == {}


REQUESTS = {
    "one": {"batch": 1},
    "two views": {"batch": 1, "views": 2},
    "mixed embodiments": {"batch": 3},
    "one embodiment": {"batch": 2, "same": True},
    "padded": {"batch": 2, "padding": 5},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_tiny_model(plain: Gr00tN1d5, make_fast, make_request, noise, request_: dict[str, int]) -> None:
    inputs, start = make_request(**request_), noise(request_["batch"])
    expected = plain.get_action(inputs, noise=start)["action_pred"]
    for names in (SETS["all"], SETS["none"], SETS["only prompt_cache"]):
        model = make_fast(names)
        for model.loop in LOOPS:
            actual = model.get_action(inputs, noise=start)["action_pred"]
            assert float((actual - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(plain: Gr00tN1d5, make_request, noise, dtype: torch.dtype) -> None:
    inputs, start = make_request(2, padding=3), noise(2)
    expected = plain.get_action(inputs, noise=start)["action_pred"]
    half = load_model("synthetic", dtype=dtype)
    eager = compare(half.get_action(inputs, noise=start)["action_pred"], expected)
    model = restructure(half)
    for model.loop in LOOPS:
        actions = model.get_action(inputs, noise=start)["action_pred"]
        assert actions.dtype == torch.float32
        ours = compare(actions, expected)
        print(f"{dtype} {model.loop}: cosine {ours.cosine:.6f}, plain {eager.cosine:.6f}")
        assert ours.cosine is not None
        assert ours.cosine >= 0.9999


def test_other_geometries(make_request, noise, plain: Gr00tN1d5) -> None:
    import dataclasses

    from gr00t_trt.model.n1_5.synthetic import fill_synthetic

    inputs, start = make_request(2), noise(2)
    head = plain.config.action_head
    dit = dataclasses.replace(head.diffusion, interleave_self_attention=False)
    odd = dataclasses.replace(head.diffusion, num_layers=3, attention_bias=False)
    for changed in (
        dataclasses.replace(head, diffusion=dit),
        dataclasses.replace(head, diffusion=odd),
        dataclasses.replace(head, use_vlln=False),
        dataclasses.replace(head, add_pos_embed=False),
    ):
        model = Gr00tN1d5(dataclasses.replace(plain.config, action_head=changed))
        fill_synthetic(model, dtype=torch.float32, device=torch.device("cpu"))
        model.eval().requires_grad_(False)
        expected = model.get_action(inputs, noise=start)["action_pred"]
        for names in (SETS["all"], SETS["none"], SETS["without token_pruning"]):
            actual = restructure(copy.deepcopy(model), optimizations=names).get_action(inputs, noise=start)
            assert float((actual["action_pred"] - expected).abs().max()) < TOLERANCE


def test_unknown_names(plain: Gr00tN1d5, make_fast: Callable[..., object]) -> None:
    with pytest.raises(PlanError, match=r"optimizations: unknown value 'kv'"):
        restructure(plain, optimizations=["kv"])
    with pytest.raises(PlanError, match=r"did you mean denoise_loop"):
        make_fast().loop = "denoise_lop"  # type: ignore[attr-defined]
