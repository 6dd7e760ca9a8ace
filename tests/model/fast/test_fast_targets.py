"""The compile targets: they export once for all sizes, and a step has half the operators and fewer FLOPs."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from gr00t_trt.compile.build import dimension_ranges
from gr00t_trt.measure.workloads import Request
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.architecture import Arguments
from gr00t_trt.model.n1_5.fast import FastGr00tN1d5, registry, restructure
from gr00t_trt.model.targets import Recording
from gr00t_trt.plans.schema import OPTIMIZATIONS, SUBMODULES, Ranges
from gr00t_trt.record.result import Workload

SIZES = {"batch": (1, 8), "images": (1, 24), "length": (32, 1024)}
UNPADDED = [name for name in registry() if name != "language_model_padded"]


@pytest.fixture(scope="module")
def model(plain: Gr00tN1d5) -> FastGr00tN1d5:
    import copy

    return restructure(copy.deepcopy(plain))


@pytest.fixture(scope="module")
def recording(model: FastGr00tN1d5, make_request) -> Recording:
    return model.record(make_request(2), torch.zeros(2, 16, 32))[0]


def export(module: nn.Module, arguments: Arguments, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in SIZES.items()}
    shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in arguments.values())
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


def test_registry_is_complete(model: FastGr00tN1d5) -> None:
    listed = registry()
    assert set(listed) == {*SUBMODULES, "language_model_padded", "denoise_step", "denoise_loop"}
    for without in ((), *OPTIMIZATIONS):
        names = [n for n in OPTIMIZATIONS if n != without]
        assert all(registry(names).values())
    for name, arguments in listed.items():
        assert tuple(inspect.signature(model.eager_stage(name).forward).parameters) == tuple(arguments)


@pytest.mark.parametrize("name", UNPADDED)
def test_exports_with_dynamic_sizes(model: FastGr00tN1d5, recording: Recording, make_request, name: str) -> None:
    module = model.eager_stage(name)
    program = export(module, registry()[name], recording[name][0].inputs).module()
    for inputs in (make_request(3, words=40), make_request(1, words=12)):
        start = torch.zeros(len(inputs["state"]), 16, 32)
        for call in model.record(inputs, start)[0][name]:
            torch.testing.assert_close(program(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


def test_padded_language_model_exports(model: FastGr00tN1d5, make_request) -> None:
    name = "language_model_padded"
    traced = model.record(make_request(2, padding=3), torch.zeros(2, 16, 32))[0]
    assert torch.equal(traced["language_model"][0].inputs[0], traced[name][0].inputs[0])
    program = export(model.eager_stage(name), registry()[name], traced[name][0].inputs).module()
    call = model.record(make_request(3, words=31, padding=6), torch.zeros(3, 16, 32))[0][name][0]
    torch.testing.assert_close(program(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("without", OPTIMIZATIONS)
def test_other_signatures_export(plain: Gr00tN1d5, make_fast, make_request, without: str) -> None:
    names = [n for n in OPTIMIZATIONS if n != without]
    model = make_fast(names)
    own = model.record(make_request(2), torch.zeros(2, 16, 32))[0]
    program = export(model.eager_stage("denoise_step"), registry(names)["denoise_step"], own["denoise_step"][0].inputs)
    call = model.record(make_request(1, words=31), torch.zeros(1, 16, 32))[0]["denoise_step"][0]
    torch.testing.assert_close(program.module()(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


def test_one_step_serves_all_steps(model: FastGr00tN1d5, recording: Recording) -> None:
    program = export(model.eager_stage("denoise_step"), registry()["denoise_step"], recording["denoise_step"][0].inputs)
    assert len(recording["denoise_step"]) == 4
    for call in recording["denoise_step"]:
        torch.testing.assert_close(program.module()(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


def test_a_recording_counts_every_call(recording: Recording) -> None:
    several = ("action_encoder", "dit_model", "action_decoder", "denoise_step")
    expected = dict.fromkeys(UNPADDED, 1) | dict.fromkeys(several, 4) | {"language_model_padded": 0}
    assert {name: len(calls) for name, calls in recording.items()} == expected


def test_targets_have_their_own_dtypes(make_fast, make_request, recording: Recording) -> None:
    model = make_fast()
    request = Request(Workload(batch=2), {}, make_request(2), torch.zeros(2, 16, 32), batched=True)
    dims = dimension_ranges(model.config, Ranges(), request)
    model.cast_stage("dit_model", torch.bfloat16)
    made = model.target("denoise_step", recording, dims)
    dtypes = {name: x.dtype for name, x in zip(made.argument_names, made.inputs, strict=True)}
    low = {"prefix", "context", "modulation"}
    assert {n for n, d in dtypes.items() if d == torch.bfloat16} == low
    assert {a.name for axes in made.ranges for a in axes.values()} == {"batch", "length"}
    with torch.no_grad():
        assert made.module(*made.inputs).dtype == torch.float32
    # Its keys and values belong to the DiT, the rest of it does not.
    both = model.target("vl_components", recording, dims)
    assert both.inputs[0].dtype == torch.float32
    assert both.module(*both.inputs).dtype == torch.bfloat16
