"""Nothing strays from the model's device. The meta device stands in for a GPU: an operator that mixes it with host
tensors fails just as it would with CUDA, and nothing can be read back in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import (
    DATA_CONFIGS,
    LeRobotDataset,
    Prompter,
    data_config,
    synthetic_dataset,
    synthetic_tokenizer,
    validate_observation,
)
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.n1_5.fast import restructure
from gr00t_trt.model.n1_5.synthetic import tiny_config
from gr00t_trt.plans.schema import LOOPS

CONFIG = tiny_config()
BATCH, LENGTH = 2, 294


@pytest.fixture(scope="module")
def model() -> Gr00tN1d5:
    with torch.device("meta"):
        made = Gr00tN1d5(CONFIG)
    return made.half().requires_grad_(False)


def inputs(ids_on: str) -> dict[str, torch.Tensor]:
    ids = torch.full((BATCH, LENGTH), 5)
    ids[:, 20 : 20 + CONFIG.tokens_per_image] = CONFIG.image_token_index
    return {
        "eagle_pixel_values": torch.empty(BATCH, 3, 224, 224, device="meta"),
        "eagle_input_ids": ids.to(ids_on),
        "eagle_attention_mask": torch.ones_like(ids).to(ids_on),
        "state": torch.empty(BATCH, 1, 64, dtype=torch.float64, device="meta"),
        "embodiment_id": torch.tensor([24, 17]).to(ids_on),
    }


@pytest.mark.parametrize("ids_on", ["cpu", "meta"])
@pytest.mark.parametrize("loop", [None, *LOOPS])
def test_a_request_stays_on_the_models_device(model: Gr00tN1d5, loop: str | None, ids_on: str) -> None:
    subject = model if loop is None else restructure(model)
    if loop is not None:
        subject.loop = loop
    noise = torch.empty(BATCH, 16, 32, device="meta")
    actions = subject.get_action(inputs(ids_on), noise=noise)["action_pred"]
    assert (actions.device.type, actions.dtype, tuple(actions.shape)) == ("meta", torch.float32, (BATCH, 16, 32))


@pytest.mark.parametrize("name", DATA_CONFIGS)
def test_transforms_stay_on_the_device_of_their_input(name: str) -> None:
    config = data_config(name)
    dataset = LeRobotDataset(synthetic_dataset(data_config=name), config.modality_config())
    metadata = dataset.metadata("gr1")
    transform = config.transform()
    transform.set_metadata(metadata)
    transform.set_prompter(
        Prompter(synthetic_tokenizer(CONFIG.special_tokens, CONFIG.vocab_size), CONFIG.special_tokens)
    )
    observation = {key: value for key, value in dataset.step(0, 0).items() if not key.startswith("action.")}
    checked, _ = validate_observation(observation, config.modality_config(), metadata)
    sent = {
        key: torch.empty(value.shape, dtype=torch.as_tensor(value[:0]).dtype, device="meta")
        if isinstance(value, np.ndarray)
        else value
        for key, value in checked.items()
    }
    out = transform.apply(sent)
    assert {key: out[key].device.type for key in ("eagle_pixel_values", "state", "eagle_input_ids")} == {
        "eagle_pixel_values": "meta",
        "state": "meta",
        "eagle_input_ids": "cpu",
    }
    actions = transform.unapply({"action": torch.empty(1, 16, 32, device="meta")})
    assert {value.device.type for value in actions.values()} == {"meta"}
