"""The original's own model code takes a checkpoint that a training of ours wrote, and gives the same actions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("lerobot_loads.py")


def test_the_originals_code_loads_what_we_write(golden: Path, tmp_path: Path) -> None:
    python = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
    if not python:
        pytest.skip("GR00T_TRT_LEROBOT_PYTHON names no Python with lerobot 0.4.4 to 0.5.1, which carries the original")
    homes = {name: str(tmp_path / name) for name in ("HF_LEROBOT_HOME", "HF_HOME")}
    environment = {**os.environ, **homes, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    command = [python, str(SCRIPT), str(golden), str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["to_ours"] < 1e-5
    assert found["to_base"] > 0.01
