"""Four steps of training equal the original's: losses, learning rates, gradients and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gr00t_trt.finetune.lora import Lora, add_lora
from gr00t_trt.finetune.loss import ACTION_MASK, FlowMatching
from gr00t_trt.finetune.optimizer import clip, decays, learning_rate, make_optimizer, set_learning_rate
from gr00t_trt.finetune.parts import (
    LLM,
    Parts,
    freeze,
    load_trained,
    set_training,
    trained_parameters,
    trained_tensors,
)
from gr00t_trt.finetune.slots import keep_slots
from gr00t_trt.model import load_model

CASES = ["default", "no_diffusion", "no_projector", "visual_llm_unpadded", "lora_r8", "lora_r8_full"]
PADDED = {"lora_r8_full"}
"""The backbone is trained on a padded batch: what flows through padded positions depends on the attention's kernel."""
ROUNDING_ALONE = (".to_k.bias", ".k_proj.bias")
"""Their gradient is zero in exact arithmetic."""
DEAD = ("lm_head", "vision_model.vision_model.head.")
"""Never reach an action, and the model here has none."""


def prepare(oracle: Any, golden: Path, case: str) -> tuple[nn.Module, FlowMatching, Parts]:
    """The toy checkpoint as the case trains it."""
    about = oracle.manifest["cases"][case]
    lora = about["lora"]
    parts = Parts(**about["flags"], lora=lora is not None)
    model = load_model(golden / "checkpoint")
    slots = keep_slots(model.action_head, [31, 24])
    freeze(model, parts)
    if lora is not None:
        add_lora(model, Lora(lora["rank"], lora["lora_alpha"], 0.0, not lora["action_head_only"]), seed=0)
        load_trained(model, _start_of_lora(oracle, case, model), "test")
    set_training(model, parts)
    return model, FlowMatching(model, slots), parts


def _start_of_lora(oracle: Any, case: str, model: nn.Module) -> dict[str, Tensor]:
    """The first matrices as they were drawn; the second ones are zero."""
    stored, own = oracle.tensors(case), trained_tensors(model)
    key = "whole.before.{}".format
    return {n: torch.zeros_like(t) if ".lora_B." in n else stored[key(ours_as_theirs(n))] for n, t in own.items()}


def ours_as_theirs(name: str) -> str:
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


def entries(values: dict[str, Tensor], names: list[str], index: Tensor) -> Tensor:
    """[N, K]: of each named tensor the entries that were kept; zero where there are none."""
    out = torch.zeros(index.shape)
    for row, (name, own) in enumerate(zip(names, index, strict=True)):
        used = own >= 0
        out[row, used] = values[name].flatten()[own[used]]
    return out


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """In the shapes of the checkpoint: zero for the slots that are not trained."""
    with torch.no_grad():
        shapes = {name: t.shape for name, t in trained_tensors(model).items()}
    out = {}
    for name, parameter in trained_parameters(model).items():
        assert parameter.grad is not None, name
        if parameter.shape == shapes[name]:
            out[name] = parameter.grad.clone()
        else:
            out[name] = torch.zeros(shapes[name])
            out[name][[24, 31]] = parameter.grad
    return out


