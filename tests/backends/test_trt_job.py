"""The steps of a build: on a GPU with engines that compute in PyTorch, without one with real ones, cached or not."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import shutil
import sys
import types

import pytest
import torch
from small_submodules import BATCH, cosine, make_target, tensors, unconvertible
from torch import nn

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.cpu_only import cpu_only
from gr00t_trt.backends.torch_tensorrt import backend as torch_tensorrt
from gr00t_trt.backends.torch_tensorrt import engine as trt_build
from gr00t_trt.backends.torch_tensorrt import partition as trt_partition
from gr00t_trt.backends.torch_tensorrt.job import TrtJob
from gr00t_trt.backends.torch_tensorrt.settings import map_settings
from gr00t_trt.backends.trt_log import compiler_log
from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.files import engine_paths, verify
from gr00t_trt.engines.manifest import checksum
from gr00t_trt.engines.serialized_engine import SerializedEngine, binding
from gr00t_trt.errors import BackendError, ShapeError
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.quantize.linear import QuantLinear

OPTIONS = BuildOptions(use_fp32_acc=True)


def forbidden(*args, **kwargs):
    raise AssertionError("something was exported or built")


def given_runtime(monkeypatch, compute):
    """A TensorRT runtime that computes in PyTorch; returns the list of what it was asked to load."""
    loaded = []

    class TrtRunner:
        engine = types.SimpleNamespace(num_layers=7)

        def __init__(self, plan, inputs, outputs, device):
            loaded.append((plan, list(inputs), list(outputs)))

        def __call__(self, *args):
            return compute(*args)

    runtime = types.ModuleType("trt_runtime")
    runtime.TrtRunner = TrtRunner
    monkeypatch.setitem(sys.modules, "gr00t_trt.backends.trt_runtime", runtime)
    return loaded


class EngineStandIn(nn.Module):
    """An engine module as a GPU build leaves it in the graph, computing in PyTorch."""

    def __init__(self, graph, inputs):
        super().__init__()
        self.graph_module = graph
        self.serialized_engine = b"ftrt" + bytes(100)
        self.input_binding_names = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
        self.output_binding_names = ["output0"]

    def forward(self, *args):
        return self.graph_module(*args)

    def set_output_tensors_as_unowned(self, enabled):
        self.unowned = enabled

    def get_layer_info(self):
        return json.dumps({"Layers": ["first", "second", "third"], "Bindings": []})


def run_on_gpu(patch, target, options=OPTIONS, engine_dir=None, cache=None, *, really=False):
    """A build as on a GPU: what was built, and the settings of every conversion to an engine.

    Args:
        really: Build the engines too, which cannot run and are thrown away.
    """
    with compiler_log(debug=False) as log, cpu_only() as module:
        from torch_tensorrt.dynamo import _compiler
        from torch_tensorrt.dynamo.conversion import interpret_module_to_result

        converted = []

        def convert_module(graph, inputs, settings, **kwargs):
            converted.append(settings)
            if really:  # without a GPU no refittable engine can be built; the stand-in needs its constants afterwards
                whole = copy.deepcopy(graph)
                interpret_module_to_result(whole, inputs, dataclasses.replace(settings, immutable_weights=True))
            return EngineStandIn(graph, inputs)

        patch.setattr(_compiler, "convert_module", convert_module)
        patch.setattr(torch.cuda, "synchronize", lambda: None)
        fields = torch_tensorrt._field_names()
        settings = map_settings(
            options, release=(2, 13), fields=fields, flavour="tensorrt", cuda=True, timing_cache_path="timings"
        )
        job = TrtJob(
            torch_tensorrt=module, target=target, options=options, settings=settings, flavour="tensorrt", cuda=True,
            engine_dir=engine_dir, cache=cache, versions={}, progress=lambda phase: None, log=log,
        )  # fmt: skip
        return job.run(), converted


@pytest.fixture
def run(rtx, monkeypatch):
    return functools.partial(run_on_gpu, monkeypatch)


class TestGpuBuild:
    """The steps of a build on a GPU, with engines that compute in PyTorch."""

    def test_builds_once_runs_and_writes(self, run, tmp_path):
        target = make_target("attention")
        built, converted = run(target, engine_dir=tmp_path)
        assert built.runs
        assert (built.coverage.engines, built.coverage.percent) == (1, 100.0)
        assert set(built.phases_s) == {"build", "warm", "write"}
        with torch.inference_mode():
            for batch, length in ((1, 8), (4, 40), (2, 13)):
                args = tensors("attention", batch, length)
                assert cosine(built.call(*args), target.module(*args)) > 0.99999
        assert len(converted) == 1
        settings = converted[0]
        assert (settings.dryrun, settings.immutable_weights, settings.attn_bias_is_causal) == (False, False, False)
        assert (settings.min_block_size, settings.truncate_double, settings.use_fp32_acc) == (1, True, True)
        assert (settings.require_full_compilation, settings.timing_cache_path) == (True, "timings")
        manifest = verify(built.engine.path)
        assert manifest.executed is True
        assert [(b.name, b.optimum) for b in manifest.inputs] == [("hidden", (1, 20, 32)), ("keep", (1, 20))]

    def test_names_leftover_operators_before_building_engines(self, run):
        with pytest.raises(BackendError, match=r"odd_one: .* PyTorch: .*lgamma.* x1"):
            run(unconvertible())

    def test_counts_leftover_operators_between_engines(self, run):
        built, converted = run(unconvertible(), dataclasses.replace(OPTIONS, require_full_compilation=False))
        assert len(converted) == built.coverage.engines == 2
        assert list(built.coverage.unsupported.values()) == [1]
        assert built.coverage.converted == built.coverage.operators - 1
        assert built.engine_bytes is None
        assert (built.layers_before, built.layers_after) == (None, 6)  # of both engines

    def test_a_dropped_hint_is_an_error(self, run, monkeypatch):
        from torch_tensorrt import MutableTorchTensorRTModule

        monkeypatch.setattr(MutableTorchTensorRTModule, "_validates_dynamic_hints", lambda self: False)
        with pytest.raises(BackendError, match="dropped the dynamic shapes"):
            run(make_target("attention"))


def test_an_engine_of_quantised_layers_on_a_gpu_cannot_be_refitted(run, monkeypatch, tmp_path):
    """The mutable module would build one that can; nobody has seen codes survive a refit."""
    layer = nn.Linear(32, 32).bfloat16().requires_grad_(False)
    x = torch.randn(1, 20, 32).bfloat16()
    made = QuantLinear(layer, "fp8", torch.full((32,), 4.0))
    target = Target("quantised", nn.Sequential(made).eval(), (x,), ("x",), ({0: BATCH},))
    given_runtime(monkeypatch, target.module)
    engine = SerializedEngine(b"ftrt" + bytes(9), (binding("x", x, {0: BATCH}),), (), (0,), 12)
    monkeypatch.setattr(trt_build, "build_engine", lambda *args: engine)
    built, converted = run(target, engine_dir=tmp_path)
    assert converted == []  # by the mutable module
    assert (built.runs, built.engine_bytes, built.layers_before, built.layers_after) == (True, 13, 12, 7)
    assert set(built.phases_s) == {"partition", "engine", "write", "load", "warm"}
    assert verify(built.engine.path).settings["immutable_weights"] is True
    assert torch.equal(built.call(x), target.module(x))


def copied(cache, folder):
    """A cache of a test's own, with the same engines."""
    shutil.copytree(cache.folder, folder)
    return EngineCache(folder)


