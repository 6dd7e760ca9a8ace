"""The model end to end: noise, batching, precision, stages, and the checks on its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gr00t_trt.errors import ObservationError, PlanError
from gr00t_trt.model import Gr00tN1d5, load_model
from gr00t_trt.plans.schema import SUBMODULES

MakeRequest = Callable[..., dict[str, Tensor]]


def noise(batch: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, 16, 32, generator=torch.Generator().manual_seed(seed))


def act(model: Gr00tN1d5, inputs: Any, start: Tensor | None = None) -> Tensor:
    return model.get_action(inputs, noise=start)["action_pred"]


def test_result_and_reproducibility(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs = make_request(2)
    first = act(shared_tiny, inputs | {"ignored": "text"}, noise(2))
    assert first.shape == (2, 16, 32)
    assert first.dtype == torch.float32
    assert not first.requires_grad
    assert torch.equal(act(shared_tiny, inputs, noise(2)), first)


def test_noise_is_fresh_for_every_call_and_sample(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    one = make_request(1)
    twins = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in one.items()}
    torch.manual_seed(3)
    first, second = act(shared_tiny, twins), act(shared_tiny, twins)
    assert float((first - second).abs().mean()) > 0.1
    assert float((first[0] - first[1]).abs().mean()) > 0.1
    torch.manual_seed(3)
    assert torch.equal(act(shared_tiny, twins), first)


@pytest.mark.parametrize("key", ["state", "eagle_pixel_values", "eagle_input_ids"])
def test_every_input_matters(shared_tiny: Gr00tN1d5, make_request: MakeRequest, key: str) -> None:
    inputs, other = make_request(1), make_request(1, seed=1)
    difference = act(shared_tiny, inputs | {key: other[key]}, noise(1)) - act(shared_tiny, inputs, noise(1))
    assert float(difference.abs().mean()) > 5e-3


def test_embodiment_selects_weights(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs = make_request(1)
    other = act(shared_tiny, inputs | {"embodiment_id": torch.tensor([17])}, noise(1))
    assert float((other - act(shared_tiny, inputs, noise(1))).abs().mean()) > 0.1


def test_a_batch_of_mixed_embodiments_equals_single_requests(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs, start = make_request(2, views=2), noise(2)
    together = act(shared_tiny, inputs, start)
    for i in range(2):
        images = inputs["eagle_pixel_values"][2 * i : 2 * i + 2]
        single = {k: v[i : i + 1] for k, v in inputs.items()} | {"eagle_pixel_values": images}
        torch.testing.assert_close(act(shared_tiny, single, start[i : i + 1]), together[i : i + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision(shared_tiny: Gr00tN1d5, make_request: MakeRequest, dtype: torch.dtype, bound: float) -> None:
    inputs = make_request(2)
    inputs["eagle_attention_mask"][0, :4] = 0
    got = act(load_model("synthetic", dtype=dtype), inputs, noise(2))
    expected = act(shared_tiny, inputs, noise(2))
    assert got.dtype == torch.float32
    assert bool(got.isfinite().all())
    assert float((got - expected).norm() / (expected - noise(2)).norm()) < bound


def test_float64_state_and_other_integers_are_taken(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs = make_request(1)
    expected = act(shared_tiny, inputs, noise(1))
    inputs["state"] = inputs["state"].double()
    inputs["eagle_attention_mask"] = inputs["eagle_attention_mask"].bool()
    inputs["embodiment_id"] = inputs["embodiment_id"].int()
    assert torch.equal(act(shared_tiny, inputs, noise(1)), expected)


def test_denoising_steps(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    seen: list[int] = []
    encoder = tiny.stages["action_encoder"]

    def spy(actions: Tensor, timestep: Tensor, embodiment_id: Tensor) -> Tensor:
        seen.append(int(timestep[0]))
        return encoder(actions, timestep, embodiment_id)

    tiny.stages["action_encoder"] = spy
    tiny.get_action(make_request(1))
    tiny.denoising_steps = 3
    tiny.get_action(make_request(1))
    assert seen == [0, 250, 500, 750, 0, 333, 666]
    for bad in (0, 1001, 2.0, True):
        with pytest.raises(PlanError, match="denoising_steps: bad value"):
            tiny.denoising_steps = bad  # type: ignore[assignment]


def test_action_horizon(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    tiny.action_horizon = 8
    assert tiny.get_action(make_request(1))["action_pred"].shape == (1, 8, 32)
    with pytest.raises(PlanError, match="action_horizon: bad value 1025"):
        tiny.action_horizon = 1025


def test_stages_are_all_used_and_restored(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    keys = set(tiny.state_dict())
    calls: dict[str, int] = {}

    def counted(name: str, stage: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def call(*args: Tensor) -> Tensor:
            calls[name] = calls.get(name, 0) + 1
            return stage(*args)

        return call

    assert set(tiny.stages) == {*SUBMODULES, "eagle_backbone"}
    for name, stage in list(tiny.stages.items()):
        tiny.stages[name] = counted(name, stage)
    tiny.get_action(make_request(1))
    once = ("eagle_backbone", "vision_model", "language_model", "vl_components", "state_encoder")
    assert calls == dict.fromkeys(once, 1) | dict.fromkeys(("action_encoder", "dit_model", "action_decoder"), 4)
    assert set(tiny.state_dict()) == keys
    tiny.reset_stages()
    tiny.get_action(make_request(1))
    assert calls["dit_model"] == 4
    with pytest.raises(PlanError, match="did you mean dit_model"):
        tiny.eager_stage("dit_modle")


def test_a_whole_backbone_can_replace_the_composed_one(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs = make_request(1)
    expected = act(tiny, inputs, noise(1))
    tiny.stages["eagle_backbone"] = tiny.eager_stage("eagle_backbone")
    del tiny.stages["vision_model"], tiny.stages["language_model"]
    assert torch.equal(act(tiny, inputs, noise(1)), expected)


@pytest.mark.parametrize("name", SUBMODULES)
def test_one_stage_in_another_dtype(tiny: Gr00tN1d5, make_request: MakeRequest, name: str) -> None:
    inputs = make_request(1)
    expected = act(tiny, inputs, noise(1))
    tiny.cast_stage(name, torch.bfloat16)
    assert {p.dtype for p in tiny.eager_stage(name).parameters()} == {torch.bfloat16}
    assert [n for n, d in tiny.stage_dtypes.items() if d == torch.bfloat16] == [name]
    assert tiny.backbone.eagle_model.language_model.model.embed_tokens.weight.dtype == torch.float32
    got = act(tiny, inputs, noise(1))
    assert got.dtype == torch.float32
    assert 0 < float((got - expected).norm() / (expected - noise(1)).norm()) < 0.15


def test_casting_the_rest(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    tiny.cast_glue(torch.float16)
    assert tiny.dtype == torch.float16
    assert tiny.stage_dtypes["dit_model"] == torch.float32
    tiny.cast_stage("eagle_backbone", torch.bfloat16)
    assert {p.dtype for p in tiny.backbone.parameters()} == {torch.bfloat16}
    assert bool(act(tiny, make_request(1), noise(1)).isfinite().all())
    tiny.half()
    assert {p.dtype for p in tiny.parameters()} == {torch.float16}
    assert set(tiny.stage_dtypes.values()) == {torch.float16}
    assert bool(act(tiny, make_request(1), noise(1)).isfinite().all())


def test_a_copy_is_independent(tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    inputs = make_request(1)
    expected = act(tiny, inputs, noise(1))
    twin = copy.deepcopy(tiny)
    assert torch.equal(act(twin, inputs, noise(1)), expected)
    twin.cast_stage("dit_model", torch.bfloat16)
    assert tiny.stage_dtypes["dit_model"] == torch.float32
    assert torch.equal(act(tiny, inputs, noise(1)), expected)


Change = Callable[[dict[str, Any]], Any]


def set_item(key: str, index: tuple[int, ...], value: float) -> Change:
    def change(inputs: dict[str, Any]) -> None:
        inputs[key] = inputs[key].clone()
        inputs[key][index] = value

    return change


BAD: list[tuple[Change, str]] = [
    (lambda x: x.pop("state"), "no state"),
    (lambda x: x.update(state=x["state"][:, 0]), r"state: shape \(2, 64\)"),
    (lambda x: x.update(state=x["state"][..., :44]), r"state: shape \(2, 1, 44\)"),
    (lambda x: x.update(state=x["state"].numpy()), "state: a ndarray, not a tensor"),
    (lambda x: x.update(state=x["state"].long()), "state: dtype int64"),
    (lambda x: x.update(state=x["state"][:1]), "state: batch 1, but eagle_input_ids has batch 2"),
    (lambda x: x.update(eagle_attention_mask=x["eagle_attention_mask"][:, 1:]), "length 275, but eagle_input_ids"),
    (lambda x: x.update(eagle_pixel_values=x["eagle_pixel_values"][..., :200]), r"shape \(2, 3, 224, 200\)"),
    (lambda x: x.update(eagle_pixel_values=x["eagle_pixel_values"][:1]), "512 image tokens in all, but"),
    (set_item("eagle_input_ids", (1, 8), 4), "sample 1 has 255 image tokens"),
    (set_item("eagle_input_ids", (0, 0), 1024), "token id 1024 is outside the vocabulary"),
    (set_item("eagle_input_ids", (0, 0), -1), "token id -1 is outside the vocabulary"),
    (set_item("embodiment_id", (1,), 32), "embodiment_id: sample 1 has 32"),
    (set_item("embodiment_id", (0,), -1), "embodiment_id: sample 0 has -1"),
    (set_item("state", (1, 0, 5), float("nan")), r"state: nan at \[1, 0, 5\]"),
    (set_item("eagle_pixel_values", (0, 2, 7, 9), float("inf")), r"eagle_pixel_values: inf at \[0, 2, 7, 9\]"),
    (lambda x: x.update(embodiment_id=x["embodiment_id"].float()), "embodiment_id: dtype float32"),
]


@pytest.mark.parametrize(("change", "words"), BAD, ids=[words for _, words in BAD])
def test_bad_inputs_are_named(shared_tiny: Gr00tN1d5, make_request: MakeRequest, change: Change, words: str) -> None:
    inputs: dict[str, Any] = make_request(2)
    change(inputs)
    with pytest.raises(ObservationError, match=words):
        shared_tiny.get_action(inputs)


def test_bad_noise(shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    with pytest.raises(ObservationError, match=r"noise: shape \(1, 16, 32\)"):
        shared_tiny.get_action(make_request(2), noise=noise(1))


@pytest.mark.parametrize(
    "options",
    [
        {"use_vlln": False},
        {"add_pos_embed": False},
        {"project": 64},
        {"interleave": False},
        {"bias": False},
    ],
    ids=lambda o: next(iter(o)),
)
def test_options(options: dict[str, Any], shared_tiny: Gr00tN1d5, make_request: MakeRequest) -> None:
    import dataclasses

    from gr00t_trt.model.n1_5.synthetic import fill_synthetic

    config = shared_tiny.config
    head, backbone = config.action_head, config.backbone
    dit, vl = head.diffusion, head.vl_self_attention
    if "project" in options:
        backbone = dataclasses.replace(backbone, project_to_dim=64)
        vl = dataclasses.replace(vl, attention_head_dim=8)
        dit = dataclasses.replace(dit, cross_attention_dim=64)
        head = dataclasses.replace(head, backbone_embedding_dim=64)
    dit = dataclasses.replace(
        dit,
        interleave_self_attention=options.get("interleave", True),
        attention_bias=options.get("bias", True),
    )
    head = dataclasses.replace(
        head,
        diffusion=dit,
        vl_self_attention=vl,
        use_vlln=options.get("use_vlln", True),
        add_pos_embed=options.get("add_pos_embed", True),
    )
    model = Gr00tN1d5(dataclasses.replace(config, action_head=head, backbone=backbone))
    fill_synthetic(model, dtype=torch.float32, device=torch.device("cpu"))
    keys, known = set(model.state_dict()), set(shared_tiny.state_dict())
    gone = {k for k in known - keys if not k.startswith("action_head.model.transformer_blocks")}
    expected_gone = {
        "use_vlln": {k for k in known if k.startswith("action_head.vl")},
        "add_pos_embed": {"action_head.position_embedding.weight"},
    }
    assert gone == expected_gone.get(next(iter(options)), set())
    linear = {"backbone.eagle_linear.weight", "backbone.eagle_linear.bias"}
    assert keys - known == (linear if "project" in options else set())
    if "bias" in options:
        assert "action_head.model.transformer_blocks.0.attn1.to_q.bias" in known - keys
        assert "action_head.model.transformer_blocks.0.attn1.to_out.0.bias" in keys
    if "interleave" in options:
        assert model.state_dict()["action_head.model.transformer_blocks.1.attn1.to_k.weight"].shape == (96, 128)
    assert bool(act(model, make_request(1), noise(1)).isfinite().all())
