"""Dropout, where the original has it while it trains. The modules themselves are for inference and have none.

Four places in every block of the self-attention over vision-language features and of the DiT: after the attention's
last layer, on the attention's result once more, after the GELU and after the feed-forward's last layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..model.n1_5.dit import Attention, FeedForward


def add_dropout(head: nn.Module, probability: float) -> list[RemovableHandle]:
    """Drop values in every block below `head` whose mode is training.

    Returns: One handle a place; removing them removes the dropout.
    """
    hook = partial(_drop, probability)
    return [module.register_forward_hook(hook) for module in _places(head)] if probability else []


def _places(head: nn.Module) -> Iterator[nn.Module]:
    for module in head.modules():
        if isinstance(module, Attention):
            yield from (module.to_out, module)
        if isinstance(module, FeedForward):
            yield from (module.net[0], module)


def _drop(probability: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return F.dropout(output, probability, module.training)
