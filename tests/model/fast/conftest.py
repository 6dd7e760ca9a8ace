"""The tiny model, requests for it, and its restructured twin."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection

import pytest
import torch
from torch import Tensor

from gr00t_trt.model import Gr00tConfig, Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.fast import FastGr00tN1d5, graphs, restructure
from gr00t_trt.model.n1_5.synthetic import fill_synthetic, tiny_config
from gr00t_trt.plans.schema import OPTIMIZATIONS

MakeRequest = Callable[..., dict[str, Tensor]]
MakeFast = Callable[..., FastGr00tN1d5]


@pytest.fixture(scope="session")
def plain() -> Gr00tN1d5:
    """The tiny model, for tests that leave it as it is."""
    return load_model("synthetic")


@pytest.fixture(scope="session")
def shallow() -> Gr00tConfig:
    """One layer of a kind, two denoising steps: a capture runs the model six times."""
    tiny = tiny_config()
    head = tiny.action_head
    return dataclasses.replace(
        tiny,
        backbone=dataclasses.replace(tiny.backbone, select_layer=1),
        eagle=dataclasses.replace(tiny.eagle, vision=dataclasses.replace(tiny.eagle.vision, num_hidden_layers=1)),
        action_head=dataclasses.replace(
            head,
            num_inference_timesteps=2,
            diffusion=dataclasses.replace(head.diffusion, num_layers=2),
            vl_self_attention=dataclasses.replace(head.vl_self_attention, num_layers=1),
        ),
    )


@pytest.fixture(scope="session")
def reference(shallow: Gr00tConfig) -> Gr00tN1d5:
    """A model of that geometry, for tests that leave it as it is."""
    model = Gr00tN1d5(shallow)
    fill_synthetic(model, dtype=torch.float32, device=torch.device("cpu"))
    return model.eval().requires_grad_(False)


@pytest.fixture
def make_fast(plain: Gr00tN1d5) -> MakeFast:
    """make(optimizations=all) -> a restructured model of the test's own."""

    def make(optimizations: Collection[str] = tuple(OPTIMIZATIONS)) -> FastGr00tN1d5:
        return restructure(copy.deepcopy(plain), optimizations=optimizations)

    return make


@pytest.fixture(scope="session")
def make_request(plain: Gr00tN1d5) -> MakeRequest:
    """request(batch, views=1, words=20, padding=0, seed=0) -> model inputs, every sample different.

    The first sample starts with `padding` masked positions.
    """
    config = plain.config

    def make(
        batch: int, *, views: int = 1, words: int = 20, padding: int = 0, seed: int = 0, same: bool = False
    ) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        image = torch.full((batch, views * config.tokens_per_image), config.image_token_index)
        text = torch.randint(0, 1000, (batch, words), generator=g)
        ids = torch.cat((text[:, :8], image, text[:, 8:]), dim=1)
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        embodiments = torch.tensor([24, 17, 31, 26, 0, 1, 2, 3])[:batch]
        return {
            "eagle_pixel_values": torch.rand(batch * views, 3, 224, 224, generator=g) * 2 - 1,
            "eagle_input_ids": ids,
            "eagle_attention_mask": mask,
            "state": torch.rand(batch, 1, 64, generator=g) * 2 - 1,
            "embodiment_id": embodiments[:1].expand(batch).clone() if same else embodiments,
        }

    return make


@pytest.fixture
def one_warm_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured after one warm call, not three."""
    monkeypatch.setattr(graphs, "WARM_CALLS", 1)


@pytest.fixture(scope="session")
def noise() -> Callable[..., Tensor]:
    """noise(batch, horizon=16) -> [batch, horizon, 32], always the same numbers."""

    def make(batch: int, horizon: int = 16) -> Tensor:
        return torch.randn(batch, horizon, 32, generator=torch.Generator().manual_seed(7))

    return make
