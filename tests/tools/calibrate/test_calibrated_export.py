"""`gr00t-trt export` in 8 bits: the file computes what fp32 does within its gate, by nothing but ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t_trt.__main__ import main

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


def test_a_quantised_file_is_written_and_held_against_fp32(
    demo: Path, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["export", "--model_path", "synthetic", "--dataset_path", str(demo), "--fn_name", "vl_components"]
    argv += ["--precision", "int8", "--calibration", str(calibrated), "--onnx_dir", str(tmp_path), "--print_trtexec"]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    row = next(line for line in err.splitlines() if "vl_components_int8.onnx" in line).split()
    assert (row[1], row[-1]) == ("int8", "pass")
    assert 0.999 < float(row[5]) < 0.99999  # fp32 itself would agree to seven digits
    assert f"--onnx={tmp_path}/vl_components_int8.onnx" in out
    (file,) = tmp_path.iterdir()  # its fp32 twin, which ran, is gone
    graph = onnx.load(str(file)).graph
    products = sum(node.op_type == "QuantizeLinear" for node in graph.node)
    codes = [one for one in graph.initializer if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    assert len(codes) == products > 4


def test_what_cannot_be_written_is_told_before_anything_is_loaded(
    calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["export", "--model_path", "synthetic", "--onnx_dir", str(tmp_path / "onnx"), "--calibration"]
    for precision, file, words in (
        ("nvfp4", calibrated, "ONNX has no operator that quantises an input by blocks"),
        ("fp8", tmp_path / "none", "no such file"),
    ):
        assert main([*argv, str(file), "--precision", precision]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "onnx").exists()
