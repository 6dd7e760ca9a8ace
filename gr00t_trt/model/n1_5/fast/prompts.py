"""What follows from the prompt alone: token embeddings, image positions, rotations and masks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..backbone import EagleBackbone
from .backbone import padding_tables, rotation_table
from .weight_cache import WeightCache

KEPT_PROMPTS = 8


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts, ready for image features.

    Attributes:
        ids: [B, S] int64.
        embeds: [B, S, 2048], arbitrary where image features will stand.
        image_rows: int64, the flattened positions of image tokens in order; None when the ids came on a GPU.
        rotation: [2, S, 128].
        key_mask, query_mask: As `padding_tables`; None without padding.
    """

    ids: Tensor
    embeds: Tensor
    image_rows: Tensor | None
    rotation: Tensor
    key_mask: Tensor | None
    query_mask: Tensor | None


class Prompts:
    """Makes prompts and keeps the ones used last, by their token ids and masks.

    Only ids in host memory are looked up; reading them from a GPU would stall it. What is kept is not made again: start
    with a new object when one of `sources` has changed.

    Args:
        dtype: Of the language model.
    """

    def __init__(self, backbone: EagleBackbone, optimizations: frozenset[str], dtype: torch.dtype):
        self._backbone = backbone
        self._keep = "prompt_cache" in optimizations
        self._dtype = dtype
        self._kept: WeightCache[Prompt] = WeightCache(KEPT_PROMPTS)

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """The weights that what is kept was computed from."""
        return (self._table.weight,) if self._keep else ()

    @property
    def _table(self) -> torch.nn.Embedding:
        return self._backbone.eagle_model.language_model.model.embed_tokens

    def get(self, ids: Tensor, mask: Tensor) -> Prompt:
        """The prompt of token ids [B, S] and attention mask [B, S], integers on the host or on the model's device."""
        if not self._keep or ids.device.type != "cpu" or mask.device.type != "cpu":
            return self._make(ids, mask, keep=False)
        ids, mask = ids.long().contiguous(), (mask != 0).contiguous()
        key = (tuple(ids.shape), ids.numpy().tobytes(), mask.numpy().tobytes())
        return self._kept.get(key, lambda: self._make(ids, mask, keep=True))

    def place(self, prompt: Prompt, image_features: Tensor) -> Tensor:
        """Embeddings with the image features [N, 256, 2048] in their places: [B, S, 2048]."""
        if prompt.image_rows is None:
            return self._backbone.place_images(prompt.embeds, image_features, prompt.ids)
        rows = image_features.flatten(0, 1).to(prompt.embeds.dtype)
        return prompt.embeds.flatten(0, 1).index_copy(0, prompt.image_rows, rows).view_as(prompt.embeds)

    def _make(self, ids: Tensor, mask: Tensor, *, keep: bool) -> Prompt:
        # Asked on the host, before anything is copied to the device.
        padded = not (self._keep and mask.device.type == "cpu" and bool((mask != 0).all()))
        device = self._table.weight.device
        image_rows = None
        if keep:
            image_rows = (ids == self._backbone.image_token_index).flatten().nonzero().flatten()
            image_rows = image_rows.to(device, non_blocking=True)
        placed = ids.to(device, torch.int64, non_blocking=True)
        key_mask, query_mask = (
            padding_tables(mask.to(device, non_blocking=True), self._dtype) if padded else (None, None)
        )
        text = self._backbone.eagle_model.language_model.model.config
        return Prompt(
            ids=placed,
            embeds=self._table(placed),
            image_rows=image_rows,
            rotation=rotation_table(text, ids.shape[1], self._dtype, device),
            key_mask=key_mask,
            query_mask=query_mask,
        )
