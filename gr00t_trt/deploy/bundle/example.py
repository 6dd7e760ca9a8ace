"""One request and what it was answered with when the bundle was made: what a start is held against.

No model in fp32 is needed for that. The same kernels on the same numbers give the same bits; a library that chooses
another kernel may round differently, within the tolerance of a replayed CUDA graph.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...common.files import parse_json
from ...common.interface import Observation
from ...errors import AccuracyError, RecordError
from ...policy.policy import Gr00tPolicy
from .manifest import AGAIN, EXAMPLE

_NOISE, _ACTIONS = "noise", "actions"
_TEXTS = "texts"


@dataclass(frozen=True, eq=False)
class Example:
    """A request and its answer.

    Attributes:
        noise: fp32 [B, T, action_dim], on the host.
        actions: Normalised fp32 [B, T, action_dim], on the host.
    """

    observation: Observation
    noise: Tensor
    actions: Tensor

    @property
    def batch(self) -> int:
        return self.noise.shape[0]


@dataclass(frozen=True)
class Held:
    """The answer of a start beside the example's.

    Attributes:
        difference: The largest, over the larger of 1 and the largest action.
    """

    equal: bool
    difference: float


@torch.no_grad()
def asked(policy: Gr00tPolicy, observation: Observation, noise: Tensor) -> Tensor:
    """Normalised actions [B, T, action_dim] on the host. Raises: ObservationError, as `preprocess`."""
    inputs, _ = policy.preprocess(observation)
    return policy.predict(inputs, noise.to(policy.model.device)).float().cpu()


def held_against(policy: Gr00tPolicy, example: Example, tolerance: float, where: Path) -> Held:
    """Ask a policy for the example's actions. Raises: AccuracyError where they are further away than the tolerance."""
    actions = asked(policy, example.observation, example.noise)
    scale = max(1.0, float(example.actions.abs().max()))
    difference = float((actions - example.actions).abs().max()) / scale
    if not difference <= tolerance:  # a NaN is not
        raise AccuracyError(
            f"{where}: its example is answered otherwise than when it was made: actions differ by {difference:.2g}",
            known=f"at most {tolerance:g} of the largest action",
            fix="make the bundle again on this machine, or find what has changed: libraries, drivers, settings",
        )
    return Held(torch.equal(actions, example.actions), difference)


def write_example(example: Example, folder: Path) -> None:
    """Raises: OSError."""
    arrays = {key: value for key, value in example.observation.items() if isinstance(value, np.ndarray)}
    texts = {key: value for key, value in example.observation.items() if key not in arrays}
    tensors = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in arrays.items()}
    tensors |= {_NOISE: example.noise.contiguous(), _ACTIONS: example.actions.contiguous()}
    (folder / EXAMPLE).write_bytes(save(tensors, {_TEXTS: json.dumps(texts)}))


def read_example(folder: Path) -> Example:
    """Raises: RecordError for a file that `write_example` did not write."""
    path = folder / EXAMPLE
    try:
        with safe_open(str(path), "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  a file handle, not a dict
            texts = parse_json((file.metadata() or {})[_TEXTS])
        noise, actions = tensors.pop(_NOISE), tensors.pop(_ACTIONS)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path}: not a readable example: {error}", fix=AGAIN) from error
    return Example({key: value.numpy() for key, value in tensors.items()} | texts, noise, actions)
