"""What the original computed while it trained the toy checkpoint, and that checkpoint made ready to be trained here."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

SHARED = Path(os.environ.get("GR00T_TRT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


class Oracle:
    """The original's numbers; its README says what each is."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())

    @cached_property
    def batches(self) -> list[dict[str, Tensor]]:
        stored = load_file(str(self.folder / "batches.safetensors"))
        cut = lambda step: {k.partition(".")[2]: v for k, v in stored.items() if k.startswith(f"step{step}.")}  # noqa: E731
        return [cut(step) for step in range(4)]

    def tensors(self, case: str) -> Mapping[str, Tensor]:
        return load_file(str(self.folder / f"{case}.safetensors"))


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    folder = SHARED / "golden_toy_training"
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set GR00T_TRT_SHARED_DATA to the folder that holds it")
    return Oracle(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the datasets of a file's tests are written."""
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """As the original ran; results of a product depend on how many threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
