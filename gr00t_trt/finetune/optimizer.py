"""AdamW with the original's parameter groups, and its learning-rate schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from ..errors import UsageError, unknown

BETAS, EPS, LARGEST_NORM = (0.95, 0.999), 1e-8, 1.0


def decays(model: nn.Module) -> set[int]:
    """`id` of every parameter that weight decay applies to: all but LayerNorm's and what is called a bias."""
    norms = {id(p) for m in model.modules() if isinstance(m, nn.LayerNorm) for p in m.parameters()}
    return {id(p) for name, p in model.named_parameters() if "bias" not in name and id(p) not in norms}


def make_optimizer(
    model: nn.Module,
    trained: Mapping[str, nn.Parameter],
    *,
    weight_decay: float,
    fused: bool,
    scales: Mapping[str, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW over the trained parameters, those with weight decay first.

    Args:
        fused: One kernel for all, on a GPU.
        scales: Part of a name -> factor on the learning rate of the parameters that it is in.
    Raises: UsageError for a part that is in no trained parameter's name.
    """
    scales, decaying = scales or {}, decays(model)
    for part in scales:
        if not any(part in name for name in trained):
            layers = sorted({name.split(".")[-2] for name in trained if "." in name})
            raise unknown(UsageError, "--learning_rate_scale", part, layers)
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in trained.items():
        scale = math.prod(factor for part, factor in scales.items() if part in name)
        groups.setdefault((id(parameter) not in decaying, scale), []).append(parameter)
    made = [
        {"params": own, "weight_decay": 0.0 if plain else weight_decay, "scale": scale}
        for (plain, scale), own in sorted(groups.items(), key=lambda item: item[0])
    ]
    return torch.optim.AdamW(made, lr=0.0, betas=BETAS, eps=EPS, fused=fused or None)


def learning_rate(step: int, *, peak: float, steps: int, warmup_ratio: float) -> float:
    """Linear warm-up from 0 to `peak`, then cosine decay to 0; steps count from 0, and the first one has 0."""
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return peak * step / max(warmup, 1)
    progress = (step - warmup) / max(steps - warmup, 1)
    return peak * max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The same for all groups, but for their own factors."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]


def clip(trained: Mapping[str, nn.Parameter]) -> torch.Tensor:
    """Clip the total norm of the gradients to `LARGEST_NORM`; returns the norm before clipping, on the device."""
    return nn.utils.clip_grad_norm_(list(trained.values()), LARGEST_NORM)
