"""Whether another checkpoint can take the place of the one that is served: the same network, robot and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig
from ..data import DatasetMetadata
from ..errors import CheckpointError
from ..policy.policy import Gr00tPolicy, ModelPolicy


def refuse_other_model(new: Any, old: Any) -> None:
    """Raises: CheckpointError naming what differs between two geometries."""
    for key, now, then in _differences(new, old):
        raise CheckpointError(
            f"the new checkpoint is of another geometry: {key} is {now}, and {then} in the one that is served",
            fix="start a server of its own for it",
        )


def _differences(new: Any, old: Any, at: str = "") -> Iterator[tuple[str, object, object]]:
    """Field by field, without the ids of special tokens, which a checkpoint leaves to its tokenizer."""
    for name in (field.name for field in fields(new)):
        now, then = getattr(new, name), getattr(old, name)
        if is_dataclass(now):
            yield from _differences(now, then, f"{at}{name}.")
        elif now != then and name != "special_tokens":
            yield f"{at}{name}", now, then


def refuse_other_robot(new: ModelPolicy, old: ModelPolicy) -> None:
    """Raises: CheckpointError for a policy that is asked, or answers, in another way."""
    for what, now, then in _forms(new, old):
        if now != then:
            raise CheckpointError(
                f"the new checkpoint's {what} differ: {now}",
                known=f"{then}, as the clients of this deployment expect",
                fix="start a server of its own for it",
            )


def _forms(new: ModelPolicy, old: ModelPolicy) -> Iterator[tuple[str, Any, Any]]:
    if not isinstance(old, Gr00tPolicy):
        return
    asked: Mapping[str, Callable[[Any], Any]] = {
        "embodiment tags": lambda policy: policy.metadata.embodiment_tag,
        "data configs": lambda policy: policy.config_name,
        "keys": lambda policy: _keys(policy.modality_config),
        "widths of actions": lambda policy: _widths(policy.modality_config, policy.metadata),
        "observations": lambda policy: {key: np.shape(value) for key, value in policy.example().items()},
        "tokenizers": lambda policy: policy.prompter.tokenizer.fingerprint(),
    }
    for what, of in asked.items():
        yield what, of(new), of(old)


def _keys(config: Mapping[str, ModalityConfig]) -> dict[str, tuple[list[str], list[int]]]:
    return {name: (list(own.modality_keys), list(own.delta_indices)) for name, own in config.items()}


def _widths(config: Mapping[str, ModalityConfig], metadata: DatasetMetadata) -> dict[str, int]:
    return {key: metadata.part(key).width for key in config["action"].modality_keys}
