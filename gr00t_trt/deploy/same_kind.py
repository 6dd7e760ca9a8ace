"""Whether another checkpoint can take the place of the one that is served: the same network, robot and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..policy.policy import Gr00tPolicy, ModelPolicy


def refuse_other_model(new: Any, old: Any) -> None:
    """Raises: CheckpointError naming what differs between two geometries."""
    for key, now, then in _differences(_geometry(new), _geometry(old)):
        raise CheckpointError(
            f"the new checkpoint is of another geometry: {key} is {now}, and {then} in the one that is served",
            fix="start a server of its own for it",
        )


def _geometry(config: Any) -> dict[str, Any]:
    """Without the tokenizer's ids, which a checkpoint leaves to its tokenizer."""
    found = asdict(config)
    found["eagle"].pop("special_tokens", None)
    return found


def _differences(new: Mapping[str, Any], old: Mapping[str, Any], at: str = "") -> Iterator[tuple[str, Any, Any]]:
    for key, value in new.items():
        if isinstance(value, Mapping):
            yield from _differences(value, old[key], f"{at}{key}.")
        elif value != old[key]:
            yield f"{at}{key}", value, old[key]


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


def _keys(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: [list(own.modality_keys), list(own.delta_indices)] for name, own in config.items()}


def _widths(config: Mapping[str, Any], metadata: Any) -> dict[str, int]:
    return {key: metadata.part(key).width for key in config["action"].modality_keys}
