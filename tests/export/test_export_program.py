"""The seven submodules as ONNX files: exported from one request, run by ONNX Runtime on others, and by our program."""

from __future__ import annotations

import copy
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gr00t_trt.backends.onnx import export as onnx_export
from gr00t_trt.backends.onnx.export import OnnxFile
from gr00t_trt.compile.build import dimension_ranges
from gr00t_trt.export.program import main
from gr00t_trt.measure.workloads import Request, noise_of
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5 import fast
from gr00t_trt.model.protocol import Model
from gr00t_trt.model.targets import Call, Recording
from gr00t_trt.plans.schema import SUBMODULES, BuildOptions, Ranges
from gr00t_trt.record.result import Workload

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TRACED, OTHERS = "b1_v1", ("b2_v2", "b2_v1_leftpad")


@pytest.fixture(scope="module")
def toy(golden: Path) -> Gr00tN1d5:
    """The toy checkpoint with one layer of each kind: more of the same would only take longer to export."""
    model = load_model(golden / "checkpoint")
    eagle, head = model.backbone.eagle_model, model.action_head
    del eagle.vision_model.vision_model.encoder.layers[1:]
    del eagle.language_model.model.layers[1:]
    del head.vl_self_attention.transformer_blocks[1:]
    del head.model.transformer_blocks[2:]  # cross-attention and self-attention
    return model


@pytest.fixture(scope="module")
def recordings(toy: Gr00tN1d5, golden: Path) -> dict[str, Recording]:
    """Case -> every stage's calls in fp32. The original's own results hold the model to them in another test."""
    return {case: recorded(toy, request(toy, golden, case)) for case in (TRACED, *OTHERS)}


def recorded(model: Model, wanted: Request) -> Recording:
    return model.record(wanted.inputs, wanted.noise)[0]


