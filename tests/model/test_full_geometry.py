"""The public geometry, built without memory, has exactly the public checkpoint's tensors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from gr00t_trt.model import Gr00tN1d5, load_config
from gr00t_trt.model.weights import dead_tensors


@pytest.fixture(scope="module")
def full() -> Gr00tN1d5:
    with torch.device("meta"):
        return Gr00tN1d5(load_config("synthetic:full"))


def test_parameter_counts(full: Gr00tN1d5) -> None:
    def count(name: str) -> int:
        return sum(p.numel() for p in full.eager_stage(name).parameters())

    assert count("vision_model") == 412_442_352
    assert count("language_model") == 604_034_048
    assert count("vl_components") == 201_437_184
    assert count("state_encoder") == 52_510_720
    assert count("action_encoder") == 228_212_736
    assert count("dit_model") == 550_386_688
    assert count("action_decoder") == 34_636_800
    dead = sum(torch.Size(shape).numel() for shape in dead_tensors(full.config).values())
    assert sum(p.numel() for p in full.parameters()) + dead == 2_724_163_520


def test_keys_and_shapes_are_the_checkpoint_s(full: Gr00tN1d5) -> None:
    root = os.environ.get("GR00T_TRT_SHARED_DATA")
    shared = Path(root).parent if root else Path(__file__).parents[3] / "shared"
    listing = shared / "reference" / "state_dict.json"
    if not listing.is_file():
        pytest.skip(f"no list of the public checkpoint's tensors at {listing}")
    public = {key: tuple(value["shape"]) for key, value in json.loads(listing.read_text()).items()}
    ours = {key: tuple(value.shape) for key, value in full.state_dict().items()}
    assert len(public) == 899
    assert {**ours, **dead_tensors(full.config)} == public
    assert not set(ours) & set(dead_tensors(full.config))


def test_the_model_has_no_buffers_that_a_cast_could_ruin(full: Gr00tN1d5) -> None:
    assert list(full.named_buffers()) == []
