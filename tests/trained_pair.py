"""A checkpoint and one that was trained from it, as `finetune` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gr00t_trt.data import DatasetMetadata
from gr00t_trt.finetune.checkpoints import save
from gr00t_trt.policy import load_policy


def write_pair(root: Path) -> Path:
    """Write ``old``, and ``new`` with another action head and other statistics; returns `root`."""
    policy, random = load_policy("synthetic"), torch.Generator().manual_seed(5)
    metadata = policy.metadata.to_dict()
    for statistics in metadata["statistics"]["action"].values():
        statistics["max"] = [value * 1.5 + 0.1 for value in statistics["max"]]
    model: nn.Module = policy.model  # type: ignore[assignment]
    head = {
        name: nn.Parameter(p + 0.01 * torch.randn(p.shape, generator=random))
        for name, p in model.named_parameters()
        if name.startswith("action_head.")
    }
    trained = {name: parameter.detach() for name, parameter in head.items()}
    own = {"gr1": DatasetMetadata.from_dict("gr1", metadata)}
    path = save(root, 1, trained, torch.optim.AdamW(head.values()), head, {}, "synthetic", own)
    path.rename(root / "new")
    (root / "base").rename(root / "old")
    policy.metadata.write(root / "old")
    return root
