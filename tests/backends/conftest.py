"""What the tests of backends share: TensorRT-RTX where it is installed, and a cache that is not the user's."""

from __future__ import annotations

import pytest
import torch
from small_submodules import torch_tensorrt_installed

from gr00t_trt.backends import get_backend


@pytest.fixture(scope="module")
def rtx():
    if not torch_tensorrt_installed():
        pytest.skip("torch_tensorrt is not installed")
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    available = get_backend("torch_tensorrt").availability()
    if "tensorrt_rtx" not in available.versions:
        pytest.skip("only TensorRT-RTX builds engines without a GPU")
    return available


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
