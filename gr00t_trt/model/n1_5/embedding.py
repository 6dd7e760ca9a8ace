"""An embedding table that is filled only where it has memory."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """As PyTorch's. Filling a table on the meta device, of no use, would import PyTorch's compiler: seconds."""

    def reset_parameters(self) -> None:
        if not self.weight.is_meta:
            super().reset_parameters()
