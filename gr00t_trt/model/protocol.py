"""What a model of any generation can do: all that the rest of the package asks of one. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .architecture import Architecture
    from .targets import DimRange, Recording, Stage, Target

Inputs = Mapping[str, "Tensor"]
"""Name of a model input -> tensor with a batch axis, see `n1_5.inputs.check_inputs`."""


class Model(Protocol):
    """A model of any generation, plain or restructured: one table of stages, and requests that pass through it."""

    stages: dict[str, Stage]
    """Name -> callable on positional tensors; every call of a part goes through this table."""
    stage_dtypes: dict[str, torch.dtype]
    graphs: Callable[..., Tensor] | None
    """What answers requests in the stages' place; always None for a model that cannot be replayed."""
    loop: str
    denoising_steps: int
    action_horizon: int

    @property
    def architecture(self) -> Architecture: ...
    @property
    def optimizations(self) -> frozenset[str]:
        """In use; none in the plain model."""
        ...

    @property
    def config(self) -> Any: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def lookups_on_host(self) -> bool:
        """Whether token ids, mask and embodiments are looked up in host memory."""
        ...

    def eager_stage(self, name: str) -> nn.Module: ...
    def reset_stages(self) -> None: ...
    def accept_weights(self) -> None:
        """Take the weights as they are now for those of every stage in the table."""
        ...

    def cast_stage(self, name: str, dtype: torch.dtype) -> None: ...
    def cast_glue(self, dtype: torch.dtype) -> None: ...
    def argument_dtypes(self, name: str) -> Sequence[torch.dtype]: ...
    def get_action(self, inputs: Any, noise: Tensor | None = None) -> dict[str, Tensor]: ...
    def prepare(self, inputs: Inputs) -> Any:
        """A request checked and moved to the device, ready for `get_action` and for capturing."""
        ...

    def record(self, inputs: Inputs, noise: Tensor) -> tuple[Recording, Tensor]:
        """Run a request and keep what every stage was called with and gave: a `targets.Recording`, and the actions."""
        ...

    def target(self, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
        """A stage with its recorded inputs, as a `targets.Target`."""
        ...

    def uncaptured(self) -> AbstractContextManager[None]:
        """Requests inside pass through the stages, whatever `graphs` is."""
        ...
