"""The chain from an observation to model inputs: base class, composition, padding.

Class names and parameters are those of Isaac-GR00T, so that a data config written for it only needs its imports
changed. `apply` is evaluation, in which random augmentations do nothing; a training calls `apply_training`.

Source: Isaac-GR00T, gr00t/data/transform/base.py and gr00t/model/transforms.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

import numpy as np
import torch

from ..errors import Gr00tError, ObservationError, PlanError
from .metadata import DatasetMetadata, embodiment_index
from .prompt import MAX_TILES, Prompter

DEFAULT_TEXT = "Perform the default behavior."
"""The instruction of an observation without an annotation."""

Data = dict[str, Any]
"""What passes along a chain: an observation, perhaps with actions, as `Observation` describes it; then model inputs."""
Draw = Callable[[str], torch.Generator]
"""Purpose, such as ``crop`` -> a generator that is a function of the sample and the purpose."""


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

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        """`apply` as a training does it: augmentations are random, and the model's inputs have the actions.

        Args:
            draw: None draws nothing, for held-out samples.
        Raises: PlanError for one that is not carried out in a training.
        """
        return self.apply(data)

    def unapply(self, data: Data) -> Data:
        """Undo `apply` on whatever keys are there."""
        return dict(data)

    def _each(self, data: Data, change: Callable[[str, Any], Any]) -> Data:
        """Data with `change(key, value)` for every key of `apply_to` that is there."""
        return {**data, **{key: change(key, data[key]) for key in self.apply_to if key in data}}

    def eval(self) -> ModalityTransform:
        """Returns itself: `apply` is evaluation."""
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

    def model_inputs(self) -> Iterator[GR00TTransform]:
        """Every `GR00TTransform` of the chain, also of chains within it."""
        for transform in self.transforms:
            if isinstance(transform, ComposedModalityTransform):
                yield from transform.model_inputs()
            elif isinstance(transform, GR00TTransform):
                yield transform

    def set_prompter(self, prompter: Prompter) -> None:
        """Give the prompter to every `GR00TTransform` of the chain."""
        for transform in self.model_inputs():
            transform.prompter = prompter

    def set_action_dim(self, action_dim: int) -> None:
        """Tell every `GR00TTransform` of the chain how wide the model's actions are."""
        for transform in self.model_inputs():
            transform.max_action_dim = action_dim

    @property
    def default_instruction(self) -> str:
        """What the model reads where there was no instruction."""
        return next((transform.default_instruction for transform in self.model_inputs()), DEFAULT_TEXT)

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

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        for position, transform in enumerate(self.transforms):
            if isinstance(transform, ModalityTransform):
                data = self._run(position, transform, "apply_training", data, draw)
            else:
                data = self._run(position, transform, "apply", data)
        return data

    def unapply(self, data: Data) -> Data:
        for position, transform in reversed(list(enumerate(self.transforms))):
            # Transforms from a user's own config may lack an inverse, as upstream's do.
            if hasattr(transform, "unapply"):
                data = self._run(position, transform, "unapply", data)
        return data

    @staticmethod
    def _run(position: int, transform: ModalityTransform, method: str, data: Data, *more: Any) -> Data:
        try:
            return getattr(transform, method)(data, *more)
        except Gr00tError:
            raise
        except Exception as error:
            raise ObservationError(
                f"transform {position} ({type(transform).__name__}.{method}): {type(error).__name__}: {error}",
                known=f"keys: {', '.join(map(str, data))}",
            ) from error


class GR00TTransform(ModalityTransform):
    """Model inputs: padded state, embodiment index, and the prompt when a prompter is set.

    Result of `apply`, always with a batch axis (1 for unbatched data): ``state`` float64 [B, T, max_state_dim],
    ``state_mask`` bool likewise, ``embodiment_id`` int64 [B]; with a prompter its ``eagle_*`` tensors, without one
    ``images`` uint8 [B, T, V, H, W, 3] and ``texts``, a list of B instructions, to hand to one. Actions are dropped:
    the model predicts them. State and pixels stay on the device of what came in, all else is on the host.
    `apply_training` adds ``action`` float32 [B, T, max_action_dim] and ``action_mask`` bool likewise, true for columns
    that the robot has.

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
        training: Upstream's parameters of training. A ``language_dropout_prob`` is refused in one, others are ignored.
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
        self._training = training

    @property
    def embodiment(self) -> int:
        """Index of the projector. Raises: PlanError before the metadata is known."""
        return int(require(self._embodiment, self))

    def set_metadata(self, metadata: DatasetMetadata) -> None:
        own = self._own_embodiment
        self._embodiment = embodiment_index(metadata.embodiment_tag) if own is None else own

    def apply(self, data: Data) -> Data:
        embodiment = require(self._embodiment, self)
        images = get(data, "video")
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

    def apply_training(self, data: Data, draw: Draw | None) -> Data:
        if draw is not None and self._training.get("language_dropout_prob"):
            refuse_in_training(self, "language_dropout_prob")
        out = self.apply(data)
        action, mask = self._action(get(data, "action"), len(out["state"]))
        return {**out, "action": action, "action_mask": mask}

    def _action(self, action: Any, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        action = torch.as_tensor(action)
        action = action if action.ndim == 3 else action[None]
        if tuple(action.shape[:2]) != (batch, self.action_horizon):
            raise ObservationError(
                f"action has shape {tuple(action.shape)}",
                known=f"[{batch}, {self.action_horizon}, D]: batch and number of action rows",
            )
        width = action.shape[-1]
        if width > self.max_action_dim:
            raise ObservationError(f"action is {width} wide", known=f"at most {self.max_action_dim}, the model's width")
        return _padded(action, self.max_action_dim, torch.float32)

    def _state(self, state: Any, batched: bool, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        if state is None:
            return _padded(torch.zeros(batch, self.state_horizon, 0), self.max_state_dim, torch.float64)
        state = torch.as_tensor(state)
        state = state if batched else state[None]
        if state.ndim != 3 or tuple(state.shape[:2]) != (batch, self.state_horizon):
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
        return _padded(state, self.max_state_dim, torch.float64)

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


def refuse_in_training(transform: ModalityTransform, what: str = "") -> NoReturn:
    """Raises: PlanError for what would be random in a training, and is not carried out here."""
    name = type(transform).__name__ + (f": {what}" if what else "")
    raise PlanError(
        f"{name} is not carried out in a training",
        known="random in a training are VideoCrop, VideoColorJitter, StateActionPerturbation and StateActionDropout",
        fix="take it out of the data config's transform()",
    )


def _padded(values: torch.Tensor, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, T, D] with columns of zeros up to `width`, on its device; and bool likewise, on the host, true for values."""
    own = values.shape[-1]
    mask = (torch.arange(width) < own).repeat(*values.shape[:-1], 1)
    return torch.nn.functional.pad(values.to(dtype), (0, width - own)), mask


def _ours(transform: Any) -> bool:
    return type(transform).__module__.startswith(f"{__package__}.")


def get(data: Data, key: str) -> Any:
    """A value that must be there. Raises: ObservationError."""
    if key not in data:
        raise ObservationError(
            f"key {key!r} is missing", known=sorted(map(str, data)), fix=f"add {key} to the observation"
        )
    return data[key]


def require(value: Any, transform: ModalityTransform) -> Any:
    """What the metadata gave a transform. Raises: PlanError before `set_metadata`."""
    if value is None:
        raise PlanError(f"{type(transform).__name__} has no metadata yet", fix="call set_metadata before apply")
    return value
