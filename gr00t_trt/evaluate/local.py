"""A model in this process as a policy: eager, or with a plan carried out on it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from ..common.interface import ModalityConfig
from ..common.progress import Steps
from ..deploy.deploy import Deployment, deploy
from ..plans.resolve import Machine, resolve
from ..plans.schema import Plan
from ..policy.policy import Action, Gr00tPolicy, Observation
from .about import About


class LocalPolicy:
    """A `Gr00tPolicy` whose noise follows a seed, so that two candidates can be given the same.

    Args:
        policy: In fp32, nothing compiled; `name` is what to call it, usually the model's path.
        seed: Of the initial noise: call number n after `restart` always gets the same.
    Attributes:
        deployment: What a plan has made of the model; None in plain eager fp32.
    """

    def __init__(self, policy: Gr00tPolicy, name: str, *, seed: int = 0):
        self.policy, self.name, self.seed = policy, name, seed
        self.deployment: Deployment | None = None
        device = policy.model.device
        # On the default stream, engines fork to another and join it at every call.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        """The next call gets the noise of the first one."""
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        self._noise = torch.Generator().manual_seed(self.seed)

    def carry_out(self, plan: Plan, engine_dir: str | None, steps: Steps, *, chosen: bool = True) -> None:
        """Carry out a plan on the model, in place.

        Args:
            chosen: As for `resolve`.
        Raises: Gr00tError as `deploy.deploy`.
        """
        machine, folder = Machine(str(self.policy.model.device)), Path(engine_dir) if engine_dir else None
        self.deployment = deploy(
            self.policy, resolve(plan, machine, chosen=chosen, engine_dir=folder, timed=False), steps
        )

    def describe(self) -> About:
        """For a record: model, device, and what serves each submodule."""
        facts = {
            "model": self.name,
            "device": str(self.policy.model.device),
            "backends": (self.deployment and self.deployment.backends) or {"all": "eager fp32"},
            "denoising_steps": self.policy.denoising_steps,
        }
        notes = self.deployment.record.skipped if self.deployment else []
        return About(facts, [(note.what, str(note.why)) for note in notes])

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self.policy.get_modality_config()

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        views = {key: self.policy.metadata.view(key) for key in self.policy.modality_config["video"].modality_keys}
        return {key: (view.resolution[1], view.resolution[0]) for key, view in views.items()}

    def get_action(self, observation: Observation) -> Action:
        model = self.policy.model
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            inputs, batched = self.policy.preprocess(observation)
            shape = (inputs["embodiment_id"].shape[0], model.action_horizon, model.config.action_head.action_dim)
            noise = torch.randn(shape, generator=self._noise).to(model.device)
            return self.policy.postprocess(self.policy.predict(inputs, noise), batched=batched)
