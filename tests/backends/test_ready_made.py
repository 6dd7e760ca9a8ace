"""Engines of NVIDIA's deployment scripts: the profiles of their build script against what a plan asks for."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import fake_tensorrt
import pytest
import torch
from fake_tensorrt import DataType, FakeEngine

from gr00t_trt.backends import trt_runtime
from gr00t_trt.backends.onnx.interface import Interface, interface
from gr00t_trt.backends.tensorrt import ready_made
from gr00t_trt.backends.tensorrt.job import OnnxJob
from gr00t_trt.backends.tensorrt.network import TensorRT, describe_engine
from gr00t_trt.errors import BackendError
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.architecture import N1_5
from gr00t_trt.model.n1_5.published import POSITION_IDS, PUBLISHED
from gr00t_trt.model.targets import DimRange, Target
from gr00t_trt.plans.schema import SUBMODULES, BuildOptions

BATCH, IMAGES = DimRange("batch", 1, 1, 8), DimRange("images", 1, 1, 8)


@pytest.fixture(scope="module")
def model() -> Gr00tN1d5:
    return load_model("synthetic").half()


def make_form(model: Gr00tN1d5, name: str, *, longest: int = 300, dtype: torch.dtype = torch.float16) -> Interface:
    config = model.config
    text, head = config.eagle.text.hidden_size, config.action_head
    dims = {"batch": BATCH, "images": IMAGES, "length": DimRange("length", 80, 296, longest)}
    shapes = {
        "pixel_values": (1, 3, 224, 224),
        "inputs_embeds": (1, 296, text),
        "attention_mask": (1, 296),
        "backbone_features": (1, 296, text),
        "state": (1, 1, 64),
        "actions": (1, 16, 32),
        "hidden_states": (1, 49, head.input_embedding_dim),
        "encoder_hidden_states": (1, 296, text),
        "model_output": (1, 49, head.hidden_size),
    }
    arguments = N1_5.arguments[name]
    inputs = tuple(
        torch.zeros(shapes.get(a, (1,)), dtype=dtype if a in shapes and a != "attention_mask" else torch.int64)
        for a in arguments
    )
    ranges = tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in arguments.values())
    return interface(Target(name, model.eager_stage(name), inputs, tuple(arguments), ranges, PUBLISHED[name]))


def as_built(form: Interface, *, longest: int = 300) -> FakeEngine:
    """The engine that NVIDIA's build script makes with MAX_BATCH=8: minimum, optimum and maximum as it has them."""
    kinds = {torch.float16: DataType.HALF, torch.int64: DataType.INT64}
    seen, inputs = form.target, {}
    for name, tensor, ranges in zip(seen.argument_names, seen.inputs, seen.ranges, strict=True):
        bounds = {"batch": (1, 8), "images": (1, 8), "length": (80, longest)}
        low, high = (
            tuple(bounds[ranges[a].name][end] if a in ranges else s for a, s in enumerate(tensor.shape))
            for end in (0, 1)
        )
        inputs[name] = (kinds[tensor.dtype], low, tuple(tensor.shape), high)
    return FakeEngine(inputs, (form.output, DataType.HALF, (-1, 4)))


@pytest.mark.parametrize("name", SUBMODULES)
def test_the_published_interface_of_every_submodule_fits(model: Gr00tN1d5, name: str) -> None:
    form = make_form(model, name)
    assert form.target.published
    assert ready_made.misfit(form, *describe_engine(fake_tensorrt, as_built(form))) is None


def test_the_published_names(model: Gr00tN1d5) -> None:
    forms = {name: make_form(model, name) for name in SUBMODULES}
    assert {name: (form.onnx_file, form.engine_file, form.output) for name, form in forms.items()} == {
        "vision_model": ("eagle2/vit_fp16.onnx", "vit_fp16.engine", "vit_embeds"),
        "language_model": ("eagle2/llm_fp16.onnx", "llm_fp16.engine", "embeddings"),
        "vl_components": ("action_head/vlln_vl_self_attention.onnx", "vlln_vl_self_attention.engine", "output"),
        "state_encoder": ("action_head/state_encoder.onnx", "state_encoder.engine", "output"),
        "action_encoder": ("action_head/action_encoder.onnx", "action_encoder.engine", "output"),
        "dit_model": ("action_head/DiT_fp16.onnx", "DiT_fp16.engine", "output"),
        "action_decoder": ("action_head/action_decoder.onnx", "action_decoder.engine", "output"),
    }
    assert forms["vision_model"].target.argument_names == ("pixel_values", POSITION_IDS)
    assert forms["dit_model"].target.argument_names == ("sa_embs", "vl_embs", "timesteps_tensor")
    assert forms["action_encoder"].target.argument_names == ("actions", "timesteps_tensor", "embodiment_id")


