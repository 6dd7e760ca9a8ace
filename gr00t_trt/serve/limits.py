"""What a single request may ask for, looked at before any work is done for it. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from .refusal import Refusal

AXES = {"video": 4, "state": 2}
"""Axes of an array of one sample, without a batch axis."""

CHARACTERS_PER_TOKEN = 32
"""More than any text has on average: what is longer is refused without being tokenized."""


def axes_of(modality_config: Mapping[str, ModalityConfig]) -> dict[str, int]:
    """Key of frames or a state -> axes of one sample."""
    return {
        key: axes
        for modality, axes in AXES.items()
        for key in (modality_config[modality].modality_keys if modality in modality_config else ())
    }


class Limits:
    """Bounds of a request, the same whatever runs the model.

    Args:
        modality_config: Names the keys whose arrays say how many samples there are.
        max_samples: Most samples of one request: the largest batch of the plan's ranges.
        max_tokens: Longest prompt, images included: the longest of the plan's ranges; None for no such limit.
        count_tokens: Length of an instruction's whole prompt. Called from one thread only.
        noise_shape: [T, action_dim] of the noise of one sample; None for a policy that takes none.
    """

    def __init__(
        self,
        modality_config: Mapping[str, ModalityConfig],
        *,
        max_samples: int,
        max_tokens: int | None = None,
        count_tokens: Callable[[str], int] = len,
        noise_shape: tuple[int, int] | None = None,
    ):
        self._axes = axes_of(modality_config)
        self.max_samples, self.max_tokens, self.noise_shape = max_samples, max_tokens, noise_shape
        # The same instruction comes with every request of an episode.
        self.count_tokens = lru_cache(maxsize=256)(count_tokens)

    def samples(self, observation: Observation) -> int:
        """How many samples an observation holds, 1 without a batch axis; costs next to nothing.

        Raises: Refusal for more than `max_samples`, and for a text that is longer than any prompt that is served.
        """
        samples = max((_batch(observation.get(key), axes) for key, axes in self._axes.items()), default=1)
        if samples > self.max_samples:
            text = f"a batch of {samples}, more than the {self.max_samples} of one request"
            raise Refusal(f"{text} (`ranges: batch` of the server's plan): send fewer at once", http_status=400)
        if self.max_tokens is not None:
            most = self.max_tokens * CHARACTERS_PER_TOKEN
            for text in _instructions(observation):
                if len(text) > most:
                    what = f"an instruction of {len(text)} characters, more than the {most} that are looked at"
                    raise Refusal(f"{what}: a prompt has at most {self.max_tokens} tokens", http_status=400)
        return max(samples, 1)

    def check_length(self, observation: Observation) -> None:
        """Raises: Refusal for a prompt of more than `max_tokens`; what is no text is left to the policy."""
        if self.max_tokens is None:
            return
        for text in _instructions(observation)[: self.max_samples]:
            try:
                tokens = self.count_tokens(text)
            except Exception:  # text that no tokenizer takes, of which the policy says what is wrong
                continue
            if tokens > self.max_tokens:
                what = f"a prompt of {tokens} tokens, more than the {self.max_tokens} that are served"
                fix = f"shorten the instruction by {tokens - self.max_tokens} tokens"
                raise Refusal(f"{what} (`ranges: length` of the server's plan): {fix}", http_status=400)

    def noise(self, value: np.ndarray, samples: int) -> np.ndarray:
        """Noise as float32 [B, T, action_dim], from [T, action_dim] or [B, T, action_dim].

        Raises: Refusal for another shape, and for a NaN or an infinity.
        """
        if self.noise_shape is None:
            raise Refusal("noise: this policy takes none", http_status=400)
        wanted = (samples, *self.noise_shape)
        given = value[None] if value.ndim == 2 and samples == 1 else value
        if given.dtype.kind not in "fiu" or given.shape != wanted:
            what = f"noise is {value.dtype} {list(value.shape)}, not numbers {list(wanted)}"
            raise Refusal(f"{what}: [samples, rows, action_dim]", http_status=400)
        with np.errstate(over="ignore"):
            noise = given.astype(np.float32)
        if not np.isfinite(noise).all():
            raise Refusal("noise holds a NaN or an infinity, not standard normal numbers", http_status=400)
        return noise


def _batch(value: Any, axes: int) -> int:
    """Length of the batch axis of an array or nested list; 1 for what has none."""
    if isinstance(value, np.ndarray):
        return value.shape[0] if value.ndim == axes + 1 else 1
    depth, inner = 0, value
    while isinstance(inner, list) and inner:
        depth, inner = depth + 1, inner[0]
    return len(value) if depth == axes + 1 else 1


def _instructions(observation: Observation) -> list[str]:
    """All texts under annotation keys."""
    found: list[str] = []
    for key, value in observation.items():
        if isinstance(key, str) and "annotation" in key:
            items = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
            items = items if isinstance(items, list | tuple) else [items]
            found += [item for item in items if isinstance(item, str)]
    return found
