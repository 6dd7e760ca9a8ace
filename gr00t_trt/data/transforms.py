"""The chain from an observation to model inputs: base classes, composition, concatenation, padding.

Class names and parameters are those of Isaac-GR00T, so that a data config written for it only needs its imports
changed. There is no training mode: random augmentations do nothing, and everything else does what it does in
evaluation.

Source: Isaac-GR00T, gr00t/data/transform/{base,concat}.py and gr00t/model/transforms.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import Gr00tError, ObservationError, PlanError
from .metadata import DatasetMetadata, embodiment_index
from .prompt import MAX_TILES, Prompter

DEFAULT_TEXT = "Perform the default behavior."
"""The instruction of an observation without an annotation."""

Data = dict[str, Any]


class ModalityTransform:
    """One step of the chain.

    Args:
        apply_to: Full keys that it changes, such as ``video.ego_view``.
    """

    def __init__(self, apply_to: Iterable[str] = ()):
        self.apply_to = list(apply_to)

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        """Take statistics and layout before the first `apply`. Raises: PlanError when they do not fit."""

    def check(self, data: Data) -> None:
        """Refuse values, still on the host, that `apply` could not work with. Raises: ObservationError."""

    def apply(self, data: Data) -> Data:
        """Data after this step; the dict that was given is not changed."""
        return dict(data)

    def unapply(self, data: Data) -> Data:
        """Undo `apply` on whatever keys are there."""
        return dict(data)

    def _each(self, data: Data, change: Callable[[str, Any], Any]) -> Data:
        """Data with `change(key, value)` for every key of `apply_to` that is there."""
        return {**data, **{key: change(key, data[key]) for key in self.apply_to if key in data}}

    def eval(self) -> ModalityTransform:
        """Returns itself: evaluation is the only mode."""
        return self

    def __call__(self, data: Data) -> Data:
        return self.apply(data)


class ComposedModalityTransform(ModalityTransform):
    """Transforms in order; the inverse runs in reverse order.

    Raises: ObservationError naming the position when a transform fails in a way of its own.
    """

    def __init__(self, transforms: Sequence[ModalityTransform]):
        super().__init__()
        self.transforms = list(transforms)

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        for transform in self.transforms:
            transform.set_metadata(metadata)

    def set_prompter(self, prompter: Prompter) -> None:
        """Give the prompter to every `GR00TTransform` of the chain."""
        for transform in self.transforms:
            if isinstance(transform, GR00TTransform | ComposedModalityTransform):
                transform.set_prompter(prompter)

    @property
    def default_instruction(self) -> str:
        """What the model reads where there was no instruction."""
        found = (t.default_instruction for t in self.transforms if isinstance(t, GR00TTransform))
        return next(found, DEFAULT_TEXT)

    @property
    def device_generic(self) -> bool:
        """Whether the chain also takes tensors on an accelerator and computes there.

        Every transform of this package does. One from elsewhere, a subclass included, may expect arrays on the host.
        """
        return type(self).__module__ == __name__ and all(
            t.device_generic if isinstance(t, ComposedModalityTransform) else _ours(t) for t in self.transforms
        )

    def check(self, data: Data) -> None:
        for transform in self.transforms:
            if isinstance(transform, ModalityTransform):
                transform.check(data)

    def apply(self, data: Data) -> Data:
        for position, transform in enumerate(self.transforms):
            data = self._run(position, transform, "apply", data)
        return data

    def unapply(self, data: Data) -> Data:
        for position, transform in reversed(list(enumerate(self.transforms))):
            # Transforms from a user's own config may lack an inverse, as upstream's do.
            if hasattr(transform, "unapply"):
                data = self._run(position, transform, "unapply", data)
        return data

    @staticmethod
    def _run(position: int, transform: ModalityTransform, method: str, data: Data) -> Data:
        try:
            return getattr(transform, method)(data)
        except Gr00tError:
            raise
        except Exception as error:
            raise ObservationError(
                f"transform {position} ({type(transform).__name__}.{method}): {type(error).__name__}: {error}",
                known=f"keys: {', '.join(map(str, data))}",
            ) from error


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
        metadata = _require(self._metadata, self)
        out = {k: v for k, v in data.items() if not k.startswith(("video.", "state.", "action."))}
        if self.video_concat_order:
            views = [_get(data, key) for key in self.video_concat_order]
            views = [view if isinstance(view, torch.Tensor) else np.asarray(view) for view in views]
            if len({tuple(view.shape) for view in views}) > 1:
                shapes = {key: tuple(view.shape) for key, view in zip(self.video_concat_order, views, strict=True)}
                raise ObservationError(f"views differ in shape: {shapes}", known="all views share [T, H, W, C]")
            out["video"] = _stack(views)
        if any(k.startswith("state.") for k in data):
            for key in self.state_concat_order:
                info = metadata.part(key)
                allowed = {info.width, 2 * info.width} | ({6} if info.rotation_type else set())
                _check_width(key, _get(data, key), allowed)
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
        metadata = _require(self._metadata, self)
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


class GR00TTransform(ModalityTransform):
    """Model inputs: padded state, embodiment index, and the prompt when a prompter is set.

    Result of `apply`, always with a batch axis (1 for unbatched data): ``state`` float64 [B, T, max_state_dim],
    ``state_mask`` bool likewise, ``embodiment_id`` int64 [B]; with a prompter its ``eagle_*`` tensors, without one
    ``images`` uint8 [B, T, V, H, W, 3] and ``texts``, a list of B instructions, to hand to one. Actions are dropped:
    the model predicts them. State and pixels stay on the device of what came in, all else is on the host.

    Args:
        state_horizon: Rows of state, T; other lengths are refused.
        action_horizon: Rows of action; kept for callers that ask.
        max_state_dim: Width that states are padded to; wider ones are refused.
        max_action_dim: Width of the model's action.
        prompter: Tokenizes and normalises; `ComposedModalityTransform.set_prompter` sets it later.
        default_instruction: Text of an observation without annotation.
        render: Makes of an instruction the text of the prompt; None puts it in verbatim.
        max_tiles: Most tiles of an image that is not of the model's size.
        embodiment: Index of the projector; that of the metadata's embodiment tag when None.
        training: Upstream's parameters of training, accepted and ignored.
    Raises: ObservationError.
    """

    def __init__(
        self,
        apply_to: Iterable[str] = (),
        state_horizon: int = 1,
        action_horizon: int = 16,
        max_state_dim: int = 64,
        max_action_dim: int = 32,
        prompter: Prompter | None = None,
        default_instruction: str = DEFAULT_TEXT,
        render: Callable[[str], str] | None = None,
        max_tiles: int = MAX_TILES,
        embodiment: int | None = None,
        **training: Any,
    ):
        super().__init__(apply_to)
        self.state_horizon, self.action_horizon = state_horizon, action_horizon
        self.max_state_dim, self.max_action_dim = max_state_dim, max_action_dim
        self.prompter, self.default_instruction = prompter, default_instruction
        self.render, self.max_tiles, self._own_embodiment = render, max_tiles, embodiment
        self._embodiment: int | None = embodiment

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        own = self._own_embodiment
        self._embodiment = embodiment_index(metadata.embodiment_tag) if own is None else own

    def set_prompter(self, prompter: Prompter) -> None:
        self.prompter = prompter

    def apply(self, data: Data) -> Data:
        embodiment = _require(self._embodiment, self)
        images = _get(data, "video")
        if not isinstance(images, torch.Tensor):
            images = np.asarray(images)
        if images.ndim not in (5, 6):
            raise ObservationError(
                f"video has shape {tuple(images.shape)}", known="[T, V, H, W, C] or [B, T, V, H, W, C]"
            )
        batched = images.ndim == 6
        if not batched:
            images = images[None]
        state, mask = self._state(data.get("state"), batched, len(images))
        texts = self._texts(data, batched, len(images))
        texts = [self.render(text) for text in texts] if self.render else texts
        prompt: Data = {"images": images, "texts": texts}
        if self.prompter is not None:
            prompt = self.prompter(images, texts, max_tiles=self.max_tiles)
        return {
            **prompt,
            "state": state,
            "state_mask": mask,
            "embodiment_id": torch.full((len(images),), embodiment, dtype=torch.int64),
        }

    def _state(self, state: Any, batched: bool, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (batch, self.state_horizon, self.max_state_dim)
        state = None if state is None else torch.as_tensor(state)
        out = torch.zeros(shape, dtype=torch.float64, device=None if state is None else state.device)
        mask = torch.zeros(shape, dtype=torch.bool)
        if state is not None:
            state = state if batched else state[None]
            if state.ndim != 3 or tuple(state.shape[:2]) != shape[:2]:
                raise ObservationError(
                    f"state has shape {tuple(state.shape)}",
                    known=f"[{batch}, {self.state_horizon}, D]: batch and number of observation rows",
                )
            width = state.shape[-1]
            if width > self.max_state_dim:
                raise ObservationError(
                    f"state is {width} wide: the last {width - self.max_state_dim} values would never reach the model",
                    known=f"at most {self.max_state_dim}",
                    fix="leave parts out of state_keys in the data config",
                )
            out[..., :width] = state
            mask[..., :width] = True
        return out, mask

    def _texts(self, data: Data, batched: bool, batch: int) -> list[str]:
        keys = [key for key in data if "annotation" in key]
        if len(keys) > 1:
            raise ObservationError(f"two instructions: {', '.join(keys)}", fix="send exactly one annotation key")
        if not keys:
            return [self.default_instruction] * batch
        value = data[keys[0]]
        items = [value] if isinstance(value, str) else [str(v) for v in np.asarray(value).reshape(-1)]
        # A step of a dataset carries one text per observed row; the first one is the instruction.
        items = items if batched else items[:1]
        if len(items) != batch:
            raise ObservationError(f"{keys[0]}: {len(items)} instructions", known=f"a batch of {batch}")
        return items


def _ours(transform: Any) -> bool:
    return type(transform).__module__.startswith(f"{__package__}.")


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


def _get(data: Data, key: str) -> Any:
    if key not in data:
        raise ObservationError(f"key {key!r} is missing", known=sorted(map(str, data)), fix=f"add {key} to the data")
    return data[key]


def _check_width(key: str, value: Any, allowed: set[int]) -> None:
    if value.shape[-1] not in allowed:
        raise ObservationError(
            f"{key} is {value.shape[-1]} wide",
            known=f"{' or '.join(map(str, sorted(allowed)))} according to the metadata",
        )


def _require(value: Any, transform: ModalityTransform) -> Any:
    if value is None:
        raise PlanError(f"{type(transform).__name__} has no metadata yet", fix="call set_metadata before apply")
    return value
