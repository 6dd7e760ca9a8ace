"""The objective: padding, dropout, slots and precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gr00t_trt.finetune.dropout import add_dropout
from gr00t_trt.finetune.loss import ACTION_MASK, FlowMatching, left_padding
from gr00t_trt.finetune.parts import Parts, dtypes_of, freeze, set_training, trained_parameters, trained_tensors
from gr00t_trt.finetune.slots import keep_slots
from gr00t_trt.model import load_model

IDS, MASK, PIXELS = "eagle_input_ids", "eagle_attention_mask", "eagle_pixel_values"


def prepared(golden: Path, parts: Parts, used: tuple[int, ...] = (24, 31), dtype: Any = torch.float32) -> FlowMatching:
    model = load_model(golden / "checkpoint", dtype=dtype)
    slots = keep_slots(model.action_head, used)
    freeze(model, parts)
    set_training(model, parts)
    return FlowMatching(model, slots)


def alone(batch: dict[str, Tensor], sample: int) -> dict[str, Tensor]:
    """A sample as a request would bring it, without padding."""
    out = {key: value[sample : sample + 1] for key, value in batch.items()}
    (start,) = left_padding(out[MASK])
    return {**out, IDS: out[IDS][:, start:], MASK: out[MASK][:, start:]}


def test_padded_samples_compute_what_they_do_alone(oracle: Any, golden: Path) -> None:
    objective, batch = prepared(golden, Parts()), oracle.batches[1]
    padding = left_padding(batch[MASK])
    assert padding == [3, 0]
    with torch.no_grad():
        together = objective(batch, batch["noise"], batch["time"], padding)
        as_the_original = objective(batch, batch["noise"], batch["time"])
        for sample in range(2):
            own = alone(batch, sample)
            apart = objective(own, own["noise"], own["time"])
            torch.testing.assert_close(together[sample], apart[0], rtol=1e-5, atol=0)
    assert abs(float(together[0] - as_the_original[0])) > 1e-3
    torch.testing.assert_close(together[1], as_the_original[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize(("case", "parts"), [("default", Parts()), ("no_diffusion", Parts(tune_diffusion_model=False))])
def test_dropout_has_the_effect_that_it_has_in_the_original(oracle: Any, golden: Path, case: str, parts: Parts) -> None:
    objective, batch, about = prepared(golden, parts), oracle.batches[1], oracle.manifest["dropout_statistics"]
    handles = add_dropout(objective.model.action_head, 0.2)
    assert len(handles) == len(oracle.manifest["dropout_rates"]["0.2"])

    def losses(count: int) -> Tensor:
        with torch.no_grad():
            each = [objective(batch, batch["noise"], batch["time"]).sum() for _ in range(count)]
        return torch.stack(each) / batch[ACTION_MASK].sum()

    torch.manual_seed(0)
    found = losses(32)
    # Four standard errors of the difference between means of 32 and 64 draws.
    assert abs(float(found.mean()) - about[case]["mean"]) < 4 * about[case]["std"] * (1 / 32 + 1 / 64) ** 0.5
    assert 0.6 < float(found.std()) / about[case]["std"] < 1.6
    objective.eval()
    assert float(losses(1)) == pytest.approx(about["without_dropout"], rel=1e-6)


def test_only_the_used_slots_are_parameters_and_the_others_stay(oracle: Any, golden: Path) -> None:
    objective, batch = prepared(golden, Parts(), (31, 24)), oracle.batches[1]
    before = load_model(golden / "checkpoint").state_dict()
    trained = trained_parameters(objective.model)
    name = "action_head.action_decoder.layer2.W"
    assert trained[name].shape == (2, 64, 7)
    torch.optim.AdamW(trained.values(), lr=0.1).zero_grad()
    objective(batch, batch["noise"], batch["time"]).sum().backward()
    torch.optim.AdamW(trained.values(), lr=0.1).step()
    after = trained_tensors(objective.model)[name]
    changed = [slot for slot in range(32) if not torch.equal(after[slot], before[name][slot])]
    assert changed == [24, 31]


def test_one_robot_needs_no_copies_of_its_weights(oracle: Any, golden: Path) -> None:
    batch = alone(oracle.batches[1], 0)
    gradients = []
    for used in ((31,), (24, 31)):
        objective = prepared(golden, Parts(), used)
        loss = objective(batch, batch["noise"], batch["time"]).sum()
        loss.backward()
        layer = objective.model.action_head.action_encoder.W2
        gradients.append((loss.detach(), layer.W.grad[-1], layer.b.grad[-1]))
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_what_is_frozen_is_held_in_half_and_what_is_trained_in_full_precision(oracle: Any, golden: Path) -> None:
    parts, batch = Parts(tune_diffusion_model=False), oracle.batches[1]
    objective = prepared(golden, parts, dtype=dtypes_of(parts, torch.bfloat16))
    full = prepared(golden, parts)
    for name, parameter in objective.model.named_parameters():
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name
    assert {p.dtype for p in full.model.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        rounded = objective(batch, batch["noise"], batch["time"]).sum()
    rounded.backward()
    exact = full(batch, batch["noise"], batch["time"]).sum()
    assert rounded.item() == pytest.approx(exact.item(), rel=0.03)
    assert all(
        p.grad is not None and p.grad.dtype == torch.float32 for p in trained_parameters(objective.model).values()
    )


def test_frozen_layers_of_the_head_lose_nothing_by_half_precision(oracle: Any, golden: Path) -> None:
    """Autocast rounds their weights to bf16 anyway."""
    parts, batch = Parts(tune_diffusion_model=False), oracle.batches[1]
    losses = []
    for dtype in (torch.bfloat16, torch.float32):
        objective = prepared(golden, parts, dtype=dtypes_of(parts, torch.bfloat16))
        objective.model.action_head.model.to(dtype)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            losses.append(objective(batch, batch["noise"], batch["time"]))
    assert torch.equal(*losses)


def test_every_trained_parameter_gets_a_gradient(oracle: Any, golden: Path) -> None:
    """Or several processes would wait for one another for ever."""
    batch = oracle.batches[1]
    objective = prepared(golden, Parts(tune_llm=True, tune_visual=True))
    objective(batch, batch["noise"], batch["time"]).sum().backward()
    assert all(isinstance(p, nn.Parameter) and p.grad is not None for p in objective.parameters())
