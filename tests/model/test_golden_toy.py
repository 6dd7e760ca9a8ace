"""The toy model agrees with what the original implementation computed from the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gr00t_trt.model import Gr00tN1d5, load_model

CASES = ("b1_v1", "b2_v2", "b2_v1_leftpad")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def toy(golden: Path) -> Gr00tN1d5:
    return load_model(golden / "checkpoint")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, golden: Path) -> dict[str, Tensor]:
    return load_file(str(golden / f"case_{request.param}.safetensors"))


def inputs_of(case: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("in."): v for k, v in case.items() if k.startswith("in.")}


def observed_modules(model: Gr00tN1d5) -> Iterator[tuple[str, nn.Module]]:
    eagle, head = model.backbone.eagle_model, model.action_head
    vl_blocks: Any = head.vl_self_attention.transformer_blocks
    vision = eagle.vision_model.vision_model
    yield "vit.embeddings", vision.embeddings
    yield from ((f"vit.layer{i}", layer) for i, layer in enumerate(vision.encoder.layers))
    yield "vit.output", vision
    yield "mlp1", eagle.mlp1[0]
    # The last layer's output is only seen after the final norm, as backbone_features.
    yield from ((f"llm.hidden{i + 1}", x) for i, x in enumerate(eagle.language_model.model.layers[:-1]))
    yield "llm.hidden3", eagle.language_model.model.norm
    yield "vlln", head.vlln
    yield from ((f"vl_self_attention.block{i}", b) for i, b in enumerate(vl_blocks))
    yield "vl_self_attention", head.vl_self_attention
    yield "state_features", head.state_encoder
    yield "step.action_features", head.action_encoder
    yield "step.temb", head.model.timestep_encoder
    yield from ((f"step.dit.block{i}", block) for i, block in enumerate(head.model.transformer_blocks))
    yield "step.dit_output", head.model
    yield "step.decoded", head.action_decoder


def observe(model: Gr00tN1d5, run: Callable[[], object]) -> dict[str, Tensor]:
    """Outputs of the observed modules and inputs of two stages during `run`, under the names of the golden data."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, _args, output: seen.setdefault(name, []).append(output)

    handles = [module.register_forward_hook(note(name)) for name, module in observed_modules(model)]
    encode, dit, language = (model.stages[n] for n in ("action_encoder", "dit_model", "language_model"))

    def encode_and_note(actions: Tensor, timestep: Tensor, embodiment_id: Tensor) -> Tensor:
        seen.setdefault("step.actions_in", []).append(actions)
        seen.setdefault("step.timestep", []).append(timestep)
        return encode(actions, timestep, embodiment_id)

    def dit_and_note(hidden_states: Tensor, features: Tensor, timestep: Tensor) -> Tensor:
        seen.setdefault("step.sa_embs", []).append(hidden_states)
        return dit(hidden_states, features, timestep)

    def language_and_note(inputs_embeds: Tensor, attention_mask: Tensor) -> Tensor:
        seen["llm.hidden0"] = [inputs_embeds]
        return language(inputs_embeds, attention_mask)

    model.stages.update(action_encoder=encode_and_note, dit_model=dit_and_note, language_model=language_and_note)
    try:
        run()
    finally:
        model.reset_stages()
        for handle in handles:
            handle.remove()
    flat = {}
    for name, values in seen.items():
        if name.startswith("step."):
            flat.update({f"step{i}.{name.removeprefix('step.')}": v for i, v in enumerate(values)})
        else:
            flat[name] = values[0]
    return flat


def test_every_intermediate_tensor_and_the_actions(toy: Gr00tN1d5, case: dict[str, Tensor]) -> None:
    inputs = inputs_of(case)
    result = {}
    seen = observe(toy, lambda: result.update(toy.get_action(inputs, noise=inputs["noise"])))
    seen["backbone_features"] = seen["llm.hidden3"]
    expected = {k.removeprefix("mid."): v for k, v in case.items() if k.startswith("mid.")}
    assert set(expected) <= set(seen)
    wrong = {k: float((seen[k] - v).abs().max()) for k, v in expected.items()}
    assert {k: d for k, d in wrong.items() if not d < TOLERANCE} == {}
    assert result["action_pred"].dtype == torch.float32
    assert float((result["action_pred"] - case["out.action_pred"]).abs().max()) < TOLERANCE


def test_joint_backbone_module_agrees(toy: Gr00tN1d5, case: dict[str, Tensor]) -> None:
    with torch.no_grad():
        got = toy.backbone(case["in.eagle_pixel_values"], case["in.eagle_input_ids"], case["in.eagle_attention_mask"])
    assert float((got - case["mid.backbone_features"]).abs().max()) < TOLERANCE
