"""Matrix products of half precision on a GPU, as torch.compile should see them.

Left alone, torch.compile hands each product to cuBLAS and writes everything around it as kernels of its own. Two things
are then lost at the sizes of this model, where a product takes 5 to 25 µs and every further kernel 2 to 3:

    linear, GELU    cuBLAS can apply the activation to what it writes; torch.compile does not ask for it.
    long linear     a product much longer than wide has few tiles, too few to keep a large GPU busy. cuBLAS then cuts it
                    along its length and adds up the parts with another kernel. Cut here, the parts are added up by the
                    kernel that follows anyway, and the cut is the same for every release of cuBLAS.

    grouped attention  where several query heads share a key, keys and values are repeated for TensorRT's sake. Kernels
                    of attention read the shared one.

A quantised linear layer is an operator that torch.compile cannot look into. In fp8 it becomes a product of 8 bits with
one scale: quantising its input, and its weight's scale per channel, are left to the kernels before and after it.

The rewriting is a pass over the graph that torch.compile traced, before its own. Its result differs from the original
by rounding only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from ...quantize.formats import E4M3, E4M3_LARGEST
from ...quantize.operator import quantized_linear as _defined  # noqa: F401  the operator must exist
from .rewritings import REWRITINGS

HALF = (torch.float16, torch.bfloat16)
ATTENTION = F.scaled_dot_product_attention
QUANTIZED = torch.ops.gr00t_trt.quantized_linear.default
ALIGNED = 8
"""Elements of half precision in the 16 bytes that matrix units read at once; a part must not end inside them."""
PARTS = 4
"""Into how many parts a long product is cut. On an H200 two gained nothing at the vision tower's size, and eight gained
no more than four at the diffusion transformer's."""


class GpuProducts(CustomGraphPass):
    """The pass, for `torch.compile(options={"pre_grad_custom_pass": GpuProducts()})`; on a CPU nothing changes.

    Args:
        without: Of `REWRITINGS`, what is left out.
    """

    def __init__(self, without: Collection[str] = ()):
        super().__init__()
        self._wanted = frozenset(REWRITINGS) - frozenset(without)

    def __call__(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            if node.op == "call_function" and node.target is QUANTIZED and "fp8_linear" in self._wanted:
                _take_fp8(graph, node)
            if node.op == "call_function" and node.target is ATTENTION and "grouped_attention" in self._wanted:
                _take_grouped(graph, node)
            if node.op != "call_function" or node.target is not F.linear:
                continue
            given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
            x, weight, bias = given["input"], given["weight"], given.get("bias")
            if not _half_on_gpu(weight):
                continue
            gelu = _only_gelu(node) if "linear_gelu" in self._wanted else None
            with graph.inserting_before(node):
                if gelu is not None and bias is not None:
                    gelu.replace_all_uses_with(graph.call_function(linear_gelu, (x, weight, bias)))
                    graph.erase_node(gelu)
                elif "long_linear" in self._wanted and is_long(*_value(weight).shape):
                    node.replace_all_uses_with(graph.call_function(long_linear, (x, weight, bias)))
                else:
                    continue
            graph.erase_node(node)

    def uuid(self) -> str:
        """What compiled graphs are kept under, beside the graph itself: this file, and what is wanted of it."""
        return hashlib.sha256(Path(__file__).read_bytes() + " ".join(sorted(self._wanted)).encode()).hexdigest()


def _take_grouped(graph: fx.Graph, node: fx.Node) -> None:
    """Let attention share keys and values among heads itself, instead of being given copies; not under a mask.

    Only causal and full attention have a kernel for that on a GPU; with a mask tensor it would fall back to products.
    """
    given = dict(zip(("query", "key", "value", "attn_mask"), node.args, strict=False)) | node.kwargs
    if given.get("attn_mask") is not None or len(node.args) > 4 or not _half_on_gpu(given["query"]):
        return
    key, value = (_before_repeating(given[name]) for name in ("key", "value"))
    if key is None or value is None:
        return
    options: dict[str, fx.node.Argument] = {
        name: given[name] for name in ("dropout_p", "is_causal", "scale") if name in given
    }
    with graph.inserting_before(node):
        key, value = (graph.call_method("transpose", (one, 1, 2)) for one in (key, value))
        shared = graph.call_function(ATTENTION, (given["query"], key, value), {**options, "enable_gqa": True})
    node.replace_all_uses_with(shared)
    graph.erase_node(node)


def _before_repeating(node: Any) -> fx.Node | None:
    """[B, S, key heads, D] of what `qwen3.repeat_heads` has repeated, heads then put first; None for anything else."""
    for method, args in (("transpose", (1, 2)), ("flatten", (2, 3)), ("expand", None), ("unsqueeze", (3,))):
        if not isinstance(node, fx.Node) or (node.op, node.target) != ("call_method", method):
            return None
        source, *given = node.args
        if args is not None and tuple(given) != args:
            return None
        node = source
    return node if isinstance(node, fx.Node) else None


def _take_fp8(graph: fx.Graph, node: fx.Node) -> None:
    """Put an fp8 product in a quantised layer's place where it can take it: half precision on a GPU."""
    x, codes, scale, _, input_scale, smoothing, bias, form = node.args
    if form != "fp8" or input_scale is None or not _half_on_gpu(x):
        return
    with graph.inserting_before(node):
        product = graph.call_function(fp8_linear, (x, codes, scale, input_scale, smoothing, bias))
    node.replace_all_uses_with(product)
    graph.erase_node(node)


def fp8_linear(
    x: torch.Tensor,
    codes: torch.Tensor,
    scale: torch.Tensor,
    input_scale: torch.Tensor,
    smoothing: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """As the operator of quantised layers in fp8, but for the rounding of sums to bf16: [..., K] -> [..., N].

    The product gets the input's scale for both sides, since it is there: another constant would be a kernel that fills
    it in every call. Dividing it out again costs nothing beside the channels' scales.
    """
    wide = x.flatten(0, -2).float()
    wide = wide if smoothing is None else wide * smoothing
    a = (wide / input_scale).clamp(-E4M3_LARGEST, E4M3_LARGEST).to(E4M3)
    b = codes.view(E4M3).t()
    y = torch._scaled_mm(a, b, scale_a=input_scale, scale_b=input_scale, out_dtype=torch.bfloat16).float()
    y = y * (scale / input_scale)
    y = y if bias is None else y + bias.float()
    return y.to(x.dtype).unflatten(0, x.shape[:-1])


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