def test_a_call_gets_its_position_ids(model: Gr00tN1d5) -> None:
    form = make_form(model, "vision_model")
    _, positions = form.arguments((torch.zeros(3, 3, 224, 224),))
    assert positions.shape == (3, 256)
    assert torch.equal(positions[2], torch.arange(256))
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    tower = load_model("synthetic").eager_stage("vision_model")
    names = PUBLISHED["vision_model"]
    wrapped = interface(Target("vision_model", tower, (images,), ("pixel_values",), ({0: IMAGES},), names))
    torch.testing.assert_close(wrapped.target.module(*wrapped.arguments((images,))), tower(images))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda e: e.inputs.pop("attention_mask"),
            "its inputs are inputs_embeds and not inputs_embeds, attention_mask",
        ),
        (lambda e: e.outputs.update(embeddings=(DataType.FLOAT, (-1, 4))), "its embeddings is float32 and not float16"),
        (
            lambda e: e.inputs.update(inputs_embeds=(DataType.FP8, *e.inputs["inputs_embeds"][1:])),
            "its inputs_embeds is fp8 and not float16",
        ),
        (
            lambda e: e.inputs.update(attention_mask=(DataType.INT64, (1,), (1,), (8,))),
            "its attention_mask has 1 axes and not 2",
        ),
        (
            lambda e: e.inputs.update(inputs_embeds=(DataType.HALF, (1, 80, 9), (1, 296, 9), (8, 300, 9))),
            "takes axis 2 9 to 9, and 128 is asked for",
        ),
    ],
)
def test_other_engines_are_refused_with_a_reason(model: Gr00tN1d5, change, reason: str) -> None:
    form = make_form(model, "language_model")
    engine = as_built(form)
    change(engine)
    assert reason in str(ready_made.misfit(form, *describe_engine(fake_tensorrt, engine)))


@pytest.mark.parametrize("longest", [300, 600])
def test_a_profile_that_is_too_small_says_what_would_fit(model: Gr00tN1d5, longest: int) -> None:
    form = make_form(model, "language_model", longest=1024)
    reason = ready_made.misfit(form, *describe_engine(fake_tensorrt, as_built(form, longest=longest)))
    assert reason == (
        f"its inputs_embeds takes length 80 to {longest}, and 80 to 1024 is asked for; `ranges` in the plan within 80 "
        f"to {longest} would fit"
    )


def test_fp16_engines_do_not_serve_a_plan_in_fp32(model: Gr00tN1d5) -> None:
    wanted = make_form(model, "dit_model", dtype=torch.float32)
    built = as_built(make_form(model, "dit_model"))
    assert "float16 and not float32" in str(ready_made.misfit(wanted, *describe_engine(fake_tensorrt, built)))


def test_files_are_found_by_their_published_names(model: Gr00tN1d5, tmp_path: Path) -> None:
    form = make_form(model, "vision_model")
    assert ready_made.engine_path(tmp_path, form) == (None, f"{tmp_path} has no vit_fp16.engine")
    (tmp_path / "vit_fp8.engine").write_bytes(b"x")
    assert ready_made.engine_path(tmp_path, form)[1].endswith("has no vit_fp16.engine, only vit_fp8.engine")
    (tmp_path / "vit_fp16.engine").write_bytes(b"x")
    assert ready_made.engine_path(tmp_path, form) == (tmp_path / "vit_fp16.engine", "")
    target = form.target
    restructured = interface(Target("vision_model", torch.nn.Linear(1, 1).half(), *_rest(target)))
    assert "other inputs than the published engine" in ready_made.engine_path(tmp_path, restructured)[1]
    assert set(PUBLISHED) == set(SUBMODULES)


