"""Quantised layers in ONNX files: what ONNX Runtime computes of them, and the engines that TensorRT-RTX builds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from small_quantized import decibels, quantize, quantized
from small_submodules import make_target, needs_no_gpu, needs_onnx, tensors

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.onnx import backend as onnxruntime
from gr00t_trt.backends.onnx import export as onnx_export
from gr00t_trt.errors import BackendError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = needs_onnx

Exported = tuple[str, Target, onnx_export.OnnxFile]


def export(target: Target, folder: Path, **options: object) -> onnx_export.OnnxFile:
    return onnx_export.export(target, folder, BuildOptions(**options), lambda _: None)


def run(path: Path, *args: torch.Tensor) -> torch.Tensor:
    """What any ONNX user would do. ONNX Runtime takes e4m3 for integers in its own rewriting, which is off."""
    settings = runtime.SessionOptions()
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    session = runtime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feed = {value.name: arg.numpy() for value, arg in zip(session.get_inputs(), args, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.fixture(scope="module", params=["int8", "fp8"])
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    target = quantized(request.param, torch.float16)
    return request.param, target, export(target, tmp_path_factory.mktemp("onnx"), use_fp32_acc=True)


def test_onnx_runtime_computes_what_the_reference_does(exported: Exported) -> None:
    _, target, file = exported
    call = onnxruntime.open_session(target, file, BuildOptions())
    for batch, length in ((1, 20), (3, 33)):
        args = tensors("head_dim_48", batch, length)
        want = target.module(*args)
        lost = decibels(want, make_target("head_dim_48").module(*args))
        for got in (run(file.path, *args), call(*args)):
            assert decibels(got, want) > max(55, lost + 6)


@pytest.mark.full_size
@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_so_it_does_around_products_in_fp32(form: str, tmp_path: Path) -> None:
    target, args = quantized(form, torch.float32), tensors("head_dim_48", 3, 33, torch.float32)
    call = onnxruntime.open_session(target, export(target, tmp_path), BuildOptions())
    assert decibels(call(*args), target.module(*args)) > 70


def test_the_file_holds_standard_operators_and_codes(exported: Exported) -> None:
    form, _, file = exported
    model = onnx.shape_inference.infer_shapes(onnx.load(str(file.path)))
    graph = model.graph
    assert file.path.name == f"head_dim_48_{form}.onnx"
    assert file.metadata["formats"] == form
    assert {node.domain for node in graph.node} == {each.domain for each in model.opset_import} == {""}
    kinds = Counter(onnx.TensorProto.DataType.Name(each.data_type) for each in graph.initializer)
    assert kinds["INT8" if form == "int8" else "FLOAT8E4M3FN"] == 3  # two weights, one zero point
    assert kinds["UINT8"] == 0
    makers = {output: node for node in graph.node for output in node.output}
    products = [node for node in graph.node if node.op_type == "MatMul"]
    quantised = [node for node in products if _behind(makers, node.input[1]) == "DequantizeLinear"]
    assert [_behind(makers, node.input[0]) for node in quantised] == ["DequantizeLinear"] * 2
    # The casts of use_fp32_acc are around attention's two products and no others: elsewhere they would hide scales.
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    wide = [node for node in products if types[node.output[0]] == onnx.TensorProto.FLOAT]
    assert len(wide) == len(products) - len(quantised) == 2
    assert not any(node in quantised for node in wide)


def _behind(makers: dict, name: str) -> str:
    """The operator that made a value, looking through one cast to half precision."""
    node = makers.get(name)
    if node is not None and node.op_type == "Cast":
        node = makers.get(node.input[0])
    return node.op_type if node is not None else ""


@pytest.mark.full_size
def test_scales_stay_in_fp32(tmp_path: Path) -> None:
    target = quantized("fp8", torch.float16)
    layer = target.module.get_submodule("qkv")
    layer.scale *= 2.0**-20  # nothing in fp16, where the smallest number is 2 to the -24
    layer.input_scale *= 2.0**20
    args = tensors("head_dim_48", 1, 20)
    assert decibels(run(export(target, tmp_path).path, *args), target.module(*args)) > 50


def test_nvfp4_is_refused_naming_who_builds_it(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"head_dim_48: nvfp4: ONNX has no operator.*\n.*torch_tensorrt"):
        export(quantized("nvfp4"), tmp_path)


@needs_no_gpu
@pytest.mark.parametrize("form", ["int8", pytest.param("fp8", marks=pytest.mark.full_size)])
def test_bf16_around_the_products_becomes_fp32_on_a_cpu_and_says_so(form: str, tmp_path: Path) -> None:
    target = quantized(form)
    built = get_backend("onnxruntime").build(target, BuildOptions(), BuildContext(tmp_path, lambda _: None))
    args = tensors("head_dim_48", 3, 33, torch.bfloat16)
    got, want = built.call(*args), target.module(*args)
    assert got.dtype == torch.bfloat16
    assert decibels(got, want) > 45  # bf16 itself is worth about 50
    assert any("between the quantised products it computes in fp32" in note for note in built.notes)
    plain = make_target("head_dim_48", torch.bfloat16)
    with pytest.raises(BackendError, match="no bf16 matrix product"):
        get_backend("onnxruntime").build(plain, BuildOptions(), BuildContext(None, lambda _: None))


@pytest.mark.full_size
def test_tensorrt_builds_it_and_onnx_runtime_checks_it(rtx) -> None:
    target = quantize(make_target("attention", torch.bfloat16), "fp8")
    built = get_backend("tensorrt").build(target, BuildOptions(), BuildContext(None, lambda _: None))
    assert (built.coverage.engines, built.coverage.percent) == (1, 100.0)
    said = " ".join(built.notes)
    assert "for compute capability 8.9, 12.0, 12.1" in said
    assert "run by ONNX Runtime" in said
    args = tensors("attention", 2, 13, torch.bfloat16)
    assert decibels(built.call(*args), target.module(*args)) > 45
