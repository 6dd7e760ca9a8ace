"""A model in this process as a policy: eager, or with a plan carried out on it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch

from ..common.interface import ModalityConfig
from ..common.progress import Steps
from ..deploy.deploy import deploy
from ..plans.resolve import Resolved
from ..policy.policy import Action, Gr00tPolicy, Observation
from ..record.schema import Record
from .about import About


class LocalPolicy:
    """A `Gr00tPolicy` whose noise follows a seed, so that two candidates can be given the same.

    Args:
        policy: In fp32, nothing compiled.
        name: What to call it, usually the model's path.
        seed: Of the initial noise: call number n after `restart` always gets the same.
    Attributes:
        backends: As `deploy.Deployment.backends`; None in plain eager fp32.
    """

    def __init__(self, policy: Gr00tPolicy, name: str, *, seed: int = 0):
        self.policy = policy
        self.name = name
        self.seed = seed
        self.backends: dict[str, str] | None = None
        self.startup: Record | None = None
        device = policy.model.device
        # On the default stream, engines fork to another and join it at every call.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.restart()

    def restart(self) -> None:
        """The next call gets the noise of the first one."""
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        self._noise = torch.Generator().manual_seed(self.seed)

    def deploy(self, resolved: Resolved, steps: Steps) -> None:
        """Carry out a plan on the model, in place. Raises: Gr00tError as `deploy.deploy`."""
        done = deploy(self.policy, resolved, steps)
        self.backends, self.startup = done.backends, done.record

    def describe(self) -> About:
        """For a record: model, device, and what serves each submodule."""
        facts = {
            "model": self.name,
            "device": str(self.policy.model.device),
            "backends": self.backends or {"all": "eager fp32"},
            "denoising_steps": self.policy.denoising_steps,
        }
        notes = self.startup.skipped if self.startup else []
        return About(facts, [(note.what, str(note.why)) for note in notes])

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self.policy.get_modality_config()

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Video key -> height and width of the frames that the model was trained with."""
        views = {key: self.policy.metadata.view(key) for key in self.policy.modality_config["video"].modality_keys}
        return {key: (view.resolution[1], view.resolution[0]) for key, view in views.items()}

    def get_action(self, observation: Observation) -> Action:
        """One action chunk. Raises: ObservationError as `Gr00tPolicy.get_action`."""
        model = self.policy.model
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            inputs, batched = self.policy.preprocess(observation)
            shape = (inputs["embodiment_id"].shape[0], model.action_horizon, model.config.action_head.action_dim)
            noise = torch.randn(shape, generator=self._noise).to(model.device)
            return self.policy.postprocess(model.get_action(inputs, noise=noise)["action_pred"], batched=batched)