def _rest(target: Target) -> tuple:
    return target.inputs[:1], target.argument_names[:1], target.ranges[:1]


class TestOnAGpu:
    """The backend with a fake TensorRT and a fake stream: a ready-made engine is loaded, checked and called."""

    @pytest.fixture
    def job(self, model: Gr00tN1d5, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("S", (), {"cuda_stream": 1}))
        monkeypatch.setattr(trt_runtime, "ALIGNMENT", fake_tensorrt.ALIGNMENT)
        monkeypatch.setattr(fake_tensorrt, "__version__", "10.9", raising=False)
        target = make_decoder(load_model("synthetic"))
        trt = TensorRT(fake_tensorrt, "tensorrt", fake_tensorrt.Log())
        options = BuildOptions(trt_engine_path=str(tmp_path))
        (tmp_path / "action_decoder.engine").write_bytes(b"decoder")

        def make(cuda: bool = True):
            job = OnnxJob(
                trt=trt, target=target, options=options, cuda=cuda,
                engine_dir=None, cache=None, versions={}, progress=lambda _: None,
            )  # fmt: skip
            job.form = interface(target)
            return job

        return make

    def engine(self, monkeypatch: pytest.MonkeyPatch, width: int = 32) -> FakeEngine:
        target = make_decoder(load_model("synthetic"))
        (hidden, _), rest = target.inputs, target.inputs[0].shape[1:]
        engine = FakeEngine(
            {
                "model_output": (DataType.FLOAT, (1, *rest), tuple(hidden.shape), (8, *rest)),
                "embodiment_id": (DataType.INT64, (1,), (1,), (8,)),
            },
            ("output", DataType.FLOAT, (-1, 49, width)),
            lambda *args: target.module(*args)[..., :width],
        )
        monkeypatch.setitem(fake_tensorrt.Runtime.ENGINES, b"decoder", engine)
        return engine

    def test_one_that_fits_is_used_and_nothing_is_built(self, job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine(monkeypatch)
        one = job()
        built = one.ready_made()
        assert built.runs
        assert built.engine_bytes == len(b"decoder")
        assert built.layers_after == 42
        assert "is used; nothing was built" in one.notes[0]
        target = make_decoder(load_model("synthetic"))
        assert torch.equal(built.call(*target.inputs), target.module(*target.inputs))

    def test_one_that_returns_something_else_is_not(self, job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine(monkeypatch, width=31)
        one = job()
        assert one.ready_made() is None
        assert "returns shape (1, 49, 31) instead of (1, 49, 32)" in one.notes[0]

    def test_one_of_another_release_is_not(self, job) -> None:
        one = job()
        assert one.ready_made() is None
        assert "tensorrt 10.9 cannot load the engine: Serialization assertion" in one.notes[0]

    def test_without_a_gpu_none_is_read(self, job, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engine(monkeypatch)
        one = job(cuda=False)
        assert one.ready_made() is None
        assert one.notes[0].endswith("action_decoder.engine can be read on a GPU only.")


def make_decoder(model: Gr00tN1d5) -> Target:
    hidden = torch.randn(1, 49, model.config.action_head.hidden_size, generator=torch.Generator().manual_seed(0))
    inputs = (hidden, torch.tensor([24]))
    return Target(
        "action_decoder", model.eager_stage("action_decoder"), inputs, tuple(N1_5.arguments["action_decoder"]),
        ({0: BATCH}, {0: BATCH}), PUBLISHED["action_decoder"],
    )  # fmt: skip


def test_a_kept_engine_that_fails_is_told_as_built_again_and_not_as_kept() -> None:
    job, slot = Mock(), Mock()
    job.notes = ["exported by dynamo"]
    job.taken = lambda found: job.notes.append("The engine is from the cache: an earlier run built it.")
    job.built.return_value = (Mock(), Mock())
    job.running.side_effect = [BackendError("engine of another device"), "the new one"]
    assert OnnxJob.on_gpu(job, slot) == "the new one"
    again = "The engine in the cache was built again: BackendError: engine of another device."
    assert job.notes == ["exported by dynamo", again]
