"""The pass over half-precision products on a GPU, for graphs that were exported. Imports the compiler."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ...backends.inductor.products import GpuProducts

_aten = torch.ops.aten
_AS_TRACED: Mapping[Any, Callable[..., Any]] = {_aten.linear.default: F.linear, _aten.gelu.default: F.gelu}


class ExportedProducts(GpuProducts):
    """The same pass over an exported graph, whose products have other names than those that torch.compile traces."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in graph.nodes:
            node.target = _AS_TRACED.get(node.target, node.target)
            value = node.meta.get("val")
            if node.op == "get_attr":
                value = operator.attrgetter(node.target)(graph.owning_module)
            node.meta.setdefault("example_value", value)
        super().__call__(graph)
