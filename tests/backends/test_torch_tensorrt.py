"""Real dry runs and real TensorRT-RTX engines of small submodules, without a GPU."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from small_submodules import cosine, make_target, needs_no_gpu, needs_torch_tensorrt, tensors, unconvertible
from torch import nn

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.compute_capabilities import check_this_gpu
from gr00t_trt.backends.torch_tensorrt import backend as module_under_test
from gr00t_trt.backends.torch_tensorrt import engine as trt_build
from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.files import verify
from gr00t_trt.engines.key import weights_hash
from gr00t_trt.errors import BackendError, PlanError, RecordError
from gr00t_trt.model.targets import DimRange, Target
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions

OPTIONS = BuildOptions(use_fp32_acc=True)
PLAN_MAGIC = (b"ftrt", b"vtrt")


def build(target, options=OPTIONS, engine_dir=None, progress=lambda phase: None):
    return get_backend("torch_tensorrt").build(target, options, BuildContext(engine_dir, progress))


class TestAvailability:
    def test_not_installed(self, monkeypatch):
        def forbidden():
            raise AssertionError("imported torch_tensorrt although it is not installed")

        monkeypatch.setattr(module_under_test, "_distribution", lambda name: None)
        monkeypatch.setattr(module_under_test, "cpu_only", forbidden)
        available = get_backend("torch_tensorrt").availability()
        assert not available.installed
        assert "[tensorrt]'" in available.reason
        assert "[rtx]'" in available.reason
        assert set(available.versions) == {"torch"}
        with pytest.raises(BackendError, match="attention: Torch-TensorRT is not installed"):
            build(make_target("attention"))

    def test_installed_but_broken(self, monkeypatch):
        def broken():
            raise ImportError("libnvinfer.so.11: cannot open shared object file")

        monkeypatch.setattr(module_under_test, "_distribution", lambda name: "2.13.0")
        monkeypatch.setattr(module_under_test, "cpu_only", broken)
        available = get_backend("torch_tensorrt").availability()
        assert not available.installed
        assert "cannot be imported: ImportError: libnvinfer.so.11" in available.reason

    def test_here(self, rtx, capfd):
        available = get_backend("torch_tensorrt").availability()
        assert available.installed
        assert set(available.versions) == {"torch", "torch_tensorrt_rtx", "tensorrt_rtx"}
        assert any("experimental" in c for c in available.caveats)
        assert any("No CUDA device: engines are built and not run" in c for c in available.caveats)
        assert capfd.readouterr() == ("", "")

    def test_caveats(self, monkeypatch):
        monkeypatch.setattr(torch, "__version__", "2.14.0+cu130")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert module_under_test._caveats((2, 14), "tensorrt") == []
        outside, mismatch = module_under_test._caveats((2, 15), "tensorrt")
        assert "outside the releases" in outside
        assert "belongs to torch 2.15, and torch 2.14.0+cu130 is installed" in mismatch


@pytest.mark.parametrize("name", ["attention", "decoder", "encoder", "head_dim_72", "head_dim_48"])
def test_one_engine_with_dynamic_shapes(rtx, tmp_path, name, capfd):
    target = make_target(name)
    phases = []
    built = build(target, engine_dir=tmp_path, progress=phases.append)
    assert not built.runs
    assert (built.coverage.engines, built.coverage.percent, built.coverage.unsupported) == (1, 100.0, {})
    assert built.coverage.operators >= 10
    with torch.inference_mode():
        for batch, length in ((1, 20), (4, 40), (2, 8)):
            args = tensors(name, batch, length)
            assert cosine(built.call(*args), target.module(*args)) > 0.99999

    plan = built.engine.path.read_bytes()
    weights = sum(p.nbytes for p in target.module.parameters())
    assert plan[:4] in PLAN_MAGIC
    assert len(plan) == built.engine_bytes > weights
    manifest = verify(built.engine.path)
    assert [b.name for b in manifest.inputs] == list(target.argument_names)
    assert [b.optimum for b in manifest.inputs] == [tuple(x.shape) for x in target.inputs]
    assert manifest.inputs[0].minimum[0] == 1
    assert manifest.inputs[0].maximum[0] == 4
    assert manifest.inputs[-1].dtype == ("bool" if "keep" in target.argument_names else "int64")
    assert manifest.outputs[0].dtype == "float16"
    assert manifest.weights_sha256 == weights_hash(target.module)
    assert manifest.executed is False
    assert manifest.settings["immutable_weights"] is True
    assert phases == ["exporting and partitioning", "building the TensorRT-RTX engine", "writing the engine"]
    assert set(built.phases_s) == {"partition", "engine", "write"}
    assert any("has not run" in note for note in built.notes)
    assert capfd.readouterr() == ("", "")


def test_static_shapes_and_no_folder(rtx):
    target = dataclasses.replace(make_target("encoder"), ranges=({}, {}, {}))
    built = build(target)
    assert built.engine is None
    assert built.engine_bytes > 0
    assert built.settings["require_full_compilation"] is True
    with torch.inference_mode():
        assert cosine(built.call(*target.inputs), target.module(*target.inputs)) > 0.99999


def test_the_module_is_left_as_it_was(rtx):
    target = make_target("attention")
    before = {k: v.clone() for k, v in target.module.state_dict().items()}
    build(target)
    after = target.module.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not target.module.training


def test_targets_of_an_engine(rtx, tmp_path):
    sizes = {}
    for capabilities in ((), ("8.9",), ("7.5", "8.9", "12.0")):
        options = dataclasses.replace(OPTIONS, compute_capabilities=capabilities)
        built = build(make_target("encoder"), options, engine_dir=tmp_path)
        assert verify(built.engine.path).compute_capabilities == capabilities
        sizes[len(capabilities)] = built.engine_bytes
    assert sizes[1] <= sizes[3]


def test_an_unknown_target_is_refused_before_building(rtx):
    options = dataclasses.replace(OPTIONS, compute_capabilities=("9.0",))
    phases = []
    with pytest.raises(PlanError, match=r"compute_capabilities: unknown value '9.0'\n.*7\.5, 8\.0, 8\.6, 8\.9, 12\.0"):
        build(make_target("encoder"), options, progress=phases.append)
    assert phases == []


def test_an_unwritable_folder_is_refused_before_building(rtx, tmp_path):
    (tmp_path / "file").write_text("")
    phases = []
    with pytest.raises(RecordError, match="a file stands where the folder should be"):
        build(make_target("attention"), engine_dir=tmp_path / "file", progress=phases.append)
    assert phases == []


def test_a_target_list_without_this_gpu_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    check_this_gpu(("8.6", "8.9"))
    with pytest.raises(PlanError, match=r"\['8.9'\] leaves out this GPU, 8.6"):
        check_this_gpu(("8.9",))


def test_leftover_operators_are_an_error_that_names_them(rtx):
    with pytest.raises(
        BackendError, match=r"odd_one: \d+ of \d+ operators .* PyTorch: .*lgamma.* x1\n.*exactly one eng"
    ):
        build(unconvertible())


def test_leftover_operators_are_a_note_when_allowed(rtx, tmp_path):
    built = build(unconvertible(), dataclasses.replace(OPTIONS, require_full_compilation=False), tmp_path)
    assert built.engine is None
    assert list(tmp_path.iterdir()) == []
    assert built.coverage.percent < 100
    assert any("lgamma" in name for name in built.coverage.unsupported)
    assert any("left to PyTorch" in note for note in built.notes)
    x = torch.randn(3, 16)
    assert cosine(built.call(x), unconvertible().module(x)) > 0.99999


class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("no such layer\nsecond line")


def test_a_failed_export_names_the_submodule_and_the_cause(rtx):
    target = Target("vision_model", Failing(), (torch.randn(1, 4),), ("x",), ({},))
    with pytest.raises(
        BackendError, match=r"vision_model: exporting and partitioning failed: .*no such layer"
    ) as error:
        build(target)
    assert error.value.__cause__ is not None
    assert "--debug" in str(error.value)


def test_a_failed_engine_tells_what_tensorrt_said(rtx, monkeypatch):
    # Refittable attention is what TensorRT-RTX fails to build without a GPU.
    monkeypatch.setattr(trt_build, "AHEAD_OF_TIME", {"dryrun": False})
    with pytest.raises(BackendError, match=r"attention: building the TensorRT-RTX engine failed: .*Error Code"):
        build(make_target("attention"))


def test_one_name_with_two_ranges(rtx):
    target = make_target("attention")
    other = dataclasses.replace(target, ranges=(target.ranges[0], {0: DimRange("batch", 1, 1, 2)}))
    with pytest.raises(BackendError, match=r"batch has the ranges \(1, 4\) and \(1, 2\)"):
        build(other)


def test_debug_writes_a_log(rtx, tmp_path):
    import logging

    handlers = logging.getLogger().handlers[:]
    options = dataclasses.replace(OPTIONS, debug=True)
    built = get_backend("torch_tensorrt").build(
        make_target("encoder"), options, BuildContext(tmp_path, print, EngineCache(tmp_path / "cache"))
    )
    assert any(note.startswith("debug: the engine cache was not used") for note in built.notes)
    assert not (tmp_path / "cache").exists()
    assert logging.getLogger().handlers == handlers
    assert (tmp_path / "debug" / "encoder" / "torch_tensorrt_logging.log").stat().st_size > 1000


@needs_torch_tensorrt
@needs_no_gpu
def test_decomposed_attention(rtx):
    target = make_target("attention")
    built = build(target, dataclasses.replace(OPTIONS, decompose_attention=True))
    assert built.coverage.engines == 1
    with torch.inference_mode():
        args = tensors("attention", 2, 13)
        assert cosine(built.call(*args), target.module(*args)) > 0.9999
