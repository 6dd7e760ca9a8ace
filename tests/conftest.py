"""What several folders of tests share: the demonstration data and TensorRT-RTX, where they are present."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("GR00T_TRT_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

LONG = (
    "test_kept_engines.py", "test_docs.py", "test_loader.py", "test_run.py", "test_export_program.py",
    "test_torch_tensorrt.py", "test_serve_program.py", "test_export_on_demo.py", "test_work.py", "test_notebooks.py",
)  # fmt: skip
"""Files of a quarter of a minute and more. They go first: a process that took one last would let the others wait."""


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collection makes a million objects that stay, which need no search for garbage while they get more."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(scope="session", autouse=True)
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The caches of all tests and of the programs that they start: never the user's own."""
    folder = tmp_path_factory.mktemp("engine_cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GR00T_TRT_ENGINE_CACHE", str(folder))
        patch.setenv("GR00T_TRT_REFERENCES", "off")
        patch.setenv("GR00T_TRT_FRAME_CACHE", str(tmp_path_factory.mktemp("frames")))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def garbage() -> None:
    """Searches for garbage leave out what was there before the first test: each would take a third of a second.

    Compilers, exporters and our own measuring run ask for one after every step. A server that ends undoes it.
    """
    if gc.get_freeze_count() == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def products() -> Iterator[None]:
    """A start may choose how products are computed, for the whole process."""
    import torch

    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def _shared(name: str) -> Path:
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}; set GR00T_TRT_SHARED_DATA to the folder that holds {name}")
    return folder


@pytest.fixture(scope="session")
def demo() -> Path:
    """GR00T's demonstration dataset; only its first three episodes are needed."""
    return _shared("robot_sim.PickNPlace")


@pytest.fixture(scope="session")
def golden() -> Path:
    """A toy checkpoint with what the original implementation computed from it."""
    return _shared("golden_toy")


@pytest.fixture(scope="module")
def rtx():
    """Where Torch-TensorRT builds engines without a GPU."""
    import torch
    from small_submodules import torch_tensorrt_installed

    from gr00t_trt.plans.backends import get_backend

    if not torch_tensorrt_installed():
        pytest.skip("torch_tensorrt is not installed")
    if torch.cuda.is_available():
        pytest.skip("about machines without a GPU")
    available = get_backend("torch_tensorrt").availability()
    if "tensorrt_rtx" not in available.versions:
        pytest.skip("only TensorRT-RTX builds engines without a GPU")
    return available
