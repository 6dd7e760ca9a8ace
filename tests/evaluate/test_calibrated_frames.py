"""No accuracy is measured on a frame that the scales were taken from."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t_trt.__main__ import main

SYNTHETIC = ["--model_path", "synthetic", "--dataset_path", "synthetic"]


def test_calibrated_frames_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = str(tmp_path / "c.safetensors")
    assert main(["calibrate", *SYNTHETIC, "--episodes", "0", "--frames", "32", "--out", file]) == 0
    argv = ["evaluate", *SYNTHETIC, "--precision", "int8", "--calibration", file, "--record", str(tmp_path / "r.json")]
    assert main(argv) == 2
    assert "episode 0, row 0 was calibrated on" in capsys.readouterr().err
    assert main([*argv, "--start_traj", "1"]) == 0
