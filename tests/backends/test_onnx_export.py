"""Exported files, read back by onnx and run by ONNX Runtime at sizes other than those they were traced at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small_submodules import BATCH, cosine, make_target, needs_no_gpu, needs_onnx, tensors
from torch import nn

from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.backends.onnx import backend as onnxruntime
from gr00t_trt.backends.onnx import export as onnx_export
from gr00t_trt.backends.tensorrt import network as trt_network
from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.files import verify
from gr00t_trt.engines.key import weights_hash
from gr00t_trt.errors import BackendError, PlanError, RecordError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytestmark = needs_onnx


def export(target: Target, folder: Path, **options: object) -> onnx_export.OnnxFile:
    return onnx_export.export(target, folder, BuildOptions(**options), lambda _: None)


def run(path: Path, *args: torch.Tensor) -> torch.Tensor:
    """What any ONNX user would do, with nothing of ours."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {value.name: arg.numpy() for value, arg in zip(session.get_inputs(), args, strict=True)}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.fixture(scope="module")
def decoder_file(tmp_path_factory: pytest.TempPathFactory) -> onnx_export.OnnxFile:
    return export(make_target("decoder"), tmp_path_factory.mktemp("onnx"), use_fp32_acc=True)


class TestDecoder:
    """Grouped causal attention in fp16, products accumulating in fp32, batch and length dynamic."""

    @pytest.mark.parametrize(("batch", "length"), [(1, 20), (3, 9), (4, 40)])
    def test_agrees_with_eager_at_every_size(self, decoder_file, batch: int, length: int) -> None:
        args = tensors("decoder", batch, length)
        expected, actual = make_target("decoder").module(*args), run(decoder_file.path, *args)
        assert actual.dtype == torch.float16
        assert actual.shape == expected.shape
        assert cosine(actual, expected) > 0.99999

    def test_the_file_holds_standard_operators_of_the_stated_opset(self, decoder_file) -> None:
        model = onnx.load(str(decoder_file.path))
        assert {(each.domain, each.version) for each in model.opset_import} == {("", onnx_export.OPSET)}
        assert {node.domain for node in model.graph.node} == {""}
        assert not model.functions
        assert len(model.graph.node) == decoder_file.nodes == sum(decoder_file.operators.values())
        assert "Attention" not in decoder_file.operators
        assert decoder_file.operators["Softmax"] == 1
        assert decoder_file.bytes == decoder_file.path.stat().st_size

    def test_it_says_where_it_comes_from(self, decoder_file) -> None:
        props = {each.key: each.value for each in onnx.load(str(decoder_file.path)).metadata_props}
        assert props == decoder_file.metadata
        assert props["project"] == "gr00t_trt"
        assert props["dtype"] == "fp16"
        assert props["opset"] == str(onnx_export.OPSET)
        assert props["weights_sha256"] == weights_hash(make_target("decoder").module)

    def test_axes_carry_the_names_of_the_ranges(self, decoder_file) -> None:
        graph = onnx.load(str(decoder_file.path)).graph
        dims = {
            value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
            for value in (*graph.input, *graph.output)
        }
        assert dims == {
            "hidden": ["batch", "length", 64],
            "attention_mask": ["batch", "length"],
            "output": ["batch", "length", 64],
        }

    def test_every_half_precision_product_sums_in_fp32(self, decoder_file) -> None:
        model = onnx.shape_inference.infer_shapes(onnx.load(str(decoder_file.path)))
        kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
        products = [node for node in model.graph.node if node.op_type in onnx_export.PRODUCTS]
        assert len(products) == 4
        assert {kinds[node.output[0]] for node in products} == {onnx.TensorProto.FLOAT}
        assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def encoder_file(tmp_path_factory: pytest.TempPathFactory) -> onnx_export.OnnxFile:
    folder = tmp_path_factory.mktemp("onnx")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_export, "LARGE_BYTES", 1024)
        return export(make_target("encoder", torch.float32), folder)


class TestEncoder:
    """Weights gathered by an int64 id; static but for the batch; weights in a file of their own."""

    def test_large_weights_lie_beside_the_graph(self, encoder_file) -> None:
        data = encoder_file.path.with_name(f"{encoder_file.path.name}.data")
        assert encoder_file.path.stat().st_size < data.stat().st_size
        assert encoder_file.bytes == encoder_file.path.stat().st_size + data.stat().st_size
        assert sorted(each.name for each in encoder_file.path.parent.iterdir()) == [encoder_file.path.name, data.name]
        args = tensors("encoder", 3, 20, torch.float32)
        torch.testing.assert_close(run(encoder_file.path, *args), make_target("encoder", torch.float32).module(*args))

    def test_our_session_gives_the_same_and_copies_nothing_in(self, encoder_file) -> None:
        target = make_target("encoder", torch.float32)
        call = onnxruntime.open_session(target, encoder_file, BuildOptions())
        for batch in (4, 1, 2):
            args = tensors("encoder", batch, 20, torch.float32)
            assert torch.equal(call(*args), run(encoder_file.path, *args))
        actions, timestep, ids = tensors("encoder", 2, 20, torch.float32)
        strided = torch.stack((actions, -actions), -1)[..., 0]
        assert torch.equal(call(strided, timestep, ids), call(actions, timestep, ids))

    def test_results_do_not_share_memory(self, encoder_file) -> None:
        call = onnxruntime.open_session(make_target("encoder", torch.float32), encoder_file, BuildOptions())
        first = call(*tensors("encoder", 1, 20, torch.float32))
        kept = first.clone()
        call(*(x + 1 for x in tensors("encoder", 1, 20, torch.float32)))
        assert torch.equal(first, kept)


