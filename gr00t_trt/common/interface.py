"""Which keys an observation or an action is made of: what a policy tells its callers. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import AccuracyError

Observation = Mapping[str, Any]
"""Full key -> camera frames uint8 [H, W, 3], state parts of floats [D], instructions as text; or rows and batches of
them, one or two axes more. `data.observation.validate_observation` says which."""


@dataclass(frozen=True)
class ModalityConfig:
    """Which keys of one modality a step holds, and at which offsets from the base row.

    Attributes:
        delta_indices: Offsets in rows, [0] for observations and [0, ..., 15] for actions.
        modality_keys: Full keys, such as ``state.left_arm``.
    """

    delta_indices: list[int]
    modality_keys: list[str]


def refuse_non_finite(action: Mapping[str, ArrayLike], source: str) -> None:
    """Raises: AccuracyError for a NaN or an infinity among the actions, naming its place: no robot may see it."""
    for key, value in action.items():
        finite = np.isfinite(value)
        if not finite.all():
            place = [int(i) for i in np.argwhere(~finite)[0]]
            what = f"{source}: {key} holds {np.asarray(value)[tuple(place)]} at {place}"
            fix = "try --precision bf16 or fp32: fp16 overflows above 65504"
            raise AccuracyError(what, known="finite actions", fix=fix)
