"""A calibration of the tiny model on two recorded episodes, made once by the program itself."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from gr00t_trt.__main__ import main

TINY = ["--model_path", "synthetic"]


@pytest.fixture(scope="session")
def printed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The file, and what the program printed."""
    path, out = tmp_path_factory.mktemp("calibration") / "demo.safetensors", io.StringIO()
    with redirect_stdout(out):
        argv = ["calibrate", *TINY, "--dataset_path", str(demo), "--out", str(path), "--rank", "nvfp4"]
        assert main(argv) == 0
    return path, out.getvalue()


@pytest.fixture(scope="session")
def calibrated(printed: tuple[Path, str]) -> Path:
    return printed[0]
