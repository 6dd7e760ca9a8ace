"""What a step needs besides the observation: weights of the embodiments, and rows that follow from the timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..action_head import ActionHead, CategoryLinear, timestep_encoding
from .dit import modulation_rows
from .recent import Recent

KEPT_SETS, KEPT_TABLES = 8, 8
"""How many embodiment sets and how many numbers of steps are kept at a time."""


@dataclass(frozen=True)
class Embodiments:
    """The embodiment of every sample.

    Attributes:
        ids: [B] int64 on the model's device.
        key: The same on the host; None when they came on a GPU, where reading them would stall it. Then their
            weights are gathered in every call.
    """

    ids: Tensor
    key: tuple[int, ...] | None


@dataclass(frozen=True)
class EmbodimentWeights:
    """Weights by sample, each [B, in, out] or [B, 1, out], in the order of the stages' arguments.

    Attributes:
        encoder: The action encoder's, without what follows from the timestep.
    """

    state: tuple[Tensor, ...]
    encoder: tuple[Tensor, ...]
    decoder: tuple[Tensor, ...]


@dataclass(frozen=True)
class StepRows:
    """What differs from step to step.

    Attributes:
        modulation: [N, 34, D] as `modulation_rows` gives it.
        encoder: [N, B, 1, D], the folded action encoder's bias; or [N, 1, 1, D], its encoded timestep.
        step_size: [1] fp32.
        each: The same by step: modulation [34, D] and encoder row.
    """

    modulation: Tensor
    encoder: Tensor
    step_size: Tensor
    each: tuple[tuple[Tensor, Tensor], ...]


@dataclass(frozen=True)
class _Fold:
    """The action encoder's first layer multiplied into the action half of the second, for every embodiment.

    Attributes:
        weight: [E, action width, D], in the weights' dtype.
        bias: [E, D] fp64: what is independent of actions and timestep.
    """

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class _Table:
    modulation: Tensor
    encoder: Tensor  # [N, E, D] or [N, 1, 1, D]
    step_size: Tensor


class Conditions:
    """Computes and keeps `EmbodimentWeights` and `StepRows`."""

    def __init__(self, head: ActionHead, optimisations: frozenset[str]):
        self._head = head
        self._keep_weights = "embodiment_weights" in optimisations
        self._keep_tables = "timestep_tables" in optimisations
        self._folds = "action_encoder_fold" in optimisations
        self._positions = "future_tokens" in optimisations and head.position_embedding is not None
        encoder = list(head.action_encoder.parameters())
        banks = [*encoder, *head.state_encoder.parameters(), *head.action_decoder.parameters()]
        position = [] if head.position_embedding is None else [head.position_embedding.weight]
        dit = [*head.model.timestep_encoder.parameters(), *head.model.proj_out_1.parameters()]
        blocks: Any = head.model.transformer_blocks
        dit += [p for block in blocks for p in block.norm1.parameters()]
        self._fold: Recent[_Fold] = Recent(1, encoder)
        self._weights: Recent[EmbodimentWeights] = Recent(KEPT_SETS, [*banks, *position])
        self._tables: Recent[_Table] = Recent(KEPT_TABLES, [*dit, *encoder])
        self._rows: Recent[StepRows] = Recent(KEPT_SETS, [*dit, *encoder])

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing has to be computed or gathered again for another step."""
        return self._keep_weights and self._keep_tables

    def weights(self, embodiments: Embodiments, horizon: int) -> EmbodimentWeights:
        """The weights of a batch; `horizon` actions get their positions from the encoder's last bias."""
        if not self._keep_weights or embodiments.key is None:
            return self._select(embodiments.ids, horizon)
        return self._weights.get((embodiments.key, horizon), lambda: self._select(embodiments.ids, horizon))

    def rows(self, embodiments: Embodiments, steps: int, step: int | None = None) -> StepRows:
        """The rows of all `steps`; of one alone where `step` is given and tables are not kept."""

        def make() -> StepRows:
            if self._keep_tables:
                table = self._tables.get(steps, lambda: self._table(range(steps), steps))
            else:
                table = self._table(range(steps) if step is None else (step,), steps)
            encoder = table.encoder
            if self._folds:
                encoder = encoder.index_select(1, embodiments.ids).unsqueeze(2)
            each = tuple(zip(table.modulation.unbind(0), encoder.unbind(0), strict=True))
            return StepRows(table.modulation, encoder, table.step_size, each)

        if not self.keeps_everything or embodiments.key is None:
            return make()
        return self._rows.get((embodiments.key, steps), make)

    def _select(self, ids: Tensor, horizon: int) -> EmbodimentWeights:
        def pick(*layers: CategoryLinear) -> tuple[Tensor, ...]:
            banks = [bank for layer in layers for bank in (layer.W, layer.b.unsqueeze(1))]
            return tuple(bank.index_select(0, ids) for bank in banks)

        head = self._head
        source = head.action_encoder
        weight_out, bias_out = pick(source.W3)
        if self._positions and head.position_embedding is not None:
            bias_out = bias_out + head.position_embedding.weight[:horizon].to(bias_out.dtype)
        first = (self._folded().weight.index_select(0, ids),) if self._folds else pick(source.W1, source.W2)
        return EmbodimentWeights(
            state=pick(head.state_encoder.layer1, head.state_encoder.layer2),
            encoder=(*first, weight_out, bias_out),
            decoder=pick(head.action_decoder.layer1, head.action_decoder.layer2),
        )

    def _table(self, which: Sequence[int], steps: int) -> _Table:
        head = self._head
        encoder = head.action_encoder
        buckets = [int(step / steps * head.config.num_timestep_buckets) for step in which]
        device = encoder.W1.W.device
        # Filled on the device: a copy from the host would end a capture, and stall a GPU without tables.
        timestep = torch.cat([torch.full((1,), bucket, dtype=torch.int64, device=device) for bucket in buckets])
        width = encoder.W1.W.shape[2]
        tau = timestep_encoding(timestep, width).to(encoder.W1.W.dtype)
        if self._folds:
            rows = [tau.double() @ w[width:].double() for w in encoder.W2.W]
            row = (torch.stack(rows, dim=1) + self._folded().bias).to(tau.dtype)
        else:
            row = tau[:, None, None]
        return _Table(
            modulation=modulation_rows(head.model, timestep),
            encoder=row,
            step_size=torch.full((1,), 1.0 / steps, dtype=torch.float32, device=device),
        )

    def _folded(self) -> _Fold:
        return self._fold.get(None, self._make_fold)

    def _make_fold(self) -> _Fold:
        first, second = self._head.action_encoder.W1, self._head.action_encoder.W2
        width = first.W.shape[2]
        weights, biases = [], []
        # Slot by slot: the bank in fp64 would be 2.4 GB.
        for w1, b1, w2, b2 in zip(first.W, first.b, second.W, second.b, strict=True):
            action_half = w2[:width].double()
            weights.append((w1.double() @ action_half).to(w1.dtype))
            biases.append(b1.double() @ action_half + b2.double())
        return _Fold(torch.stack(weights), torch.stack(biases))