@pytest.mark.parametrize("case", [case for case in CASES if case not in PADDED])
def test_four_steps(oracle: Any, golden: Path, case: str) -> None:
    model, objective, _ = prepare(oracle, golden, case)
    expected, about = oracle.tensors(case), oracle.manifest["cases"][case]
    named = {ours_as_theirs(name): name for name in trained_tensors(model)}
    everywhere = [name for name in about["trainable"] if not any(dead in name for dead in DEAD)]
    assert set(named) == set(everywhere)
    rows = [i for i, n in enumerate(about["trainable"]) if n in named and not n.endswith(ROUNDING_ALONE)]
    names = [named[about["trainable"][i]] for i in rows]
    index = expected["entry.index"][rows]
    trained = trained_parameters(model)
    optimizer = make_optimizer(model, trained, weight_decay=1e-5, fused=False)
    start = {name: t.clone() for name, t in trained_tensors(model).items()}
    torch.testing.assert_close(entries(start, names, index), expected["entry.value_before"][rows], rtol=0, atol=0)
    for step, batch in enumerate(oracle.batches):
        inputs = dict(batch)
        if case.endswith("unpadded"):
            inputs["eagle_attention_mask"] = torch.ones_like(inputs["eagle_attention_mask"])
        rate = learning_rate(step, peak=1e-4, steps=100, warmup_ratio=0.05)
        assert rate == pytest.approx(float(expected["learning_rate"][step]), abs=1e-18)
        set_learning_rate(optimizer, rate)
        loss = objective(inputs, batch["noise"], batch["time"]).sum() / batch[ACTION_MASK].sum()
        assert loss.item() == pytest.approx(float(expected["loss"][step]), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        found, wanted = entries(gradients(model), names, index), expected["entry.grad"][step][rows]
        largest = wanted.abs().amax(1, keepdim=True)
        # Gradients of LoRA's first matrices pass through the second ones, which are all but zero.
        assert ((found - wanted).abs() <= (1e-4 if about["lora"] else 5e-5) * largest + 1e-12).all()
        norm = clip(trained)
        assert norm.item() == pytest.approx(float(expected["grad_norm_before_clipping"][step]), rel=4e-6)
        optimizer.step()
        now = trained_tensors(model)
        change = entries(now, names, index) - entries(start, names, index)
        # Or the last bit of the weight, which a different kernel may round to its other side.
        allowed = 6e-8 + torch.finfo(torch.float32).eps * expected["entry.value_before"][rows].abs()
        assert ((change - expected["entry.change"][step][rows]).abs() <= allowed).all()
    for key, value in expected.items():
        name = named.get(key.removeprefix("whole.after4."))
        if key.startswith("whole.after4.") and name is not None and not key.endswith(ROUNDING_ALONE):
            torch.testing.assert_close(now[name], value, rtol=0, atol=1e-7)


def test_adapters_in_the_whole_model(oracle: Any, golden: Path) -> None:
    """The first step changes nothing, so two of them start from the original's weights."""
    model, objective, _ = prepare(oracle, golden, "lora_r8_full")
    expected, about = oracle.tensors("lora_r8_full"), oracle.manifest["cases"]["lora_r8_full"]
    named = {ours_as_theirs(name): name for name in trained_tensors(model)}
    assert set(named) == set(about["trainable"])
    rows = [i for i, name in enumerate(about["trainable"]) if "action_head" in name]
    names = [named[about["trainable"][i]] for i in rows]
    for step in (0, 1):
        batch = oracle.batches[step]
        loss = objective(batch, batch["noise"], batch["time"]).sum() / batch[ACTION_MASK].sum()
        assert loss.item() == pytest.approx(float(expected["loss"][step]), rel=1e-6)
        model.zero_grad()
        loss.backward()
        found, wanted = entries(gradients(model), names, expected["entry.index"][rows]), expected["entry.grad"][step]
        largest = wanted[rows].abs().amax(1, keepdim=True)
        assert ((found - wanted[rows]).abs() <= 5e-5 * largest + 1e-12).all()


@pytest.mark.parametrize("case", CASES)
def test_who_decays_and_who_is_in_training_mode(oracle: Any, golden: Path, case: str) -> None:
    model, _, _ = prepare(oracle, golden, case)
    about = oracle.manifest["cases"][case]
    decaying = decays(model)
    found = {ours_as_theirs(n) for n, p in trained_parameters(model).items() if id(p) in decaying}
    assert found == {n for n in about["weight_decay"]["with"] if not any(dead in n for dead in DEAD)}
    for name, mode in about["training_mode"].items():
        module = model.get_submodule(name)
        assert module.training == mode, name


def test_padding_upstream_has_the_loss_of_the_original(oracle: Any, golden: Path) -> None:
    model, objective, _ = prepare(oracle, golden, "visual_llm")
    batch = oracle.batches[0]
    loss = objective(batch, batch["noise"], batch["time"]).sum() / batch[ACTION_MASK].sum()
    assert loss.item() == pytest.approx(float(oracle.tensors("visual_llm")["loss"][0]), rel=1e-6)
    assert any(name.startswith(LLM) for name in trained_tensors(model))
