"""LoRA: low-rank matrices beside the queries, keys and values, trained in their place. The file that imports peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..common.install import install_extra
from ..errors import PlanError

TARGETS = ("q_proj", "k_proj", "v_proj", "to_q", "to_k", "to_v")


@dataclass(frozen=True)
class Lora:
    """An adapter.

    Attributes:
        rank: Of the low-rank update of every matrix. alpha: The update is scaled by alpha / rank.
        dropout: Probability, in front of `lora_A`.
        whole_model: Vision tower and language model too, not only the action head.
    """

    rank: int
    alpha: float = 16
    dropout: float = 0.1
    whole_model: bool = False


def targets(model: nn.Module, whole_model: bool) -> list[str]:
    """Names of the linear layers that get an adapter, in the model's order."""
    linear = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    wanted = (name for name in linear if whole_model or name.startswith("action_head."))
    return [name for name in wanted if name.rpartition(".")[2] in TARGETS]


def peft_config(model: nn.Module, lora: Lora) -> Any:
    """PEFT's own configuration object. Raises: PlanError without peft."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise PlanError("LoRA needs peft, which is not installed", fix=install_extra("finetune")) from error
    return LoraConfig(
        r=lora.rank,
        lora_alpha=int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,  # type: ignore[arg-type]
        target_modules=targets(model, lora.whole_model),
        lora_dropout=lora.dropout,
        bias="none",
        task_type="CAUSAL_LM",  # what the original writes into adapter_config.json
    )


def add_lora(model: Any, lora: Lora, seed: int) -> None:
    """Put adapters into a model; afterwards only they have gradients, in fp32, and they change nothing yet.

    Args:
        model: With `backbone` and `action_head`.
        seed: Of `lora_A`; `lora_B` is zero.
    Raises: PlanError without peft.
    """
    config = peft_config(model, lora)
    from peft import inject_adapter_in_model

    # PEFT asks `model.config` for things that only transformers' configurations have.
    bare = nn.Module()
    bare.backbone, bare.action_head = model.backbone, model.action_head
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, bare)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
