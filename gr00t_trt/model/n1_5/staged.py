"""What the plain and the restructured model have in common: stages in a table, steps, horizon and noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ObservationError, PlanError, unknown
from ..targets import Stage
from .action_head import ActionHead
from .architecture import N1_5
from .backbone import EagleBackbone
from .compiled_stages import CompiledStages
from .config import Gr00tConfig


class StagedModel(nn.Module):
    """A model that calls its parts through one table; two that share their parts share steps and horizon as well.

    The model's own stages read the weights in every request. Once another is in the table, `get_action` refuses with a
    PlanError when the weights are no longer those of that stage's first request, see `CompiledStages`.

    Attributes:
        config: The geometry.
        stages: Name -> callable on positional tensors. Every call of a part goes through this table; the entries are
            not registered as submodules, so replacing one leaves `state_dict` alone.
        stage_dtypes: Name -> dtype that the floating inputs of a stage are cast to before it is called.
        graphs: What answers requests by replay, such as `fast.graphs.RequestGraphs`; None calls the stages. One with
            `launch` may start a request before it and the weights are looked at, see `fast.captured.Replayer`.
    """

    architecture = N1_5
    backbone: EagleBackbone
    action_head: ActionHead

    def __init__(self, config: Gr00tConfig):
        super().__init__()
        self.config = config
        # A plain dict keeps these out of the module tree, where shared parts would be listed twice.
        self._eager: dict[str, nn.Module] = {}
        self.stages: dict[str, Stage] = {}
        # What `reset_stages` puts there.
        self._own: dict[str, Stage] = {}
        self._compiled = CompiledStages()
        self.stage_dtypes: dict[str, torch.dtype] = {}
        self.graphs: Stage | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the parts that belong to no stage of the action head."""
        return self.action_head.future_tokens.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.action_head.future_tokens.weight.device

    @property
    def denoising_steps(self) -> int:
        """Euler steps per action chunk, 1 to `num_timestep_buckets`."""
        return self.action_head.steps

    @denoising_steps.setter
    def denoising_steps(self, steps: int) -> None:
        self.action_head.steps = _whole("denoising_steps", steps, self.config.action_head.num_timestep_buckets)

    @property
    def action_horizon(self) -> int:
        """Actions per chunk, 1 to `max_seq_len`; no weight depends on it."""
        return self.action_head.horizon

    @action_horizon.setter
    def action_horizon(self, horizon: int) -> None:
        self.action_head.horizon = _whole("action_horizon", horizon, self.config.action_head.max_seq_len)

    def eager_stage(self, name: str) -> nn.Module:
        """The PyTorch module of a stage, whatever `stages` holds now. Raises: PlanError for an unknown name."""
        if name not in self._eager:
            raise unknown(PlanError, "stage", name, self._eager)
        return self._eager[name]

    def accept_weights(self) -> None:
        """Take the weights as they are now for those of every stage in the table, whatever they were before.

        For whoever has written them in place: stages that read them go on, and all others were put in anew.
        """
        self._compiled = CompiledStages()

    def start(self, batch: int, noise: Any) -> Tensor:
        """Where the flow starts, [B, T, 32]: `noise`, checked, or standard normal where it is None."""
        shape = (batch, self.action_horizon, self.config.action_head.action_dim)
        if noise is None:
            return torch.randn(shape, device=self.device, dtype=torch.float32)
        if not isinstance(noise, Tensor):
            raise ObservationError(f"noise is {type(noise).__name__}", known="a torch tensor")
        if tuple(noise.shape) != shape:
            known = f"{shape}: samples, action horizon, action width"
            raise ObservationError(f"noise: shape {tuple(noise.shape)}", known=known)
        return noise.to(self.device, torch.float32)


def _whole(name: str, value: object, maximum: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= maximum:
        raise PlanError(f"{name}: bad value {value!r}", known=f"a whole number from 1 to {maximum}")
    return value
