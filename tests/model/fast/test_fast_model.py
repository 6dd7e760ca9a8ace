"""One restructured model through changing requests, settings and weights: nothing kept is ever stale."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gr00t_trt.errors import ObservationError, PlanError
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.model.n1_5.fast import FastGr00tN1d5, restructure
from gr00t_trt.model.n1_5.fast.projections import Projections
from gr00t_trt.model.n1_5.fast.weight_cache import WeightCache
from gr00t_trt.plans.schema import LOOPS


def act(model, inputs, start: Tensor) -> Tensor:
    return model.get_action(inputs, noise=start)["action_pred"]


def agree(model: FastGr00tN1d5, reference: Gr00tN1d5, inputs, start: Tensor, tolerance: float = 1e-5) -> None:
    assert float((act(model, inputs, start) - act(reference, inputs, start)).abs().max()) < tolerance


@pytest.mark.parametrize("loop", LOOPS)
def test_settings_and_requests_change_between_calls(plain: Gr00tN1d5, make_fast, make_request, noise, loop) -> None:
    reference, model = copy.deepcopy(plain), make_fast()
    model.loop = loop
    requests = [
        make_request(1),
        make_request(2),
        make_request(1, seed=1, words=24),
        make_request(1, views=2),
        make_request(2, padding=4),
        make_request(2, same=True),
        make_request(1) | {"embodiment_id": torch.tensor([3])},
    ]
    for steps in (1, 2, 4, 8, 4):
        model.denoising_steps = reference.denoising_steps = steps
        for inputs in requests[:2]:
            agree(model, reference, inputs, noise(len(inputs["state"])))
    for inputs in (*requests, *requests):
        agree(model, reference, inputs, noise(len(inputs["state"])))
    for horizon in (8, 20, 16):
        model.action_horizon = reference.action_horizon = horizon
        for inputs in requests[:2]:
            agree(model, reference, inputs, noise(len(inputs["state"]), horizon))


def test_what_is_kept_is_computed_once(make_fast, make_request, noise, monkeypatch: pytest.MonkeyPatch) -> None:
    from gr00t_trt.model.n1_5.fast import constants, prompts

    calls: list[str] = []
    for module, name in ((constants, "modulation_rows"), (prompts, "rotation_table")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _n=name, _r=real: (calls.append(_n), _r(*a))[1])
    model = make_fast()
    for loop in LOOPS:
        model.loop = loop
        act(model, make_request(1), noise(1))
        act(model, make_request(1) | {"state": torch.zeros(1, 1, 64)}, noise(1))
    assert sorted(calls) == ["modulation_rows", "rotation_table"]


def test_prepared_requests(plain: Gr00tN1d5, make_fast, make_request, noise) -> None:
    model, inputs = make_fast(), make_request(2)
    prepared = model.prepare(inputs)
    assert (prepared.prompt.key_mask, prepared.prompt.query_mask) == (None, None)
    for model.denoising_steps in (4, 2):
        plain_like = copy.deepcopy(plain)
        plain_like.denoising_steps = model.denoising_steps
        assert torch.equal(act(model, prepared, noise(2)), act(model, inputs, noise(2)))
        agree(model, plain_like, inputs, noise(2))


def test_weights_loaded_or_written_in_place_are_seen(make_fast, make_request, noise) -> None:
    inputs, start = make_request(2), noise(2)
    model = make_fast()
    before = act(model, inputs, start)
    other = load_model("synthetic")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.02)
    model.load_state_dict(other.state_dict())
    agree(model, other, inputs, start)
    assert float((act(model, inputs, start) - before).abs().max()) > 1e-3
    with torch.no_grad():
        for owner in (model, other):
            owner.action_head.action_encoder.W1.W.mul_(1.1)
            owner.action_head.model.transformer_blocks[0].norm1.linear.bias.add_(0.1)
            owner.action_head.model.transformer_blocks[0].attn1.to_q.weight.mul_(0.9)
            owner.backbone.eagle_model.language_model.model.embed_tokens.weight.mul_(0.9)
    agree(model, other, inputs, start)
    model.load_state_dict(copy.deepcopy(load_model("synthetic")).state_dict(), assign=True)
    assert float((act(model, inputs, start) - before).abs().max()) < 1e-5


def test_loading_into_the_plain_model_is_seen(plain: Gr00tN1d5, make_request, noise) -> None:
    inputs, start = make_request(2), noise(2)
    below = copy.deepcopy(plain)
    model = restructure(below)
    act(model, inputs, start)
    below.load_state_dict({k: v * 0.9 for k, v in plain.state_dict().items()})
    agree(model, below, inputs, start)


def test_no_weight_is_stored_twice(plain: Gr00tN1d5, tmp_path: Path) -> None:
    below = copy.deepcopy(plain)
    model = restructure(below)
    storages = {p.untyped_storage().data_ptr() for p in below.parameters()}
    for name, stage in model._eager.items():
        assert {p.untyped_storage().data_ptr() for p in stage.parameters()} <= storages, name
    total = sum(p.numel() * 4 for p in below.parameters())
    by_storage = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in below.parameters()}
    assert sum(by_storage.values()) == total
    assert set(model.state_dict()) == set(plain.state_dict())
    save_file(model.state_dict(), str(tmp_path / "weights.safetensors"))
    assert not set(load_file(str(tmp_path / "weights.safetensors"))) ^ set(plain.state_dict())
    again = restructure(below)
    assert {p.data_ptr() for p in again.eager_stage("dit_model").parameters()} == {
        p.data_ptr() for p in model.eager_stage("dit_model").parameters()
    }


def test_casting(plain: Gr00tN1d5, make_fast, make_request, noise) -> None:
    inputs, start = make_request(2, padding=2), noise(2)
    expected = act(plain, inputs, start)
    for name in make_fast().stages:
        model = make_fast()
        model.cast_stage(name, torch.bfloat16)
        assert model.stage_dtypes[name] == torch.bfloat16
        # One granularity casts argument by argument, one stage by stage; the loop is made of steps.
        for model.loop in ("submodules", "denoise_loop"):
            actions = act(model, inputs, start)
            assert actions.dtype == torch.float32
            assert 0 < float((actions - expected).norm() / (expected - start).norm()) < 0.15, name
    model = make_fast().to(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {p.dtype for stage in model._eager.values() for p in stage.parameters()} == {torch.bfloat16}
    assert set(model.stage_dtypes.values()) == {torch.bfloat16}
    same = restructure(load_model("synthetic", dtype=torch.bfloat16))
    assert torch.equal(act(model, inputs, start), act(same, inputs, start))
    model = make_fast()
    model.cast_glue(torch.float16)
    assert model.dtype == torch.float16
    assert float((act(model, inputs, start) - expected).norm() / (expected - start).norm()) < 0.15
    with pytest.raises(PlanError, match="did you mean dit_model"):
        model.cast_stage("dit_modle", torch.float16)


def test_a_copy_is_independent(make_fast, make_request, noise) -> None:
    inputs, start = make_request(1), noise(1)
    model = make_fast()
    expected = act(model, inputs, start)
    twin = copy.deepcopy(model)
    assert torch.equal(act(twin, inputs, start), expected)
    twin.cast_stage("dit_model", torch.bfloat16)
    assert model.stage_dtypes["dit_model"] == torch.float32
    assert torch.equal(act(model, inputs, start), expected)


def test_stages_can_be_replaced_and_come_back(make_fast, make_request, noise) -> None:
    inputs, start = make_request(1), noise(1)
    model = make_fast()
    expected = act(model, inputs, start)
    seen: list[tuple[int, ...]] = []

    def spy(*args: Tensor) -> Tensor:
        seen.append(tuple(args[0].shape))
        return model.eager_stage("denoise_step")(*args)

    model.stages["denoise_step"] = spy
    model.loop = "denoise_step"
    torch.testing.assert_close(act(model, inputs, start), expected)
    assert seen == [(1, 16, 32)] * 4
    model.reset_stages()
    act(model, inputs, start)
    assert len(seen) == 4


def test_bad_inputs_are_named(make_fast, make_request, noise) -> None:
    with pytest.raises(ObservationError, match=r"noise: shape \(1, 16, 32\)"):
        make_fast().get_action(make_request(2), noise=noise(1))
    inputs = make_request(1)
    del inputs["state"]
    with pytest.raises(ObservationError, match="no state"):
        make_fast().get_action(inputs)


def test_noise_is_fresh_and_reproducible(make_fast, make_request) -> None:
    model, inputs = make_fast(), make_request(1)
    torch.manual_seed(3)
    first, second = (model.get_action(inputs)["action_pred"] for _ in range(2))
    assert float((first - second).abs().mean()) > 0.1
    torch.manual_seed(3)
    assert torch.equal(model.get_action(inputs)["action_pred"], first)


def test_a_weight_cache_is_bounded() -> None:
    kept: WeightCache[int] = WeightCache(2)
    made: list[int] = []

    def value(key: int) -> int:
        return kept.get(key, lambda: (made.append(key), key)[1])

    assert [value(k) for k in (1, 2, 1, 3, 1, 2)] == [1, 2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
    assert len(kept) == 2


def test_projections_share_with_their_layers() -> None:
    layers = [torch.nn.Linear(4, n).requires_grad_(False) for n in (6, 2)]
    x = torch.randn(3, 4)
    separate = [layer(x) for layer in layers]
    fused = Projections(layers, fused=True)
    for a, b in zip(fused(x), separate, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        layers[1].weight.mul_(2)
    torch.testing.assert_close(fused(x)[1], layers[1](x))
    assert [n for n, _ in fused.named_parameters()] == ["product.weight", "product.bias"]
    before = fused.product.weight
    fused.join()
    assert fused.product.weight is before
    layers[0].double()
    layers[1].double()
    fused.join()
    assert fused.product.weight.dtype == torch.float64
