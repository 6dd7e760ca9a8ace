"""Every stage exports once with dynamic sizes, and the exported program agrees with eager at other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5.architecture import N1_5

SIZES = {"traced": {"batch": 2, "images": 3, "length": 40}, "other": {"batch": 5, "images": 7, "length": 61}}
RANGES = {"batch": (1, 8), "images": (1, 24), "length": (32, 1024)}


def tensors(name: str, batch: int, images: int, length: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(batch)
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, :3] = 0
    embodiment = torch.arange(batch) + 20
    timestep = torch.arange(batch) * 100
    known: dict[str, tuple[Tensor, ...]] = {
        "vision_model": (torch.rand(images, 3, 224, 224, generator=g),),
        "language_model": (torch.randn(batch, length, 128, generator=g), mask),
        "vl_components": (torch.randn(batch, length, 128, generator=g),),
        "state_encoder": (torch.rand(batch, 1, 64, generator=g), embodiment),
        "action_encoder": (torch.randn(batch, 16, 32, generator=g), timestep, embodiment),
        "dit_model": (
            torch.randn(batch, 49, 96, generator=g),
            torch.randn(batch, length, 128, generator=g),
            timestep,
        ),
        "action_decoder": (torch.randn(batch, 49, 64, generator=g), embodiment),
    }
    return known[name]


def joint_tensors(batch: int, images: int, length: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(batch)
    ids = torch.randint(0, 1000, (batch, images * 256 // batch + length), generator=g)
    flat = ids.view(-1)
    flat[torch.randperm(flat.numel(), generator=g)[: images * 256]] = 1021
    return torch.rand(images, 3, 224, 224, generator=g), ids, torch.ones_like(ids)


def export(module: torch.nn.Module, name: str, args: tuple[Tensor, ...]) -> Any:
    dims = {dim: Dim(dim, min=low, max=high) for dim, (low, high) in RANGES.items()}
    shapes = tuple({axis: dims[d] for axis, d in axes.items()} for axes in N1_5.arguments[name].values())
    return torch.export.export(module, args, dynamic_shapes=shapes, strict=False)


@pytest.mark.parametrize("name", [n for n in N1_5.arguments if n != "eagle_backbone"])
@torch.no_grad()
def test_stage(shared_tiny: Gr00tN1d5, name: str) -> None:
    module = shared_tiny.eager_stage(name)
    program = export(module, name, tensors(name, **SIZES["traced"])).module()
    for sizes in (*SIZES.values(), {"batch": 1, "images": 1, "length": 33}):
        args = tensors(name, **sizes)
        torch.testing.assert_close(program(*args), module(*args), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_joint_backbone(shared_tiny: Gr00tN1d5) -> None:
    module = shared_tiny.eager_stage("eagle_backbone")
    program = export(module, "eagle_backbone", joint_tensors(batch=2, images=4, length=40)).module()
    for batch, images, length in ((2, 4, 40), (3, 3, 50), (1, 2, 33)):
        args = joint_tensors(batch, images, length)
        torch.testing.assert_close(program(*args), module(*args), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(module(*args), shared_tiny.run_stage("eagle_backbone", *args))


@pytest.mark.parametrize("name", [n for n in N1_5.arguments if n != "eagle_backbone"])
def test_argument_names_are_the_registry_s(shared_tiny: Gr00tN1d5, name: str) -> None:
    import inspect

    assert tuple(inspect.signature(shared_tiny.eager_stage(name).forward).parameters) == tuple(N1_5.arguments[name])


def test_language_stage_carries_no_embedding_table(shared_tiny: Gr00tN1d5) -> None:
    names = [n for n, _ in shared_tiny.eager_stage("language_model").named_parameters()]
    assert not [n for n in names if "embed" in n]
    ours = {p.data_ptr() for p in shared_tiny.parameters()}
    assert {p.data_ptr() for p in shared_tiny.eager_stage("language_model").parameters()} <= ours
