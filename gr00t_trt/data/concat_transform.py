"""Views stacked, and parts of state and action joined, into what the model takes.

Source: Isaac-GR00T, gr00t/data/transform/concat.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import ObservationError
from .metadata import DatasetMetadata
from .transforms import Data, ModalityTransform, get, require


class ConcatTransform(ModalityTransform):
    """Views stacked, state and action parts joined, in the order of the data config.

    Args:
        video_concat_order: Views, [..., T, H, W, C] each, stacked before H into ``video`` [..., T, V, H, W, C].
        state_concat_order: State parts, joined on the last axis into ``state``.
        action_concat_order: Action parts, likewise; only when the data holds actions.
    """

    def __init__(
        self,
        apply_to: Iterable[str] = (),
        video_concat_order: Sequence[str] = (),
        state_concat_order: Sequence[str] | None = None,
        action_concat_order: Sequence[str] | None = None,
    ):
        super().__init__(apply_to)
        self.video_concat_order = list(video_concat_order)
        self.state_concat_order = list(state_concat_order or ())
        self.action_concat_order = list(action_concat_order or ())
        self._metadata: DatasetMetadata | None = None

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        self._metadata = metadata
        for key in self.state_concat_order + self.action_concat_order:
            metadata.part(key)

    def apply(self, data: Data) -> Data:
        metadata = require(self._metadata, self)
        out = {k: v for k, v in data.items() if not k.startswith(("video.", "state.", "action."))}
        if self.video_concat_order:
            views = [get(data, key) for key in self.video_concat_order]
            views = [view if isinstance(view, torch.Tensor) else np.asarray(view) for view in views]
            if len({tuple(view.shape) for view in views}) > 1:
                shapes = {key: tuple(view.shape) for key, view in zip(self.video_concat_order, views, strict=True)}
                raise ObservationError(f"views differ in shape: {shapes}", known="all views share [T, H, W, C]")
            out["video"] = _stack(views)
        if any(k.startswith("state.") for k in data):
            for key in self.state_concat_order:
                info = metadata.part(key)
                allowed = {info.width, 2 * info.width} | ({6} if info.rotation_type else set())
                _check_width(key, get(data, key), allowed)
            if self.state_concat_order:
                out["state"] = _join([data[key] for key in self.state_concat_order])
        present = [k for k in data if k.startswith("action.")]
        if present and self.action_concat_order:
            if set(present) != set(self.action_concat_order):
                raise ObservationError(
                    f"action keys {sorted(present)}",
                    known=f"all of {', '.join(self.action_concat_order)}, or none",
                    fix="leave recorded actions out of the observation",
                )
            for key in self.action_concat_order:
                _check_width(key, data[key], {metadata.part(key).width})
            out["action"] = _join([data[key] for key in self.action_concat_order])
        return out

    def unapply(self, data: Data) -> Data:
        """Slices of ``action`` in order, padding ignored; and of ``state``, where no part has changed its width."""
        metadata = require(self._metadata, self)
        out = dict(data)
        for name, order in (("action", self.action_concat_order), ("state", self.state_concat_order)):
            width = sum(metadata.part(key).width for key in order)
            if name not in data or (name == "state" and data[name].shape[-1] != width):
                continue
            del out[name]
            start = 0
            for key in order:
                end = start + metadata.part(key).width
                if end > data[name].shape[-1]:
                    raise ObservationError(
                        f"{name} is {data[name].shape[-1]} wide, {key} ends at {end}",
                        fix="the model's action_dim is smaller than this data config's action",
                    )
                out[key] = data[name][..., start:end]
                start = end
        return out


def _stack(views: Sequence[Any]) -> Any:
    """[..., T, H, W, C] each to [..., T, V, H, W, C]; one view alone is not copied."""
    if len(views) == 1:
        return views[0][..., None, :, :, :]
    stack: Any = torch.stack if isinstance(views[0], torch.Tensor) else np.stack
    move: Any = torch.movedim if isinstance(views[0], torch.Tensor) else np.moveaxis
    # Planes stay contiguous in memory, as the resized frames are; interleaving them is several times slower.
    return move(stack([move(view, -1, -3) for view in views], -4), -3, -1)


def _join(values: Sequence[Any]) -> Any:
    if any(isinstance(v, torch.Tensor) for v in values):
        return torch.cat([torch.as_tensor(v) for v in values], dim=-1)
    return np.concatenate(values, axis=-1)


def _check_width(key: str, value: Any, allowed: set[int]) -> None:
    if value.shape[-1] not in allowed:
        raise ObservationError(
            f"{key} is {value.shape[-1]} wide",
            known=f"{' or '.join(map(str, sorted(allowed)))} according to the metadata",
        )
