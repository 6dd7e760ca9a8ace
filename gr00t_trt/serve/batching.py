"""Dynamic batching: which waiting requests can share one forward pass, how they are stacked and split again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from .limits import AXES, axes_of


def buckets_up_to(most: int) -> list[int]:
    """Batch sizes that are worth a graph each: 1, 2, 4, 8, and so on, none above `most`."""
    return [2**power for power in range(most.bit_length())]


class Batcher:
    """Joins single requests of the same form into one batched observation.

    Args:
        modality_config: Names the keys that the policy reads; others are left out.
        count_tokens: Length of an instruction in tokens; should be cached. Prompts of unequal length would need
            padding, which gives a request other numbers than it would get alone.
    """

    def __init__(self, modality_config: Mapping[str, ModalityConfig], count_tokens: Callable[[str], int]):
        self._keys = axes_of(modality_config)
        self._count_tokens = count_tokens

    def form(self, observation: Observation) -> Hashable | None:
        """Requests of equal form can be joined; None for one that has to be answered alone.

        That is one with a batch axis of its own, and anything out of the ordinary: validating is left to the policy.
        """
        shapes, named = [], _annotations(observation)
        others = observation.keys() - self._keys.keys() - set(named)
        if any(not str(key).startswith("action.") for key in others):
            return None  # the policy says what it thinks of it
        for key, axes in self._keys.items():
            value = observation.get(key)
            if not isinstance(value, np.ndarray) or value.ndim != axes:
                return None
            shapes.append((value.shape, value.dtype.str))
        if not named:
            return (*shapes, None)
        text = _text(observation[named[0]])
        if len(named) > 1 or text is None:
            return None
        try:
            return (*shapes, named[0], self._count_tokens(text))
        except Exception:  # text that no tokenizer takes, such as half a surrogate pair
            return None

    def shared_form(self, observation: Observation) -> Hashable | None:
        """Requests of equal shared form can share a pass even where their robots are of different kinds.

        Their prompts are equally long. Without an instruction, for which each kind has its own, it is as `form`.
        """
        form: Any = self.form(observation)
        if form is None or form[-1] is None:
            return form
        return sum(observation[key].shape[0] for key, axes in self._keys.items() if axes == AXES["video"]), form[-1]

    def join(self, observations: Sequence[Observation]) -> Observation:
        """Observations of equal form as one with a leading batch axis."""
        arrays = {key: np.stack([each[key] for each in observations]) for key in self._keys}
        texts = {key: [_text(each[key]) for each in observations] for key in _annotations(observations[0])}
        return {**arrays, **texts}

    @staticmethod
    def part(action: Mapping[str, np.ndarray], size: int) -> list[dict[str, np.ndarray]]:
        """The actions of a batch, [B, T, D] per key, as one dict of [T, D] per request."""
        return [{key: value[i] for key, value in action.items()} for i in range(size)]


def _annotations(observation: Observation) -> list[str]:
    return [key for key in observation if isinstance(key, str) and "annotation" in key]


def _text(value: Any) -> str | None:
    if isinstance(value, np.ndarray):
        value = value.reshape(-1).tolist()
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else None