class Flat(nn.Module):
    """A layer on rows, which the exporter writes as a Gemm, and its result joined to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.second(torch.relu(self.first(x)))
        return torch.cat((y, y), dim=-1)


def test_layers_on_rows_sum_in_fp32_as_well(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Flat().half().eval().requires_grad_(False)
    x = torch.randn(3, 8).half()
    file = export(Target("flat", module, (x,), ("x",), ({0: BATCH},)), tmp_path, use_fp32_acc=True)
    assert "Gemm" not in file.operators
    assert file.operators["MatMul"] == 2
    torch.testing.assert_close(run(file.path, x[:2]), module(x[:2]), atol=2e-3, rtol=2e-3)
    shapes = {tuple(each.dims) for each in onnx.load(str(file.path)).graph.initializer}
    assert {(8, 16), (16, 4)} <= shapes
    assert not {(16, 8), (4, 16)} & shapes


class Strange(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    target = Target("strange", Strange().eval(), (torch.rand(2, 3),), ("x",), ({},))
    with pytest.raises(BackendError, match=r"strange: exporting to ONNX failed: .*") as caught:
        export(target, tmp_path)
    assert "bessel_j0" in str(caught.value.__cause__) or "bessel_j0" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_found_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="a file stands where the folder should be"):
        export(make_target("encoder"), tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_explicit_typing": False}, "use_explicit_typing: false is impossible"),
        (
            {"compute_capabilities": ("8.9",)},
            r"compute_capabilities: \['8.9'\] asked of TensorRT, which builds for the",
        ),
    ],
)
def test_what_tensorrt_cannot_honour_is_refused(options: dict, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        trt_network.refuse_options(trt_network.TensorRT(None, "tensorrt", None), BuildOptions(**options))


@needs_no_gpu
def test_bf16_on_a_cpu_is_refused_before_anything_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "export", lambda *_: pytest.fail("exported"))
    with pytest.raises(BackendError, match=r"encoder: ONNX Runtime has no bf16 matrix product for the CPU\n"):
        get_backend("onnxruntime").build(
            make_target("encoder", torch.bfloat16), BuildOptions(), BuildContext(None, print)
        )


def test_what_is_not_installed_is_told_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export.importlib.util, "find_spec", lambda name: None)
    assert "[onnx]'" in onnx_export.missing()
    for name in ("onnxruntime", "tensorrt"):
        available = get_backend(name).availability()
        assert not available.installed
        with pytest.raises(BackendError, match=r"encoder: .*not installed: (uv )?pip install"):
            get_backend(name).build(make_target("encoder"), BuildOptions(), BuildContext(None, print))


class TestProviders:
    """What ONNX Runtime is asked for on a GPU, told from a list of what it has."""

    @pytest.fixture
    def ask(self, monkeypatch: pytest.MonkeyPatch):
        def ask(dtype: torch.dtype, present: list[str], **options: object):
            target = make_target("attention", dtype)
            file = onnx_export.OnnxFile(Path("x"), onnx_export.interface(target), 0, 0, {}, {})
            monkeypatch.setattr(runtime, "get_available_providers", lambda: present)
            stream = type("Stream", (), {"cuda_stream": 1234})
            return onnxruntime.providers(file, BuildOptions(**options), torch.device("cuda:1"), stream)

        return ask

    ALL = (onnxruntime.TENSORRT, onnxruntime.CUDA, onnxruntime.CPU)

    def test_tensorrt_comes_first_with_the_ranges_as_its_profile(self, ask) -> None:
        wanted, notes = ask(torch.float16, [*self.ALL], optimization_level=2)
        assert [name for name, _ in wanted] == [*self.ALL]
        assert notes == []
        tensorrt, cuda = wanted[0][1], wanted[1][1]
        assert tensorrt["trt_profile_min_shapes"] == "hidden:1x8x32,keep:1x8"
        assert tensorrt["trt_profile_opt_shapes"] == "hidden:1x20x32,keep:1x20"
        assert tensorrt["trt_profile_max_shapes"] == "hidden:4x40x32,keep:4x40"
        assert tensorrt["trt_fp16_enable"] == "True"
        assert tensorrt["trt_builder_optimization_level"] == "2"
        assert cuda["user_compute_stream"] == tensorrt["user_compute_stream"] == "1234"
        assert cuda["device_id"] == "1"

    @pytest.mark.parametrize(("dtype", "options"), [(torch.bfloat16, {}), (torch.float16, {"use_fp32_acc": True})])
    def test_tensorrt_is_left_out_where_it_would_change_the_precision(self, ask, dtype, options) -> None:
        wanted, notes = ask(dtype, [*self.ALL], **options)
        assert [name for name, _ in wanted] == [onnxruntime.CUDA, onnxruntime.CPU]
        assert "left out" in notes[0]

    def test_tf32_can_be_switched_off(self, ask) -> None:
        for off in (True, False):
            wanted, _ = ask(torch.float32, [onnxruntime.CUDA, onnxruntime.CPU], disable_tf32=off)
            assert wanted[0][1]["use_tf32"] == str(int(not off))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory):
    backend = get_backend("tensorrt")
    if torch.cuda.is_available() or not backend.availability().installed:
        pytest.skip("needs TensorRT-RTX, and a machine without a GPU")
    folder = tmp_path_factory.mktemp("engines")
    options = BuildOptions(
        use_fp32_acc=True, disable_tf32=True, optimization_level=1, compute_capabilities=("8.9", "12.0")
    )
    return folder, backend.build(make_target("encoder"), options, BuildContext(folder, lambda _: None))


class TestTensorRT:
    """The ONNX route to a real TensorRT-RTX engine, which needs no GPU to be built."""

    def test_the_engine_is_on_disk_with_a_manifest_that_vouches_for_it(self, built) -> None:
        folder, result = built
        manifest = verify(folder / "encoder.engine")
        assert sorted(path.name for path in folder.iterdir()) == ["encoder.engine", "encoder.manifest.json"]
        assert manifest.bytes == result.engine_bytes == result.engine.bytes
        assert [(each.name, each.dtype) for each in manifest.inputs] == [
            ("actions", "float16"),
            ("timestep", "int64"),
            ("embodiment_id", "int64"),
        ]
        assert manifest.inputs[0].minimum == (1, 6, 8)
        assert manifest.inputs[0].maximum == (4, 6, 8)
        assert [(each.name, each.dtype, each.maximum) for each in manifest.outputs] == [
            ("output", "float16", (-1, 6, 16))
        ]
        assert manifest.compute_capabilities == ("8.9", "12.0")
        assert not manifest.executed
        assert manifest.settings["opset"] == onnx_export.OPSET

    def test_it_says_what_was_built_and_what_is_called_instead(self, built) -> None:
        folder, result = built
        assert not result.runs
        assert result.coverage.engines == 1
        assert result.layers_before == verify(folder / "encoder.engine").layers > 20
        assert result.coverage.operators > 20
        assert result.layers_after is None
        assert any("8.9, 12.0. It has not run." in note for note in result.notes)
        assert any("ONNX Runtime on the CPU" in note for note in result.notes)
        args = tensors("encoder", 3, 20)
        assert cosine(result.call(*args), make_target("encoder").module(*args)) > 0.99999

    def test_a_file_that_is_no_onnx_is_refused_in_the_parsers_words(self, built, tmp_path: Path) -> None:
        broken = tmp_path / "broken.onnx"
        broken.write_bytes(np.random.default_rng(0).bytes(500))
        target = make_target("encoder")
        file = onnx_export.OnnxFile(broken, onnx_export.interface(target), 500, 0, {}, {})
        with pytest.raises(BackendError, match=r"TensorRT's parser refused broken.onnx: "):
            trt_network.build_engine(trt_network.load_tensorrt(), file, BuildOptions())

    def test_a_second_build_finds_the_engine_and_a_damaged_one_is_built_again(self, built, tmp_path: Path) -> None:
        target, cache = make_target("encoder"), EngineCache(tmp_path / "cache")

        def build() -> Built:
            return get_backend("tensorrt").build(target, BuildOptions(), BuildContext(tmp_path, lambda _: None, cache))

        first = build()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trt_network, "build_engine", lambda *_: pytest.fail("built again"))
            second = build()
        assert (first.from_cache, second.from_cache) == (False, True)
        assert verify(tmp_path / "encoder.engine").bytes == first.engine_bytes == second.engine_bytes
        assert first.layers_before == second.layers_before > 20
        args = tensors("encoder", 2, 20)
        assert torch.equal(second.call(*args), first.call(*args))
        (engine,) = (tmp_path / "cache").glob("*.engine")
        whole = engine.read_bytes()
        engine.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        third = build()
        assert not third.from_cache
        assert any("was not trusted, and built again" in note for note in third.notes)

    def test_bf16_is_built_and_checked_by_the_eager_module(self, built, tmp_path: Path) -> None:
        target = dataclasses.replace(make_target("encoder", torch.bfloat16), name="small")
        result = get_backend("tensorrt").build(target, BuildOptions(), BuildContext(tmp_path, lambda _: None))
        assert verify(tmp_path / "small.engine").outputs[0].dtype == "bfloat16"
        assert any("of the eager module" in note for note in result.notes)
