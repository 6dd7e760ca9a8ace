"""Matrix products of half precision on a GPU, as torch.compile should see them.

Left alone, torch.compile hands each product to cuBLAS and writes everything around it as kernels of its own. Two things
are then lost at the sizes of this model, where a product takes 5 to 25 µs and every further kernel 2 to 3:

    linear, GELU    cuBLAS can apply the activation to what it writes; torch.compile does not ask for it.
    long linear     a product much longer than wide has few tiles, too few to keep a large GPU busy. cuBLAS then cuts it
                    along its length and adds up the parts with another kernel. Cut here, the parts are added up by the
                    kernel that follows anyway, and the cut is the same for every release of cuBLAS.

The rewriting is a pass over the graph that torch.compile traced, before its own. Its result differs from the original
by rounding only.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

HALF = (torch.float16, torch.bfloat16)
ALIGNED = 8
"""Elements of half precision in the 16 bytes that matrix units read at once; a part must not end inside them."""
PARTS = 4
"""Into how many parts a long product is cut. On an H200 two gained nothing at the vision tower's size, and eight gained
no more than four at the diffusion transformer's."""


class GpuProducts(CustomGraphPass):
    """The pass, for `torch.compile(options={"pre_grad_custom_pass": GpuProducts()})`; on a CPU nothing changes."""

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op != "call_function" or node.target is not F.linear:
                continue
            given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
            x, weight, bias = given["input"], given["weight"], given.get("bias")
            if not _half_on_gpu(weight):
                continue
            gelu = _only_gelu(node)
            with graph.inserting_before(node):
                if gelu is not None and bias is not None:
                    gelu.replace_all_uses_with(graph.call_function(linear_gelu, (x, weight, bias)))
                    graph.erase_node(gelu)
                elif is_long(*_value(weight).shape):
                    node.replace_all_uses_with(graph.call_function(long_linear, (x, weight, bias)))
                else:
                    continue
            graph.erase_node(node)

    def uuid(self) -> str:
        """What compiled graphs are kept under, beside the graph itself: this file."""
        return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def linear_gelu(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """[..., K], [N, K], [N] -> [..., N]: a linear layer and a tanh-approximated GELU, in one kernel on a GPU."""
    y = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return y.unflatten(0, x.shape[:-1])


def long_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """As F.linear, the product cut into `PARTS` along K, which are added up in fp32. On a GPU only."""
    a = x.flatten(0, -2).unflatten(-1, (PARTS, -1)).transpose(0, 1)
    b = weight.unflatten(-1, (PARTS, -1)).permute(1, 2, 0)
    y = torch.bmm(a, b, out_dtype=torch.float32).sum(0)
    if bias is not None:
        y = y + bias
    return y.to(x.dtype).unflatten(0, x.shape[:-1])


def is_long(width: int, length: int) -> bool:
    """Whether a product of `length`, which gives `width` values per row, is worth cutting, and can be cut evenly."""
    return length >= 2 * width and length % (PARTS * ALIGNED) == 0


def _only_gelu(node: fx.Node) -> fx.Node | None:
    """The tanh-approximated GELU of a node, where nothing else uses it."""
    (user,) = node.users if len(node.users) == 1 else (None,)
    if user is None or user.op != "call_function" or user.target is not F.gelu:
        return None
    return user if user.kwargs.get("approximate") == "tanh" else None


def _half_on_gpu(node: Any) -> bool:
    value = _value(node)
    return isinstance(value, torch.Tensor) and value.device.type == "cuda" and value.dtype in HALF


def _value(node: Any) -> Any:
    """What tracing knows of a node: a tensor without values."""
    return node.meta.get("example_value") if isinstance(node, fx.Node) else None
