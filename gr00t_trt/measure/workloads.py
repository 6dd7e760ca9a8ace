"""The requests that candidates are measured on: one recorded observation, made larger where a row asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..common.interface import Observation
from ..model.n1_5.inputs import IDS, LOOKED_UP, MASK, PIXELS
from ..model.protocol import Model
from ..policy.policy import ModelPolicy
from ..record.result import Workload
from ..record.schema import Inputs


@dataclass(frozen=True, eq=False)
class Request:
    """One request, from the observation to what the model is given.

    Attributes:
        inputs: Model inputs, as the policy prepared them.
        noise: [B, T, action_dim] fp32 on the model's device.
        batched: The observation came as a batch.
    """

    workload: Workload
    observation: Observation
    inputs: Mapping[str, Tensor]
    noise: Tensor
    batched: bool

    @property
    def length(self) -> int:
        """Tokens of its prompts."""
        return int(self.inputs[IDS].shape[1])

    @property
    def images(self) -> int:
        return int(self.inputs[PIXELS].shape[0])

    @property
    def instruction(self) -> str | None:
        texts = next((value for key, value in self.observation.items() if key.startswith("annotation.")), None)
        return None if texts is None else _text(texts)

    def described(self, seed: int) -> Inputs:
        """For the record."""
        work = self.workload
        return Inputs(work.views, work.batch, self.length, work.steps, seed, None, self.instruction)

    def resident(self, model: Model) -> dict[str, Tensor]:
        """The inputs on a model's device; what the model looks up in host memory stays there."""
        return {
            name: value if model.lookups_on_host and name in LOOKED_UP else value.to(model.device)
            for name, value in self.inputs.items()
        }


def one_request(policy: ModelPolicy, observation: Observation, seed: int) -> Request:
    """The request that an observation is. Raises: ObservationError, as `ModelPolicy.preprocess`."""
    inputs, batched = policy.preprocess(observation)
    batch = inputs[IDS].shape[0]
    work = Workload(inputs[PIXELS].shape[0] // batch, batch, policy.denoising_steps)
    return Request(work, observation, inputs, noise_of(policy.model, batch, seed), batched)


def noise_of(model: Model, batch: int, seed: int) -> Tensor:
    """[batch, T, action_dim] fp32 on the model's device, always the same numbers for a seed."""
    shape = (batch, model.action_horizon, model.config.action_head.action_dim)
    # Drawn on the host: a GPU's generator would give other numbers for the same seed.
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(model.device)


class Requests:
    """Requests by workload, each made once.

    Args:
        policy: Prepares the inputs, and knows the action horizon.
        observations: Rows of one episode; the elements of a batch are taken in order, from the start again if needed.
    """

    def __init__(self, policy: ModelPolicy, observations: Sequence[Observation], seed: int):
        self._policy, self._observations, self.seed = policy, observations, seed
        self._inputs: dict[tuple[int, int], dict[str, Tensor]] = {}

    def get(self, work: Workload) -> Request:
        noise = noise_of(self._policy.model, work.batch, self.seed)
        return Request(work, self.observation(work), self.inputs(work), noise, work.batch > 1)

    def alone(self, number: int) -> tuple[dict[str, Tensor], Tensor]:
        """Model inputs of one observation as a request, and noise of its own."""
        inputs, _ = self._policy.preprocess(dict(self._observations[number]))
        return inputs, noise_of(self._policy.model, 1, self.seed + number)

    def observation(self, work: Workload) -> Observation:
        """What a robot would send: unbatched for batch 1, else everything stacked."""
        first = self._observations[0]
        if work.batch == 1:
            return dict(first)
        rows = [self._observations[i % len(self._observations)] for i in range(work.batch)]
        return {
            key: np.stack([row[key] for row in rows])
            if isinstance(value, np.ndarray)
            else [_text(row[key]) for row in rows]
            for key, value in first.items()
        }

    def inputs(self, work: Workload) -> dict[str, Tensor]:
        """Model inputs on the host."""
        key = (work.views, work.batch)
        if key not in self._inputs:
            # A policy on a GPU prepares images there; the larger requests are put together on the host.
            one = {name: value.cpu() for name, value in self._policy.preprocess(self.observation(work))[0].items()}
            config = self._policy.model.config
            self._inputs[key] = with_views(one, work.views, config.image_token_index)
        return self._inputs[key]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value[0])


def with_views(inputs: Mapping[str, Tensor], views: int, image_token: int) -> dict[str, Tensor]:
    """Inputs of one view as inputs of several, equally long in all samples: what the time depends on, not a scene.

    A further view is the same picture shifted sideways, and its tokens, with the one before and the one after them,
    follow those of the first.

    Args:
        inputs: As `Gr00tPolicy.preprocess` makes them, with one image per sample and no padding.
    Returns: The same keys; ids and mask [B, S + (views - 1) (tokens per image + 2)], pixels [B views, 3, H, W].
    """
    if views == 1:
        return dict(inputs)
    ids, pixels = inputs[IDS], inputs[PIXELS]
    places = (ids[0] == image_token).nonzero().flatten()
    start, stop = int(places[0]) - 1, int(places[-1]) + 2
    block = ids[:, start:stop]
    longer = torch.cat([ids[:, :stop], *[block] * (views - 1), ids[:, stop:]], dim=1)
    shifted = [pixels.roll(17 * view, dims=-1) for view in range(views)]
    return {**inputs, IDS: longer, MASK: torch.ones_like(longer), PIXELS: torch.stack(shifted, dim=1).flatten(0, 1)}