OFFLOADING = BuildOptions(cpu_offload=True)


@pytest.fixture(scope="module")
def kept_on_gpu(rtx, tmp_path_factory):
    cache = EngineCache(tmp_path_factory.mktemp("kept_on_gpu"))
    with pytest.MonkeyPatch.context() as patch:
        return cache, run_on_gpu(patch, make_target("encoder"), OFFLOADING, cache=cache, really=True)[0]


class TestKeptGpuEngines:
    """A second start on a GPU, with a TensorRT runtime that computes in PyTorch."""

    def test_runs_the_kept_engine_and_exports_nothing(self, run, kept_on_gpu, tmp_path, monkeypatch):
        cache, built = kept_on_gpu
        target = make_target("encoder")
        loaded = given_runtime(monkeypatch, target.module)
        moved = []
        monkeypatch.setattr(type(target.module), "to", lambda self, device: moved.append(device))
        monkeypatch.setattr(trt_partition, "partition", forbidden)
        again, converted = run(target, OFFLOADING, engine_dir=tmp_path / "engines", cache=cache)
        assert (built.from_cache, again.from_cache, again.runs) == (False, True, True)
        assert converted == []
        assert loaded == [(b"ftrt" + bytes(100), ["actions", "timestep", "embodiment_id"], ["output0"])]
        assert (again.coverage, again.engine_bytes) == (built.coverage, built.engine_bytes)
        # Layers: of the network, told by the build and then by the manifest; of the engine, told by whatever runs it.
        assert again.layers_before == built.layers_before > 10
        assert (built.layers_after, again.layers_after) == (3, 7)
        assert set(again.phases_s) == {"key", "load", "warm"}
        assert verify(again.engine.path).executed
        assert moved == ["cpu"]  # cpu_offload is about the weights in PyTorch, whoever built the engine
        args = tensors("encoder", 2, 0)
        assert torch.equal(again.call(*args), target.module(*args))
        with pytest.raises(ShapeError, match="batch"):
            again.call(*tensors("encoder", 5, 0))

    def test_inputs_that_the_engine_leaves_out_are_not_handed_to_it(self, run, kept_on_gpu, tmp_path, monkeypatch):
        cache = copied(kept_on_gpu[0], tmp_path / "own")
        manifest = engine_paths(cache.folder, cache.stems()[0])[1]
        described = json.loads(manifest.read_text())
        described |= {"inputs": described["inputs"][::2], "arguments": [0, 2]}
        del described["checksum"]
        manifest.write_text(json.dumps({**described, "checksum": checksum(described)}))
        given_runtime(monkeypatch, lambda *args: args)
        target = make_target("encoder")
        built, _ = run(target, OFFLOADING, cache=cache)
        assert built.call(*target.inputs) == (target.inputs[0], target.inputs[2])

    @pytest.mark.parametrize("broken", ["loading", "running"])
    def test_one_that_does_not_run_is_built_again(self, run, kept_on_gpu, tmp_path, monkeypatch, broken):
        def fail(*args):
            raise RuntimeError("engine of another device")

        given_runtime(monkeypatch, fail)
        if broken == "loading":
            monkeypatch.setattr(sys.modules["gr00t_trt.backends.trt_runtime"], "TrtRunner", fail)
        target = make_target("encoder")
        built, converted = run(target, OFFLOADING, cache=copied(kept_on_gpu[0], tmp_path / "own"))
        assert (built.from_cache, len(converted)) == (False, 1)
        assert any("The engine in the cache was built again: encoder: " in note for note in built.notes)
        args = tensors("encoder", 2, 0)
        assert cosine(built.call(*args), target.module(*args)) > 0.99999


