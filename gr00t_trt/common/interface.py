"""Which keys an observation or an action is made of: what a policy tells its callers. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ModalityConfig:
    """Which keys of one modality a step holds, and at which offsets from the base row.

    Attributes:
        delta_indices: Offsets in rows, [0] for observations and [0, ..., 15] for actions.
        modality_keys: Full keys, such as ``state.left_arm``.
    """

    delta_indices: list[int]
    modality_keys: list[str]
