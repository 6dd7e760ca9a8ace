"""Everything in this folder runs on a real GPU; without one, each test is skipped."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from gr00t_trt.measure.accuracy import full_fp32
from gr00t_trt.model import Gr00tN1d5, load_model

MakeRequest = Callable[..., dict[str, Tensor]]


@pytest.fixture(scope="session", autouse=True)
def gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda:0")


@pytest.fixture
def exact() -> Iterator[None]:
    """Products in full fp32, so that a GPU and a CPU may be held against each other."""
    with full_fp32():
        yield


@pytest.fixture(scope="session")
def on_cpu() -> Gr00tN1d5:
    """The tiny model on the host, for tests that leave it as it is."""
    return load_model("synthetic")


@pytest.fixture
def tiny(on_cpu: Gr00tN1d5, gpu: torch.device) -> Gr00tN1d5:
    """The tiny model on the GPU, of the test's own."""
    return copy.deepcopy(on_cpu).to(gpu)


@pytest.fixture(scope="session")
def make_request(on_cpu: Gr00tN1d5) -> MakeRequest:
    """request(batch=1, words=20, padding=0, seed=0) -> model inputs in host memory, every sample different."""
    config = on_cpu.config

    def make(batch: int = 1, *, words: int = 20, padding: int = 0, seed: int = 0) -> dict[str, Tensor]:
        g = torch.Generator().manual_seed(seed)
        image = torch.full((batch, config.tokens_per_image), config.image_token_index)
        text = torch.randint(0, 1000, (batch, words), generator=g)
        ids = torch.cat((text[:, :8], image, text[:, 8:]), dim=1)
        mask = torch.ones_like(ids)
        mask[0, :padding] = 0
        return {
            "eagle_pixel_values": torch.rand(batch, 3, 224, 224, generator=g) * 2 - 1,
            "eagle_input_ids": ids,
            "eagle_attention_mask": mask,
            "state": torch.rand(batch, 1, 64, generator=g) * 2 - 1,
            "embodiment_id": torch.tensor([24, 17, 31, 26])[:batch],
        }

    return make


@pytest.fixture(scope="session")
def noise() -> Callable[..., Tensor]:
    """noise(batch=1, seed=0) -> [batch, 16, 32] in host memory."""

    def make(batch: int = 1, seed: int = 0) -> Tensor:
        return torch.randn(batch, 16, 32, generator=torch.Generator().manual_seed(seed))

    return make