def build(cache, options=OPTIONS, engine_dir=None):
    backend = get_backend("torch_tensorrt")
    return backend.build(make_target("encoder"), options, BuildContext(engine_dir, lambda phase: None, cache))


@pytest.fixture(scope="module")
def kept(rtx, tmp_path_factory):
    cache = EngineCache(tmp_path_factory.mktemp("kept"))
    return cache, build(cache)


@pytest.fixture
def own(kept, tmp_path):
    return copied(kept[0], tmp_path / "own")


class TestKeptEngines:
    """Real TensorRT-RTX engines, without a GPU."""

    def test_a_second_start_builds_nothing(self, kept, tmp_path, monkeypatch):
        cache, built = kept
        monkeypatch.setattr(trt_build, "build_engine", forbidden)
        again = build(cache, engine_dir=tmp_path)
        assert (built.from_cache, again.from_cache) == (False, True)
        assert set(again.phases_s) == {"partition", "key"}
        assert (again.coverage, again.engine_bytes) == (built.coverage, built.engine_bytes)
        assert again.layers_before == built.layers_before == verify(built.engine.path).layers > 10
        assert built.layers_after is again.layers_after is None
        assert "The engine is from the cache: an earlier run built it." in again.notes
        # What was kept, and what was asked for with --engine_dir, are the same bytes.
        assert built.engine.path.parent == cache.folder
        assert again.engine.path == engine_paths(tmp_path, "encoder")[0]
        assert verify(again.engine.path).sha256 == verify(built.engine.path).sha256
        assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.engine", "encoder.manifest.json"]
        with torch.inference_mode():
            args = tensors("encoder", 3, 0)
            assert cosine(again.call(*args), make_target("encoder").module(*args)) > 0.99999

    def test_one_altered_byte_is_not_trusted(self, own):
        (stem,) = own.stems()
        engine, _ = engine_paths(own.folder, stem)
        whole = engine.read_bytes()
        middle = len(whole) // 2
        engine.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
        built = build(own)
        assert not built.from_cache
        assert any("was not trusted, and built again" in note and "bytes differ" in note for note in built.notes)
        assert own.entry(stem).damage is None

    def test_an_engine_of_another_graph_is_not_used(self, own, monkeypatch):
        monkeypatch.setattr(trt_partition, "graph_hash", lambda part: "0" * 64)
        built = build(own)
        assert not built.from_cache
        assert any("of another graph" in note for note in built.notes)

    def test_other_settings_are_another_engine(self, own, monkeypatch):
        monkeypatch.setattr(trt_build, "build_engine", forbidden)
        with pytest.raises(BackendError, match="something was exported or built"):
            build(own, BuildOptions())

    def test_a_cache_that_cannot_be_written_costs_nothing_but_a_note(self, rtx, tmp_path):
        (tmp_path / "file").write_text("")
        built = build(EngineCache(tmp_path / "file"), engine_dir=tmp_path / "engines")
        assert not built.from_cache
        assert any(note.startswith("The engine is not in the cache: ") for note in built.notes)
        assert verify(built.engine.path).submodule == "encoder"
