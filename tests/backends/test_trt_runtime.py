"""Engines on a GPU, against a TensorRT that is made of PyTorch: which addresses, shapes and streams it is given."""

from __future__ import annotations

import sys
import types

import fake_tensorrt
import pytest
import torch
from fake_tensorrt import DataType, FakeEngine
from small_submodules import make_target

from gr00t_trt.backends import trt_runtime
from gr00t_trt.backends.guarded import GuardedModule
from gr00t_trt.backends.tensorrt.network import TensorRT
from gr00t_trt.backends.trt_runtime import TrtRunner
from gr00t_trt.errors import BackendError, ShapeError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def stream(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    current = types.SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    monkeypatch.setattr(trt_runtime, "ALIGNMENT", fake_tensorrt.ALIGNMENT)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("the host waited"))
    return current


@pytest.fixture
def trt() -> TensorRT:
    return TensorRT(sys.modules[fake_tensorrt.__name__], "tensorrt", fake_tensorrt.Log())


def encoder_engine(**settings: object) -> FakeEngine:
    """As make_target("encoder") has it: batch 1 to 4."""
    target = make_target("encoder")
    kinds = {torch.float16: DataType.HALF, torch.int64: DataType.INT64}
    inputs = {}
    for name, tensor in zip(target.argument_names, target.inputs, strict=True):
        rest = tuple(tensor.shape[1:])
        inputs[name] = (kinds[tensor.dtype], (1, *rest), (1, *rest), (4, *rest))
    return FakeEngine(inputs, ("output", DataType.HALF, (-1, 6, 16)), target.module, **settings)


def load(trt: TensorRT, engine: FakeEngine) -> TrtRunner:
    fake_tensorrt.Runtime.ENGINES[b"encoder"] = engine
    return TrtRunner(b"encoder", make_target("encoder").argument_names, ("output",), CPU, trt=trt)


def sizes(batch: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 6, 8, generator=random).half(), torch.arange(batch) * 250, torch.arange(batch) + 3


def test_same_result_as_eager_at_every_size_in_turn(trt: TensorRT) -> None:
    call, module = load(trt, encoder_engine()), make_target("encoder").module
    for batch in (1, 4, 2, 1, 3):
        expected = module(*sizes(batch))
        actual = call(*sizes(batch))
        assert actual.shape == expected.shape
        assert torch.equal(actual, expected)


def test_the_result_keeps_its_address_and_shapes_are_told_once(trt: TensorRT) -> None:
    engine = encoder_engine()
    call = load(trt, engine)
    first, told = call(*sizes(2)), engine.contexts[0].shape_calls
    addresses = {call(*sizes(2)).data_ptr() for _ in range(3)}
    assert addresses == {first.data_ptr()}
    assert engine.contexts[0].shape_calls == told
    assert call(*sizes(4)).data_ptr() == first.data_ptr()
    assert len(engine.contexts) == 1


def test_it_runs_on_the_callers_stream(trt: TensorRT, stream: types.SimpleNamespace) -> None:
    engine = encoder_engine()
    call = load(trt, engine)
    call(*sizes(1))
    stream.cuda_stream = 9
    call(*sizes(1))
    assert engine.contexts[0].streams == [7, 9]


def test_views_and_odd_addresses_are_copied_and_others_are_not(trt: TensorRT) -> None:
    engine = encoder_engine()
    call, module = load(trt, engine), make_target("encoder").module
    actions, timestep, ids = sizes(3)
    strided = torch.stack((actions, actions), -1)[..., 0]
    odd = torch.cat((torch.zeros(1, dtype=torch.int64), timestep))[1:]
    assert torch.equal(call(strided, odd, ids), module(actions, timestep, ids))
    aligned = torch.empty(1024, dtype=torch.float16)
    start = (-aligned.data_ptr() % fake_tensorrt.ALIGNMENT) // 2
    aligned = aligned[start : start + actions.numel()].view(actions.shape).copy_(actions)
    call(aligned, timestep, ids)
    assert engine.contexts[0].addresses["actions"] == aligned.data_ptr()


def test_behind_its_guard_nothing_outside_the_range_reaches_it(trt: TensorRT) -> None:
    engine = encoder_engine()
    guarded = GuardedModule(make_target("encoder"), load(trt, engine))
    with pytest.raises(ShapeError, match="actions has batch 5"):
        guarded(*sizes(5))
    with pytest.raises(ShapeError, match="dtype"):
        guarded(sizes(1)[0].float(), *sizes(1)[1:])
    assert engine.contexts[0].streams == []


def test_an_input_that_the_network_does_not_use_is_left_out(trt: TensorRT) -> None:
    engine = encoder_engine()
    del engine.inputs["timestep"]
    engine.run = lambda actions, ids: make_target("encoder").module(actions, torch.zeros_like(ids), ids)
    actions, timestep, ids = sizes(2)
    assert load(trt, engine)(actions, timestep, ids).shape == (2, 6, 16)


def test_what_tensorrt_refuses_is_an_error_that_names_the_submodule(trt: TensorRT) -> None:
    with pytest.raises(BackendError, match="no memory on cpu"):
        load(trt, encoder_engine(context=False))
    engine = encoder_engine()
    call = load(trt, engine)
    engine.contexts[0].execute_async_v3 = lambda stream: False  # type: ignore[method-assign]
    with pytest.raises(BackendError, match="TensorRT did not run the engine"):
        call(*sizes(1))
    with pytest.raises(BackendError, match=r"TensorRT refused actions of shape \(5, 6, 8\)"):
        call(*sizes(5))
    engine.outputs["second"] = engine.outputs["output"]
    with pytest.raises(BackendError, match="the engine's outputs are output, second and not output"):
        load(trt, engine)


def test_a_foreign_engine_is_refused_in_tensorrts_own_words(trt: TensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt.module, "__version__", "10.9", raising=False)
    with pytest.raises(BackendError, match=r"tensorrt 10\.9 cannot load the engine: Serialization assertion: Version"):
        TrtRunner(b"bad", ("x",), ("output",), CPU, trt=trt)
    assert trt.log.errors == []
