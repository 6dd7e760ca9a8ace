"""The layers that a model keeps once per robot, cut down to the robots that are trained.

A checkpoint has 32 of each. Only those in use are parameters here: the others would take gradients and optimizer state
and stay as they are to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import PlanError
from ..model.n1_5.action_head import CategoryLinear


class UsedSlots(nn.Module):
    """A `CategoryLinear` of some of its embodiments; the others wait in host memory.

    Args:
        layer: The whole layer.
        used: Embodiment ids, ascending; slot i of this one is that of `used[i]`.
    """

    def __init__(self, layer: CategoryLinear, used: Sequence[int]):
        super().__init__()
        index = torch.tensor(list(used), device=layer.W.device)
        self.W = nn.Parameter(layer.W.detach()[index], requires_grad=layer.W.requires_grad)
        self.b = nn.Parameter(layer.b.detach()[index], requires_grad=layer.b.requires_grad)
        self.used = tuple(used)
        self._whole = {"W": layer.W.detach().cpu(), "b": layer.b.detach().cpu()}

    def forward(self, x: Tensor, slot: Tensor) -> Tensor:
        """[B, T, inputs], [B] int64 place in `used` -> [B, T, outputs]."""
        if len(self.used) == 1:  # without a copy of the weights for every sample
            return x @ self.W[0] + self.b[0]
        return torch.bmm(x, self.W.index_select(0, slot)) + self.b.index_select(0, slot).unsqueeze(1)

    def whole(self, leaf: str) -> Tensor:
        """The whole layer's `W` or `b`, in host memory, with the slots here put back."""
        full = self._whole[leaf].clone()
        full[list(self.used)] = getattr(self, leaf).detach().cpu()
        return full

    @torch.no_grad()
    def take(self, leaf: str, full: Tensor) -> None:
        """The reverse of `whole`."""
        getattr(self, leaf).copy_(full[list(self.used)])


def keep_slots(head: nn.Module, used: Sequence[int]) -> dict[int, int]:
    """Replace every layer per embodiment below `head` by a `UsedSlots`.

    Args:
        used: Embodiment ids in the data, in any order.
    Returns: Embodiment id -> its slot.
    Raises: PlanError for an id that the model has no slot for.
    """
    found = [(name, layer) for name, layer in head.named_modules() if isinstance(layer, CategoryLinear)]
    ids = sorted(set(used))
    for name, layer in found:
        last = len(layer.W) - 1
        if not ids or ids[0] < 0 or ids[-1] > last:
            raise PlanError(f"embodiments {ids}: the model has no slot for them", known=f"0 to {last}")
        parent, _, leaf = name.rpartition(".")
        setattr(head.get_submodule(parent), leaf, UsedSlots(layer, ids))
    return {embodiment: slot for slot, embodiment in enumerate(ids)}


def slots_below(module: nn.Module) -> Mapping[str, UsedSlots]:
    """Name of a parameter -> the layer that it is of."""
    layers = ((name, layer) for name, layer in module.named_modules() if isinstance(layer, UsedSlots))
    return {f"{name}.{leaf}": layer for name, layer in layers for leaf in ("W", "b")}
