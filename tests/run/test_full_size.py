"""The released geometry, built whole by either route, six minutes each on two cores: on request, pytest -m full_size"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gr00t_trt.engines.files import verify
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.record.files import read_record

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.full_size
@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
@pytest.mark.parametrize(("backend", "most_bytes"), [("torch_tensorrt", 14e9), ("tensorrt", 16e9)])
def test_seven_engines_without_a_gpu_within_six_minutes(
    backend: str, most_bytes: float, demo: Path, tmp_path: Path
) -> None:
    available = get_backend(backend).availability()
    if not available.installed:
        pytest.skip(available.reason)
    command = (
        f"--model_path synthetic:full --dataset_path {demo} --precision FP16 --use_fp32_acc --use_explicit_typing "
        f"--fn_name all --backend {backend} --benchmark cuda_event --num_iterations 1 --warmup_iterations 0 "
        f"--engine_dir {tmp_path / 'engines'} --record {tmp_path / 'record.json'}"
    )
    # In a process of its own: the peak is of this run alone.
    subprocess.run([sys.executable, "run_groot_torchtrt.py", *command.split()], cwd=ROOT, check=True)
    record = read_record(tmp_path / "record.json")
    assert [entry.subject for entry in record.submodules] == list(SUBMODULES)
    for entry in record.submodules:
        found = (entry.build.engines, entry.build.coverage_percent, entry.passed)
        assert found == (1, 100.0, True), entry.subject
        assert verify(tmp_path / "engines" / f"{entry.subject}.engine")
    assert record.wall_s < 360
    assert record.peak_memory.peak_bytes < most_bytes
