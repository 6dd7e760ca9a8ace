"""A copy of a module with some of its submodules replaced."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn


def with_replaced(module: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """A module with some of its submodules replaced; it shares everything else with the original, which stays whole.

    Args:
        made: `id` of a submodule -> what takes its place.
    """
    if id(module) in made:
        return made[id(module)]
    children = {name: child and with_replaced(child, made) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    twin = copy.copy(module)
    twin._modules, twin._parameters = children, dict(module._parameters)
    return twin