def request(toy: Gr00tN1d5, golden: Path, case: str) -> Request:
    tensors = load_file(str(golden / f"case_{case}.safetensors"))
    inputs = {name.removeprefix("in."): value for name, value in tensors.items() if name.startswith("in.")}
    batch = len(inputs["state"])
    work = Workload(len(inputs["eagle_pixel_values"]) // batch, batch, toy.denoising_steps)
    return Request(work, {}, inputs, noise_of(toy, batch, seed=5), batched=batch > 1)


@pytest.fixture(scope="module")
def files(
    toy: Gr00tN1d5, golden: Path, recordings: dict[str, Recording], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, OnnxFile]:
    folder = tmp_path_factory.mktemp("gr00t_onnx")
    dims = dimension_ranges(toy.config, Ranges(), request(toy, golden, TRACED))
    return {
        name: onnx_export.export(
            toy.target(name, recordings[TRACED], dims), folder, BuildOptions(), progress=lambda _: None
        )
        for name in SUBMODULES
    }


@pytest.mark.parametrize("name", SUBMODULES)
def test_a_file_agrees_with_eager_at_other_batches_views_lengths_and_paddings(
    files: dict[str, OnnxFile], recordings: dict[str, Recording], name: str
) -> None:
    hold(files[name], [call for case in (TRACED, *OTHERS) for call in recordings[case][name]])


def hold(file: OnnxFile, calls: list[Call]) -> None:
    """Run an exported file by nothing but ONNX Runtime on recorded calls of several shapes."""
    session = runtime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    for call in calls:
        args = file.interface.arguments(call.inputs)
        feed = dict(zip((value.name for value in session.get_inputs()), (x.numpy() for x in args), strict=True))
        actual = torch.from_numpy(session.run(None, feed)[0])
        assert actual.shape == call.output.shape
        cosine = torch.cosine_similarity(actual.flatten().double(), call.output.flatten().double(), dim=0)
        assert cosine > 0.99999
        torch.testing.assert_close(actual, call.output, atol=1e-4, rtol=1e-4)
    assert len({call.output.shape for call in calls}) > 1


@pytest.mark.parametrize("name", ["vl_components", "denoise_step"])
def test_a_restructured_stage_exports_under_its_own_name(
    toy: Gr00tN1d5, golden: Path, tmp_path: Path, name: str
) -> None:
    model = fast.restructure(copy.deepcopy(toy))
    requests = {case: request(toy, golden, case) for case in (TRACED, OTHERS[0])}
    calls = {case: recorded(model, wanted) for case, wanted in requests.items()}
    wanted = model.target(name, calls[TRACED], dimension_ranges(toy.config, Ranges(), requests[TRACED]))
    file = onnx_export.export(wanted, tmp_path, BuildOptions(), progress=lambda _: None)
    assert file.path == tmp_path / f"{name}_fp32.onnx"
    assert [value.name for value in onnx.load(str(file.path)).graph.output] == ["output"]
    hold(file, [call for case in calls.values() for call in case[name]])


def test_names_are_those_of_the_published_files(files: dict[str, OnnxFile]) -> None:
    found = {}
    for file in files.values():
        graph = onnx.load(str(file.path)).graph
        key = "/".join(file.path.parts[-2:])
        found[key] = ([value.name for value in graph.input], [value.name for value in graph.output])
    assert found == {
        "eagle2/vit_fp32.onnx": (["pixel_values", "position_ids"], ["vit_embeds"]),
        "eagle2/llm_fp32.onnx": (["inputs_embeds", "attention_mask"], ["embeddings"]),
        "action_head/vlln_vl_self_attention.onnx": (["backbone_features"], ["output"]),
        "action_head/state_encoder.onnx": (["state", "embodiment_id"], ["output"]),
        "action_head/action_encoder.onnx": (["actions", "timesteps_tensor", "embodiment_id"], ["output"]),
        "action_head/DiT_fp32.onnx": (["sa_embs", "vl_embs", "timesteps_tensor"], ["output"]),
        "action_head/action_decoder.onnx": (["model_output", "embodiment_id"], ["output"]),
    }


def test_positions_are_really_looked_up(files: dict[str, OnnxFile], recordings: dict[str, Recording]) -> None:
    file = files["vision_model"]
    session = runtime.InferenceSession(str(file.path), providers=["CPUExecutionProvider"])
    (call,) = recordings[TRACED]["vision_model"]
    pixels, positions = (x.numpy() for x in file.interface.arguments(call.inputs))
    forward, backward = (
        session.run(None, {"pixel_values": pixels, "position_ids": ids})[0]
        for ids in (positions, positions[:, ::-1].copy())
    )
    assert abs(forward - backward).max() > 1e-3


class TestProgram:
    """One small submodule through the command line, with whatever dataset there is."""

    @pytest.fixture(autouse=True)
    def _in_an_empty_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_a_file_a_table_and_a_command(self, capsys: pytest.CaptureFixture, demo: Path) -> None:
        flags = "--model_path synthetic --precision fp16 --fn_name action_decoder --onnx-dir out --print-trtexec"
        assert main([*flags.split(), "--dataset_path", str(demo)]) == 0
        out, err = capsys.readouterr()
        assert "robot_sim.PickNPlace, episode 0, step 0" in err
        row = next(line for line in err.splitlines() if "action_head/action_decoder.onnx" in line)
        assert row.split()[1] == "fp16"
        assert row.split()[3] == "20"
        assert float(row.split()[5]) > 0.999
        assert row.split()[6] == "pass"
        assert [str(p.relative_to("out")) for p in Path("out").rglob("*.onnx")] == ["action_head/action_decoder.onnx"]
        first, line = out.splitlines()
        assert first == "mkdir -p gr00t_engine"
        words = shlex.split(line)
        assert words[0] == "trtexec"
        assert "--onnx=out/action_head/action_decoder.onnx" in words
        assert "--saveEngine=gr00t_engine/action_decoder.engine" in words
        assert "--stronglyTyped" in words
        assert "--minShapes=model_output:1x49x64,embodiment_id:1" in words
        assert "--maxShapes=model_output:8x49x64,embodiment_id:8" in words
        assert not [word for word in words if word.startswith(("--fp16", "--best"))]

    def test_made_up_inputs_will_do_and_a_missed_gate_ends_with_1(self, capsys: pytest.CaptureFixture) -> None:
        Path("strict.yaml").write_text("precision: bf16\noptimizations: none\ngate: {max_abs: 0.0}\n")
        flags = "--model_path synthetic --fn_name state_encoder --precision fp16 --config strict.yaml"
        assert main(flags.split()) == 1
        out, err = capsys.readouterr()
        assert "observation" not in err
        assert "FAIL" in out
        assert "state_encoder: max_abs" in err
        assert Path("gr00t_onnx/action_head/state_encoder.onnx").is_file()

    def test_a_gpu_that_onnx_runtime_cannot_use_is_left_alone(self, capsys, monkeypatch) -> None:
        import onnxruntime

        from gr00t_trt.common import devices

        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this ONNX Runtime can use a GPU")
        monkeypatch.setattr(devices, "choose_device", lambda wanted: torch.device(wanted or "cuda:0"))
        flags = "--model_path synthetic --fn_name state_encoder --precision fp16"
        assert main(flags.split()) == 0
        out, err = capsys.readouterr()
        assert "pass" in out
        assert "checked on the CPU: this ONNX Runtime has no CUDA provider" in " ".join(err.split())
        assert main([*flags.split(), "--device", "cuda:0"]) == 2

    def test_of_a_checkpoint_only_the_weights_are_needed(self, golden: Path, capsys: pytest.CaptureFixture) -> None:
        files = sorted(path.name for path in (golden / "checkpoint").iterdir())
        assert files == ["config.json", "eagle_config.json", "model.safetensors"]  # no statistics, no tokenizer
        for name, tag in (("state_encoder", "gr1"), ("action_decoder", "new_embodiment")):
            flags = f"--model_path {golden / 'checkpoint'} --fn_name {name} --embodiment_tag {tag} --precision fp16"
            assert main(flags.split()) == 0
            row = next(line for line in capsys.readouterr().out.splitlines() if f"{name}.onnx" in line)
            assert row.split()[1::5] == ["fp16", "pass"]

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            ("--embodiment_tag gr2", "did you mean gr1?"),
            ("--fn_name decoder", "did you mean action_decoder?"),
            ("--onnx_dirr x", "did you mean --onnx_dir?"),
            ("--precision fp8", "a quantised precision needs a calibration"),
            ("--loop denoise_loop", "restructured model only"),
            ("--dataset_path nowhere", "nowhere"),
            ("--config nothing.yaml", "no such plan file"),
            ("--model_path /no/such", "/no/such"),
            ("--device cuda:99", "cuda:99"),
        ],
    )
    def test_bad_input_ends_with_2(self, flags: str, words: str, capsys: pytest.CaptureFixture) -> None:
        assert main(["--model_path", "synthetic", *flags.split()]) == 2
        out, err = capsys.readouterr()
        assert words in err
        assert "Traceback" not in err
        assert out == ""
