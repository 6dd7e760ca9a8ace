"""A small synthetic dataset shared by all tests here, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset

torch.set_num_threads(1)

LENGTH = 20
CONFIG = "fourier_gr1_arms_only"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def synthetic(cache: Path) -> Path:
    return synthetic_dataset(cache, data_config=CONFIG, episodes=2, length=LENGTH, resolution=(64, 48))


@pytest.fixture
def damaged(synthetic: Path, tmp_path: Path) -> Path:
    """A copy of the synthetic dataset that a test may change."""
    return Path(shutil.copytree(synthetic, tmp_path / "dataset"))


@pytest.fixture(scope="session")
def config():
    return data_config(CONFIG)


@pytest.fixture(scope="session")
def dataset(synthetic: Path, config) -> LeRobotDataset:
    return LeRobotDataset(synthetic, config.modality_config())


@pytest.fixture(scope="session")
def metadata(dataset: LeRobotDataset):
    return dataset.metadata("gr1")
