"""`accelerate` on LeRobot's own GrootPolicy, in the Python that GR00T_TRT_LEROBOT_PYTHON names."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("lerobot_policy.py")
PACKAGE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def results(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    python = os.environ.get("GR00T_TRT_LEROBOT_PYTHON")
    if not python:
        pytest.skip("GR00T_TRT_LEROBOT_PYTHON names no Python with lerobot 0.4.4 to 0.5.1")
    homes = {name: str(tmp_path_factory.mktemp("home")) for name in ("HF_LEROBOT_HOME", "HF_HOME")}
    environment = {**os.environ, **homes, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PACKAGE)}
    command = [python, str(SCRIPT), str(golden)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_actions_keep_their_values_shapes_and_dtypes(results) -> None:
    assert [(r["use_bf16"], r["weights"], r["plan"]) for r in results] == [
        (True, "torch.float32", "default"),
        (True, "torch.float32", "bf16"),
        (False, "torch.float32", "default"),
        (True, "torch.bfloat16", "default"),
        (True, "torch.bfloat16", "bf16"),
    ]
    for result in results:
        before, after, one = result["dtypes"]
        assert before == after == one
        assert result["shapes"] == [[1, 6, 5], [1, 6, 5], [1, 5]]
        exact = not result["use_bf16"]
        assert result["cosine"] > (1 - 1e-9 if exact else 0.9999), result
        assert result["max_abs"] < (1e-5 if exact else 0.05), result


def test_the_default_on_a_cpu_is_fp32_and_closer_to_the_recorded_actions(results) -> None:
    default = [r for r in results if r["plan"] == "default"]
    assert {r["runs"] for r in default} == {"eager fp32"}
    assert all(r["max_abs_to_recorded"] < 1e-5 for r in default if r["weights"] == "torch.float32")


def test_weights_that_change_afterwards_are_noticed(results) -> None:
    assert all("weights were changed" in r["refused"] for r in results)
