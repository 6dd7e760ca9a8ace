"""The compile targets: they export once for all sizes, and a step has half the operators and fewer FLOPs."""

from __future__ import annotations

import dataclasses
import inspect
import operator

import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils.flop_counter import FlopCounterMode

from gr00t_trt import submodules
from gr00t_trt.fast import OPTIMISATIONS, FastGr00tN1d5, record, registry, restructure, target
from gr00t_trt.model import Gr00tConfig, Gr00tN1d5, load_config
from gr00t_trt.settings import SUBMODULES, Ranges
from gr00t_trt.submodules import REGISTRY, Recording, Submodule

SIZES = {"batch": (1, 8), "images": (1, 24), "length": (32, 1024)}
UNPADDED = [name for name in registry() if name != "language_model_padded"]


@pytest.fixture(scope="module")
def model(plain: Gr00tN1d5) -> FastGr00tN1d5:
    import copy

    return restructure(copy.deepcopy(plain))


@pytest.fixture(scope="module")
def recording(model: FastGr00tN1d5, make_request) -> Recording:
    return record(model, make_request(2), torch.zeros(2, 16, 32))[0]


def export(module: nn.Module, spec: Submodule, inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    dims = {name: Dim(name, min=low, max=high) for name, (low, high) in SIZES.items()}
    shapes = tuple({axis: dims[name] for axis, name in axes.items()} for axes in spec.arguments.values())
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)


def counts(*programs: ExportedProgram) -> dict[str, int]:
    """Nodes that call something, and operators: indexing into an operator's tuple of results is not one."""
    targets = [node.target for p in programs for node in p.graph.nodes if node.op == "call_function"]
    return {"call_function": len(targets), "operators": sum(t is not operator.getitem for t in targets)}


def test_registry_is_complete(model: FastGr00tN1d5) -> None:
    listed = registry()
    assert set(listed) == {*SUBMODULES, "language_model_padded", "denoise_step", "denoise_loop"}
    for without in ((), *OPTIMISATIONS):
        names = [n for n in OPTIMISATIONS if n != without]
        for name, spec in registry(names).items():
            assert spec.name == name
    for name, spec in listed.items():
        assert tuple(inspect.signature(model.eager_stage(name).forward).parameters) == tuple(spec.arguments)


