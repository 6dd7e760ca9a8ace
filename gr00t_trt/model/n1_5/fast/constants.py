"""What follows from weights alone: the weights of an embodiment, and what the timestep does to every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..action_head import ActionHead, CategoryLinear, timestep_encoding
from .dit import modulation_rows
from .weight_cache import WeightCache

KEPT_SETS, KEPT_TABLES = 8, 8
"""How many embodiment sets and how many numbers of steps are kept at a time."""


@dataclass(frozen=True)
class Embodiments:
    """The embodiment of every sample.

    Attributes:
        ids: [B] int64 on the model's device.
        key: The same on the host; None when they came on a GPU, where reading them would stall it.
    """

    ids: Tensor
    key: tuple[int, ...] | None

    @property
    def mixed(self) -> bool:
        """Whether they are known and differ: too many combinations to keep the weights, or a graph, of each."""
        return self.key is not None and len(set(self.key)) > 1

    @property
    def gathered(self) -> bool:
        """Whether their weights are gathered in every call."""
        return self.key is None or self.mixed


@dataclass(frozen=True)
class EmbodimentWeights:
    """Weights by sample, each [B, in, out] or [B, 1, out], in the order of the stages' arguments.

    Attributes:
        encoder: The action encoder's, without what follows from the timestep.
        decoder: Of the stage `action_decoder`.
        step_decoder: Of a whole step: where constants are folded, its first layer does the work of the transformer's
            last one too, [B, D, hidden], and reads that one's input.
    """

    state: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]
    step_decoder: tuple[Tensor, ...]


@dataclass(frozen=True)
class TimestepTables:
    """What differs from step to step.

    Attributes:
        modulation: [N, 34, D], the adaLN scales and shifts as `modulation_rows` gives them.
        encoder: [N, B, 1, D], the action encoder's bias.
        step_size: [1] fp32.
        each: The same by step: modulation [34, D] and encoder bias [B, 1, D].
    """

    modulation: Tensor
    encoder: Tensor
    step_size: Tensor
    each: tuple[tuple[Tensor, Tensor], ...]


_Fold = tuple[Tensor, Tensor]
"""The action encoder's first layer multiplied into the action half of the second, slot by slot: the weight
[slots, action width, D] in the weights' dtype, and the bias [slots, D] fp64, what is independent of actions and
timestep."""

_Table = tuple[Tensor, Tensor, Tensor]
"""`TimestepTables` of slots: modulation, encoder [N, slots, D], step size."""


class FoldedConstants:
    """Computes `EmbodimentWeights` and `TimestepTables`, and keeps them where `constant_folding` is on.

    Kept, they are computed of all embodiment slots once; else of the samples' own, in every call. What is kept is not
    made again: start with a new object when one of `sources` has changed.

    Attributes:
        kept: Whether anything is.
        sources: The weights that what is kept was computed from.
    """

    def __init__(self, head: ActionHead, optimizations: frozenset[str]):
        self._head = head
        self.kept = "constant_folding" in optimizations
        dit: Any = head.model
        norms = [block.norm1 for block in dit.transformer_blocks]
        parts = (head.action_encoder, head.state_encoder, head.action_decoder, head.position_embedding)
        modules = [*parts, dit.timestep_encoder, dit.proj_out_1, dit.proj_out_2, *norms] if self.kept else []
        self.sources: tuple[Tensor, ...] = tuple(p for m in modules if m is not None for p in m.parameters())
        self._fold: WeightCache[_Fold] = WeightCache(1)
        self._decoder_fold: WeightCache[tuple[Tensor, Tensor]] = WeightCache(1)
        self._weights: WeightCache[EmbodimentWeights] = WeightCache(KEPT_SETS)
        self._tables: WeightCache[_Table] = WeightCache(KEPT_TABLES)
        self._rows: WeightCache[TimestepTables] = WeightCache(KEPT_SETS)

    def weights(self, embodiments: Embodiments, horizon: int) -> EmbodimentWeights:
        """The weights of a batch; `horizon` actions get their positions from the encoder's last bias."""
        if not self.kept or embodiments.gathered:
            return self._select(embodiments, horizon)
        return self._weights.get((embodiments.key, horizon), lambda: self._select(embodiments, horizon))

    def tables(self, embodiments: Embodiments, steps: int, step: int | None = None) -> TimestepTables:
        """The tables of all `steps`; of one alone where `step` is given and nothing is kept."""

        def make() -> TimestepTables:
            if self.kept:
                table = self._tables.get(steps, lambda: self._table(range(steps), steps, None))
                modulation, encoder, step_size = table
                encoder = encoder.index_select(1, embodiments.ids)
            else:
                which = range(steps) if step is None else (step,)
                modulation, encoder, step_size = self._table(which, steps, embodiments.ids)
            encoder = encoder.unsqueeze(2)
            each = tuple(zip(modulation.unbind(0), encoder.unbind(0), strict=True))
            return TimestepTables(modulation, encoder, step_size, each)

        if not self.kept or embodiments.gathered:
            return make()
        return self._rows.get((embodiments.key, steps), make)

    def held(self, embodiments: Embodiments, horizon: int, steps: int) -> tuple[object, ...]:
        """What was computed once, and is read for these embodiments in every call."""
        if not embodiments.gathered:
            return self.weights(embodiments, horizon), self.tables(embodiments, steps)
        if not self.kept:
            return ()
        table = self._tables.get(steps, lambda: self._table(range(steps), steps, None))
        return self._folded(None), self._folded_decoders(), table

    def _select(self, embodiments: Embodiments, horizon: int) -> EmbodimentWeights:
        ids = embodiments.ids

        def pick(*layers: CategoryLinear) -> tuple[Tensor, ...]:
            banks = [bank for layer in layers for bank in (layer.W, layer.b.unsqueeze(1))]
            return tuple(bank.index_select(0, ids) for bank in banks)

        head = self._head
        weight_out, bias_out = pick(head.action_encoder.W3)
        if head.position_embedding is not None:
            bias_out = bias_out + head.position_embedding.weight[:horizon].to(bias_out.dtype)
        weight_in = self._folded(None)[0].index_select(0, ids) if self.kept else self._folded(ids)[0]
        decoder = pick(head.action_decoder.layer1, head.action_decoder.layer2)
        return EmbodimentWeights(
            state=pick(head.state_encoder.layer1, head.state_encoder.layer2),
            encoder=(weight_in, weight_out, bias_out),
            decoder=decoder,
            step_decoder=(*self._step_decoder(embodiments, *decoder[:2]), *decoder[2:]),
        )

    def _step_decoder(self, embodiments: Embodiments, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        if not self.kept:
            return weight, bias
        if embodiments.gathered:  # in every call, which must not multiply matrices then
            weight, bias = (bank.index_select(0, embodiments.ids) for bank in self._folded_decoders())
            return weight, bias
        # All samples are of one embodiment.
        folded, offset = self._with_last_layer(weight[:1], bias[:1])
        count = len(weight)
        return folded.repeat(count, 1, 1), offset.repeat(count, 1, 1)

    def _folded_decoders(self) -> tuple[Tensor, Tensor]:
        """Of all embodiment slots; 100 MB in bf16, and made where samples of different ones come."""
        first = self._head.action_decoder.layer1
        return self._decoder_fold.get(None, lambda: self._with_last_layer(first.W, first.b.unsqueeze(1)))

    def _with_last_layer(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """[B, in, hidden], [B, 1, hidden] behind the transformer's last layer: [B, D, hidden], [B, 1, hidden].

        There is nothing between the two, so that they are one layer, rounded once.
        """
        last = self._head.model.proj_out_2
        wide, offset = last.weight.double().t(), last.bias.double()
        weights = [(wide @ own.double()).to(weight.dtype) for own in weight.unbind(0)]
        biases = [(offset @ own.double() + b.double()).to(bias.dtype) for own, b in zip(weight, bias, strict=True)]
        return torch.stack(weights), torch.stack(biases)

    def _table(self, which: Sequence[int], steps: int, ids: Tensor | None) -> _Table:
        """Of the slots `ids`, or of all."""
        head = self._head
        encoder = head.action_encoder
        buckets = [int(step / steps * head.config.num_timestep_buckets) for step in which]
        device = encoder.W1.W.device
        # Filled on the device: a copy from the host would end a capture, and stall a GPU without tables.
        timestep = torch.cat([torch.full((1,), bucket, dtype=torch.int64, device=device) for bucket in buckets])
        width = encoder.W1.W.shape[2]
        tau = timestep_encoding(timestep, width).to(encoder.W1.W.dtype)
        # Slot by slot: the bank in fp64 would be 2.4 GB.
        rows = [tau.double() @ w[width:].double() for w in _slots(encoder.W2.W, ids)]
        modulation = modulation_rows(head.model, timestep)
        bias = (torch.stack(rows, dim=1) + self._folded(ids)[1]).to(tau.dtype)
        return modulation, bias, torch.full((1,), 1.0 / steps, dtype=torch.float32, device=device)

    def _folded(self, ids: Tensor | None) -> _Fold:
        return self._make_fold(ids) if ids is not None else self._fold.get(None, lambda: self._make_fold(None))

    def _make_fold(self, ids: Tensor | None) -> _Fold:
        first, second = self._head.action_encoder.W1, self._head.action_encoder.W2
        width = first.W.shape[2]
        weights, biases = [], []
        banks = (_slots(bank, ids) for bank in (first.W, first.b, second.W, second.b))
        for w1, b1, w2, b2 in zip(*banks, strict=True):
            action_half = w2[:width].double()
            weights.append((w1.double() @ action_half).to(w1.dtype))
            biases.append(b1.double() @ action_half + b2.double())
        return torch.stack(weights), torch.stack(biases)


def _slots(bank: Tensor, ids: Tensor | None) -> Tensor:
    return bank if ids is None else bank.index_select(0, ids)
