"""What a bundle has compiled: packages, engines, quantised layers; loaded again without building anything."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import pytest
import torch
from bundles import actions, equal, made, normal, resolved, started
from small_submodules import make_target

from gr00t_trt.backends import trt_runtime
from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor import products
from gr00t_trt.backends.tensorrt.network import TensorRT
from gr00t_trt.backends.torch_tensorrt import engine
from gr00t_trt.deploy.bundle import package, stages
from gr00t_trt.deploy.bundle.exported_products import ExportedProducts
from gr00t_trt.engines.files import write_engine
from gr00t_trt.engines.manifest import Binding, Description
from gr00t_trt.engines.serialized_engine import input_bindings
from gr00t_trt.errors import ShapeError
from gr00t_trt.model.targets import DimRange, Target
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.tools.calibrate import program as calibrate


@pytest.mark.documented
def test_a_calibration_comes_along(tmp_path: Path) -> None:
    file = tmp_path / "calibration.safetensors"
    line = "--model_path synthetic --dataset_path synthetic --frames 1 --episodes 0 --device cpu --out"
    assert calibrate.main([*line.split(), str(file)]) == 0
    own = {"dit_model": {"precision": "int8"}}
    plan = resolved(precision="bf16", calibration=str(file), submodules=own, gate={"cosine": 0.9, "sqnr_db": 5.0})
    before = actions(normal(plan))
    folder = made(tmp_path / "robot", plan).folder
    file.unlink()
    found = started(folder)
    assert equal(actions(found.policy), before)
    assert found.deployment.backends["dit_model"] == "eager int8"


def test_an_engine_is_loaded_on_its_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a TensorRT made of PyTorch, whose engine takes its inputs in another order than the stage."""
    target = make_target("encoder")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(trt_runtime, "ALIGNMENT", fake_tensorrt.ALIGNMENT)
    trt = TensorRT(sys.modules[fake_tensorrt.__name__], "tensorrt", fake_tensorrt.Log())
    monkeypatch.setattr(trt_runtime, "load_tensorrt", lambda: trt)
    kinds = {torch.float16: fake_tensorrt.DataType.HALF, torch.int64: fake_tensorrt.DataType.INT64}
    order = (2, 0, 1)
    bindings = input_bindings(target)
    inputs = {n: (kinds[getattr(torch, b.dtype)], b.minimum, b.optimum, b.maximum) for n, b in bindings.items()}
    fake_tensorrt.Runtime.ENGINES[b"encoder"] = fake_tensorrt.FakeEngine(
        inputs, ("output", fake_tensorrt.DataType.HALF, (-1, 6, 16)), target.module
    )
    names = [target.argument_names[i] for i in order]
    output = Binding("output", "float16", (-1, 6, 16), (-1, 6, 16), (-1, 6, 16))
    description = Description(
        inputs=tuple(bindings[n] for n in names), outputs=(output,), arguments=order, versions={},
        compute_capabilities=(), options={}, settings={}, weights_sha256="", executed=True,
    )  # fmt: skip
    write_engine(tmp_path, "encoder", b"encoder", description=description)
    call = stages.engine_call(tmp_path, "torch_tensorrt", target)
    with torch.no_grad():
        assert torch.equal(call(*target.inputs), target.module(*target.inputs))
    with pytest.raises(ShapeError, match="built for"):
        call(*(x.repeat_interleave(9, dim=0) for x in target.inputs))


def test_the_pass_over_products_finds_them_in_an_exported_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, as if its products were of half precision on a GPU."""
    layers = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.GELU(approximate="tanh"), torch.nn.Linear(4, 8))
    graph = torch.export.export(layers.eval(), (torch.ones(2, 8),), strict=False).module().graph
    monkeypatch.setattr(products, "_half_on_gpu", lambda node: products._value(node) is not None)
    ExportedProducts()(graph)
    called = [node.target for node in graph.nodes if node.op == "call_function"]
    assert products.linear_gelu in called
    assert torch.nn.functional.linear in called


def test_sizes_of_one_get_a_package_of_their_own() -> None:
    target = make_target("encoder")
    own = package.forms(target)
    assert list(own) == ["one", "any"]
    fixed = {dim.name for ranges in own["one"].ranges for dim in ranges.values() if dim.static}
    assert fixed == {"batch"}
    assert own["any"] is target


@pytest.mark.documented
@pytest.mark.parametrize("stage", ["state_encoder"])
def test_compiled_stages_are_the_same_to_the_bit_and_need_no_compiler(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = resolved(submodules={stage: {"backend": "inductor"}})
    before = normal(plan)
    folder = made(tmp_path / "robot", plan).folder
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("something was compiled"))
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("something was exported"))
    monkeypatch.setenv("PATH", "")
    found = started(folder)
    assert found.deployment.backends[stage] == "inductor fp32"
    assert equal(actions(found.policy), actions(before))
    pair = {key: np.stack([v, v]) if isinstance(v, np.ndarray) else [v[0]] * 2 for key, v in before.example().items()}
    noise = torch.ones(2, 16, 32)
    assert equal(found.policy.get_action(pair, noise=noise), before.get_action(pair, noise=noise))


@pytest.mark.documented
@pytest.mark.usefixtures("rtx")
def test_an_engine_that_cannot_run_here_is_traced_and_not_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = resolved(precision="fp16", submodules={"state_encoder": {"backend": "torch_tensorrt"}})
    before = actions(normal(plan))
    folder = made(tmp_path / "robot", plan).folder
    assert (folder / "engines" / "state_encoder.engine").is_file()
    monkeypatch.setattr(engine, "build_engine", lambda *_: pytest.fail("an engine was built"))
    found = started(folder)
    assert found.deployment.backends["state_encoder"].endswith("dry run: its graph on the CPU")
    assert equal(actions(found.policy), before)


class WithNumbersOfItsOwn(torch.nn.Module):
    """Its table is in no state, as those of quantised formats."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * torch.tensor([1.0 + n for n in range(16)])


@pytest.mark.documented
def test_a_package_of_a_stage_with_numbers_of_its_own_holds_them(tmp_path: Path) -> None:
    module = WithNumbersOfItsOwn().eval()
    target = Target("stage", module, (torch.ones(3, 4),), ("x",), ({0: DimRange("batch", 3, 3, 3)},))
    built = package.PackageBackend(tmp_path).build(target, BuildOptions(), BuildContext())
    with torch.no_grad():
        expected = module(*target.inputs)
        assert torch.equal(built.call(*target.inputs), expected)
        module.linear.weight.zero_()  # the weights are inside, too
        again = package.load_packages(target, tmp_path)
        assert torch.equal(again(*target.inputs), expected)