@pytest.mark.parametrize("name", UNPADDED)
def test_exports_with_dynamic_sizes(model: FastGr00tN1d5, recording: Recording, make_request, name: str) -> None:
    module = model.eager_stage(name)
    program = export(module, registry()[name], recording[name][0].inputs).module()
    for inputs in (make_request(3, words=40), make_request(1, words=12)):
        start = torch.zeros(len(inputs["state"]), 16, 32)
        for call in record(model, inputs, start)[0][name]:
            torch.testing.assert_close(program(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


def test_padded_language_model_exports(model: FastGr00tN1d5, make_request) -> None:
    name = "language_model_padded"
    traced = record(model, make_request(2, padding=3), torch.zeros(2, 16, 32))[0]
    assert torch.equal(traced["language_model"][0].inputs[0], traced[name][0].inputs[0])
    program = export(model.eager_stage(name), registry()[name], traced[name][0].inputs).module()
    call = record(model, make_request(3, words=31, padding=6), torch.zeros(3, 16, 32))[0][name][0]
    torch.testing.assert_close(program(*call.inputs), call.output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("without", ["action_encoder_fold", "cross_attention_kv", "future_tokens"])
def test_other_signatures_export(plain: Gr00tN1d5, make_fast, make_request, without: str) -> None:
    names = [n for n in OPTIMISATIONS if n != without]
    model = make_fast(names)
    own = record(model, make_request(2), torch.zeros(2, 16, 32))[0]
    program = export(model.eager_stage("denoise_step"), registry(names)["denoise_step"], own["denoise_step"][0].inputs)
    call = record(model, make_request(1, words=31), torch.zeros(1, 16, 32))[0]["denoise_step"][0]
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


def test_targets_have_their_own_dtypes(make_fast, recording: Recording) -> None:
    model = make_fast()
    dims = submodules.dimension_ranges(model.config, Ranges(), recording)
    model.cast_stage("dit_model", torch.bfloat16)
    made = target(model, "denoise_step", recording, dims)
    dtypes = {name: x.dtype for name, x in zip(made.argument_names, made.inputs, strict=True)}
    low = {"prefix", "context", "modulation"}
    assert {n for n, d in dtypes.items() if d == torch.bfloat16} == low
    assert {a.name for axes in made.ranges for a in axes.values()} == {"batch", "length"}
    with torch.no_grad():
        assert made.module(*made.inputs).dtype == torch.float32
    # Its keys and values belong to the DiT, the rest of it does not.
    both = target(model, "vl_components", recording, dims)
    assert both.inputs[0].dtype == torch.float32
    assert both.module(*both.inputs).dtype == torch.bfloat16


def without_weights(config: Gr00tConfig) -> tuple[Gr00tN1d5, FastGr00tN1d5]:
    """A plain and a restructured model of one geometry, without memory."""
    with torch.device("meta"):
        plain = Gr00tN1d5(config)
    plain.eval().requires_grad_(False)
    return plain, restructure(plain)


def full_request(model: Gr00tN1d5, batch: int) -> dict[str, torch.Tensor]:
    """One view and 40 other tokens."""
    images = torch.full((batch, model.config.tokens_per_image), model.config.image_token_index)
    ids = torch.cat((torch.arange(40).expand(batch, -1), images), dim=1)
    return {
        "eagle_pixel_values": torch.zeros(batch, 3, 224, 224),
        "eagle_input_ids": ids,
        "eagle_attention_mask": torch.ones_like(ids),
        "state": torch.zeros(batch, 1, 64),
        "embodiment_id": torch.arange(batch),
    }


def test_operators_per_step_are_halved() -> None:
    config = load_config("synthetic:full")
    # The backbone has no part in a step, so one layer of each tower does.
    eagle = dataclasses.replace(config.eagle, vision=dataclasses.replace(config.eagle.vision, num_hidden_layers=1))
    shallow = dataclasses.replace(config, eagle=eagle, backbone=dataclasses.replace(config.backbone, select_layer=1))
    plain, fast = without_weights(shallow)
    inputs, start = full_request(plain, 2), torch.zeros(2, 16, 32, device="meta")
    recorded = submodules.record(plain, inputs, start)[0]
    parts = ("action_encoder", "dit_model", "action_decoder")
    before = counts(*(export(plain.eager_stage(n), REGISTRY[n], recorded[n][0].inputs) for n in parts))
    step = record(fast, inputs, start)[0]["denoise_step"][0].inputs
    after = counts(export(fast.eager_stage("denoise_step"), registry()["denoise_step"], step))
    print(f"per denoising step: {before} plain, {after} restructured, tokens and Euler included")
    assert after["operators"] * 2 <= before["operators"]
    assert after["call_function"] < 0.65 * before["call_function"]


def test_flops_per_call() -> None:
    plain, fast = without_weights(load_config("synthetic:full"))
    inputs, start = full_request(plain, 1), torch.zeros(1, 16, 32, device="meta")
    fast.get_action(inputs, noise=start)  # what is computed once belongs to no call
    gflop = {}
    for name, model in (("plain", plain), ("restructured", fast)):
        with FlopCounterMode(display=False) as counter:
            model.get_action(inputs, noise=start)
        gflop[name] = counter.get_total_flops() / 1e9
    print(f"GFLOP per call: {gflop}")
    # Meta tensors take the attention that is made of products, so nothing escapes the counter: 996 is the geometry's.
    assert gflop["plain"] == pytest.approx(996, abs=1)
    assert gflop["restructured"] <= 910
