"""Which keys an observation or an action is made of: what a policy tells its callers. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
