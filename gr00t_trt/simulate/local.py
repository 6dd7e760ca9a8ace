"""A model in this process as an actor of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from ..common.devices import side_stream
from ..common.interface import ModalityConfig, Observation
from ..evaluate.local import LocalPolicy
from .actors import Question


class LocalActor:
    """A local policy, asked about several environments at once, each with the noise of its own question.

    A server that is told the same seed draws the same noise.
    """

    together, timed = True, True

    def __init__(self, local: LocalPolicy):
        self._local, self._policy = local, local.policy

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self._local.get_modality_config()

    def answer(self, observation: Observation, questions: Sequence[Question]) -> Mapping[str, np.ndarray]:
        model = self._policy.model
        shape = (model.action_horizon, model.config.action_head.action_dim)
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        drawn = [torch.randn(shape, generator=torch.Generator().manual_seed(q.noise_seed)) for q in questions]
        with side_stream(model.device):
            return self._policy.get_action(observation, noise=torch.stack(drawn).to(model.device))
