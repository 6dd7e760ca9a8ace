"""The first layer at which a module leaves its reference, and the first operator at which a compiler does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...errors import BackendError
from ...measure.accuracy import check, compare
from ...model.targets import Target
from ...plans.precisions import Gate
from ...record.result import Agreement

Call = Callable[..., Tensor]
Layers = Sequence[tuple[str, Tensor]]
"""Layer and output, on the host, in the order in which outputs come; a layer that is called twice is there twice."""


@dataclass(frozen=True)
class Departure:
    """Where two computations first differ by more than a gate allows.

    Attributes:
        name: Of the layer, or of the operator: ``aten.gelu.default``.
        layer: The layer that the operator is in; of a layer, itself.
        place: From 0, among `count` that were looked at, in the order of the computation.
        agreement: There; `before`: at the one before, None for the first.
        failures: What the gate says of it.
    """

    name: str
    layer: str
    place: int
    count: int
    agreement: Agreement
    before: Agreement | None
    failures: tuple[str, ...]


@torch.no_grad()
def layer_outputs(module: nn.Module, inputs: Sequence[Tensor]) -> Layers:
    """What every layer inside a module gives in one call, as far as that is one floating tensor."""
    seen: list[tuple[str, Tensor]] = []

    def keeper(name: str) -> Callable[..., None]:
        def keep(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                seen.append((name, output.detach().float().cpu().clone()))

        return keep

    hooks = [own.register_forward_hook(keeper(name)) for name, own in module.named_modules() if name]
    try:
        module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def first_layer(expected: Layers, found: Layers, gate: Gate) -> Departure | None:
    """The first layer whose output misses the gate; None where all reach it.

    A layer inside another gives its output first, so that the innermost one is named.

    Args:
        expected: Of the reference, from the same inputs; layers that only one side has are passed over.
    """
    pairs = list(_paired(expected, found))
    before = None
    for place, (name, want, got) in enumerate(pairs):
        agreement = compare(got, want)
        if failures := check(agreement, gate):
            return Departure(name, name, place, len(pairs), agreement, before, tuple(failures))
        before = agreement
    return None


def _paired(expected: Layers, found: Layers) -> Iterator[tuple[str, Tensor, Tensor]]:
    left: dict[str, list[Tensor]] = {}
    for name, output in expected:
        left.setdefault(name, []).append(output)
    for name, got in found:
        if left.get(name) and left[name][0].shape == got.shape:
            yield name, left[name].pop(0), got


@torch.no_grad()
def first_operator(
    target: Target, build: Callable[[Target], Call], gate: Gate, advance: Callable[[str], None]
) -> Departure | None:
    """The first operator at which what a compiler makes of a submodule leaves eager, both in the target's precision.

    The submodule's graph is cut behind an operator, what is before it built, and its output held against the same cut
    in eager PyTorch; halving finds the place with a few builds. The cut before the operator that is named reaches the
    gate, the cut behind it does not. What a compiler fuses across a cut is not seen.

    Args:
        build: Builds a target without ranges; its callable takes the target's inputs.
        advance: Told what is built.
    Returns: None where the whole submodule reaches the gate.
    Raises: BackendError for a submodule without a graph; what `build` raises.
    """
    graph = _exported(target)
    nodes = [node for node in graph.graph.nodes if _gives_floats(node)]
    looked: dict[int, Agreement] = {}

    def failures(place: int) -> list[str]:
        advance(f"up to operator {place + 1} of {len(nodes)}: {nodes[place].target}")
        cut = _cut(graph, nodes[place])
        static = replace(target, module=cut, ranges=tuple({} for _ in target.inputs), published=None)
        looked[place] = compare(build(static)(*target.inputs), cut(*target.inputs))
        return check(looked[place], gate)

    last = len(nodes) - 1
    worst = failures(last) if nodes else []
    if not worst:
        return None
    reached, missed = -1, last
    while missed - reached > 1:
        middle = (reached + missed) // 2
        if found := failures(middle):
            missed, worst = middle, found
        else:
            reached = middle
    node = nodes[missed]
    return Departure(
        str(node.target), _layer_of(node), missed, len(nodes), looked[missed], looked.get(reached), tuple(worst)
    )


def _exported(target: Target) -> fx.GraphModule:
    try:
        return torch.export.export(target.module, target.inputs, strict=False).module(check_guards=False)
    except Exception as error:  # whatever tracing raises
        what = f"{target.name}: it has no graph to cut: {type(error).__name__}: {error}"
        raise BackendError(what, fix="compare layer by layer: --backend eager") from error


def _gives_floats(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, Tensor) and value.is_floating_point()


def _cut(whole: fx.GraphModule, last: fx.Node) -> fx.GraphModule:
    """A module of all inputs that gives what `last` gives."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in whole.graph.nodes:
        copies[node] = graph.node_copy(node, lambda own: copies[own])
        if node is last:
            break
    graph.output(copies[last])
    graph.eliminate_dead_code()
    return fx.GraphModule(whole, graph).eval()


def _layer_of(node: fx.Node) -> str:
    """The innermost layer that an operator came from; empty for one of the submodule itself."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return str(stack[-1]) if stack else ""
