"""A tiny model, requests for it, and checkpoint folders to load and to damage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gr00t_trt.model import Gr00tConfig, Gr00tN1d5, load_model
from gr00t_trt.model.weights import dead_tensors


@pytest.fixture(scope="session")
def shared_tiny() -> Gr00tN1d5:
    """The tiny model for tests that leave it as it is."""
    return load_model("synthetic")


@pytest.fixture
def tiny() -> Gr00tN1d5:
    """A tiny model of the test's own, to change."""
    return load_model("synthetic")


MakeRequest = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session")
def make_request(shared_tiny: Gr00tN1d5) -> MakeRequest:
    """request(batch, views=1, words=20, seed=0) -> model inputs of the tiny model, every sample different."""
    config = shared_tiny.config

    def make(batch: int, *, views: int = 1, words: int = 20, seed: int = 0) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        image = torch.full((batch, views * config.tokens_per_image), config.image_token_index)
        text = torch.randint(0, 1000, (batch, words), generator=g)
        ids = torch.cat((text[:, :8], image, text[:, 8:]), dim=1)
        return {
            "eagle_pixel_values": torch.rand(batch * views, 3, 224, 224, generator=g) * 2 - 1,
            "eagle_input_ids": ids,
            "eagle_attention_mask": torch.ones_like(ids),
            "state": torch.rand(batch, 1, 64, generator=g) * 2 - 1,
            "embodiment_id": torch.tensor([24, 17, 31, 26, 0, 1, 2, 3])[:batch],
        }

    return make


def _config_files(config: Gr00tConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    head = dataclasses.asdict(config.action_head)
    dit = head.pop("diffusion")
    dit.update(norm_type="ada_norm", positional_embeddings=None)
    vl = head.pop("vl_self_attention")
    vl.update(positional_embeddings=None)
    top = {
        "model_type": "gr00t_n1_5",
        "action_dim": head["action_dim"],
        "action_horizon": head["action_horizon"],
        "backbone_cfg": dataclasses.asdict(config.backbone) | {"reproject_vision": False},
        "action_head_cfg": head | {"diffusion_model_cfg": dit, "vl_self_attention_cfg": vl},
    }
    eagle = {
        "image_token_index": config.image_token_index,
        "vision_config": dataclasses.asdict(config.eagle.vision),
        "text_config": dataclasses.asdict(config.eagle.text),
    }
    return top, eagle


class Checkpoint:
    """A folder in the public checkpoint's layout, with the tiny model's weights and room to damage it."""

    def __init__(self, folder: Path, model: Gr00tN1d5):
        self.folder = folder
        self.config, self.eagle_config = _config_files(model.config)
        self.tensors = {k: v.clone() for k, v in model.state_dict().items()}
        for name, shape in dead_tensors(model.config).items():
            self.tensors[name] = torch.full(shape, 7.0)

    def write(self, shards: Mapping[str, list[str]] | None = None) -> Path:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.json").write_text(json.dumps(self.config))
        (self.folder / "eagle_config.json").write_text(json.dumps(self.eagle_config))
        if shards is None:
            save_file(self.tensors, str(self.folder / "model.safetensors"))
            return self.folder
        for shard, keys in shards.items():
            save_file({k: self.tensors[k] for k in keys}, str(self.folder / shard))
        weight_map = {key: shard for shard, keys in shards.items() for key in keys}
        (self.folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return self.folder


@pytest.fixture
def checkpoint(tmp_path: Path, shared_tiny: Gr00tN1d5) -> Checkpoint:
    return Checkpoint(tmp_path / "checkpoint", shared_tiny)
