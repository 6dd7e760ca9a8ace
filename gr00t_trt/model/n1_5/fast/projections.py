"""Several linear layers over the same input as one matrix product, without a second copy of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Projections(nn.Module):
    """Linear layers that read the same input.

    Fused, their weights lie one after the other in the weight of `product`, and the layers' own parameters become views
    of its rows: the layers go on working, nothing is stored twice, and a value written in place into either is seen by
    both. A cast or a move ends that, so whoever casts the layers calls `join` afterwards.

    Args:
        linears: All with a bias or all without.
        fused: One product instead of one per layer.
    Attributes:
        product: The one linear layer, an `nn.Linear` so that whatever looks for linear layers by type finds it.
    """

    def __init__(self, linears: Sequence[nn.Linear], *, fused: bool = True):
        super().__init__()
        self.fused = fused
        self.widths = [linear.out_features for linear in linears]
        if fused:
            # A tuple is not registered, so that the fused weight is this module's only parameter.
            self._sources = tuple(linears)
            width, bias = linears[0].in_features, linears[0].bias is not None
            self.product = nn.Linear(width, sum(self.widths), bias=bias, device="meta")
            self.join()
        else:
            self.linears = nn.ModuleList(linears)

    @torch.no_grad()
    def join(self) -> None:
        """Make the layers share one weight again; nothing happens where they still do."""
        if not self.fused:
            return
        weights, biases = ([getattr(linear, name) for linear in self._sources] for name in ("weight", "bias"))
        if not _is_shared(self.product.weight, weights):
            self.product.weight = _shared(weights)
        if self.product.bias is not None and not _is_shared(self.product.bias, biases):
            self.product.bias = _shared(biases)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., D] -> one [..., width] per layer."""
        if not self.fused:
            return tuple(linear(x) for linear in self.linears)
        return self.product(x).split(self.widths, dim=-1)

    def heads(self, x: Tensor, head_dim: int) -> tuple[Tensor, ...]:
        """[B, T, D] -> one [B, heads, T, head_dim] per layer; the layers are equally wide."""
        if not self.fused:
            return tuple(y.unflatten(-1, (-1, head_dim)).transpose(1, 2) for y in self(x))
        return self.by_layer(x, head_dim).permute(2, 0, 3, 1, 4).unbind(0)

    def by_layer(self, x: Tensor, head_dim: int) -> Tensor:
        """Fused only: [B, T, D] -> [B, T, layers, heads, head_dim]."""
        return self.product(x).unflatten(-1, (len(self.widths), -1, head_dim))


def join_all(module: nn.Module) -> None:
    """Call `join` on every `Projections` inside `module`."""
    for part in module.modules():
        if isinstance(part, Projections):
            part.join()


def _shared(parts: Sequence[nn.Parameter]) -> nn.Parameter:
    """One tensor of which all parts are consecutive row blocks, each part turned into a view of it."""
    first = parts[0]
    rows = sum(part.shape[0] for part in parts)
    if _adjacent(parts):
        joined = first.data.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())
    else:
        joined = torch.cat([part.data for part in parts])
        for part, block in zip(parts, joined.split([part.shape[0] for part in parts]), strict=True):
            part.data = block
    return nn.Parameter(joined, requires_grad=False)


def _is_shared(joined: Tensor, parts: Sequence[Tensor]) -> bool:
    """Whether `joined` is the memory of all parts already; one on the meta device has none."""
    first = parts[0]
    same = joined.dtype == first.dtype and joined.device == first.device and first.device.type != "meta"
    return same and joined.data_ptr() == first.data_ptr() and _adjacent(parts)


def _adjacent(parts: Sequence[Tensor]) -> bool:
    first = parts[0]
    start, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        same = part.untyped_storage().data_ptr() == start and part.dtype == first.dtype and part.device == first.device
        if not (same and part.storage_offset() == offset and part.is_contiguous()):
            return False
        offset += part.numel()
    return True
