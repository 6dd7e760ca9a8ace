"""A denoising step, and all of them, as a chain of Triton kernels: three launches beside those of the transformer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from .denoise import DenoiseLoop, DenoiseStep
from .launches import Launches
from .triton_dit import TritonDiT


class KernelStep(nn.Module):
    """The same as a `DenoiseStep`, on the same weights: same arguments, same result up to rounding.

    Every sample's tokens and velocities are computed with its own weights, so that embodiments may be mixed.

    Raises: BackendError for a transformer that the kernels cannot run.
    """

    wants_compiler = False

    def __init__(self, step: DenoiseStep):
        super().__init__()
        dit: Any = step.dit
        self.dit, self.folded = TritonDiT(dit), step.folded

    def forward(self, actions: Tensor, prefix: Tensor, *rest: Tensor) -> Tensor:
        """As `DenoiseStep.forward`."""
        return self.step(Launches(prefix), actions, prefix, *rest)

    def step(
        self,
        launch: Launches,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulation: Tensor,
        step_size: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """As `forward`, launched by what may launch further steps; of `weights`, four are the encoder's."""
        encoder, decoder = weights[:4], weights[4:]
        tokens, moments = launch.action_tokens(actions, prefix, *encoder)
        x, norm = self.dit.blocks(launch, tokens, moments, context, modulation)
        skip = x.shape[1] - actions.shape[1]
        if self.folded:
            hidden = launch.category_linear(x, *decoder[:2], skip=skip, norm=norm, relu=True)
        else:
            x = launch.linear(x, self.dit.dit.proj_out_2, norm=norm, skip=skip)
            hidden = launch.category_linear(x, *decoder[:2], relu=True)
        return launch.category_linear(hidden, *decoder[2:], euler=(actions, step_size))


class KernelLoop(DenoiseLoop):
    """The same as a `DenoiseLoop`."""

    wants_compiler = False

    def __init__(self, loop: DenoiseLoop):
        super().__init__(loop.step)
        self.kernels = KernelStep(loop.step)

    def stepping(self, prefix: Tensor) -> Callable[..., Tensor]:
        """As `DenoiseLoop.stepping`: one `Launches` for all steps."""
        return partial(self.kernels.step, Launches(prefix))


class KernelMlp(nn.Module):
    """The same as an `EmbodimentMlp`, such as the state encoder."""

    wants_compiler = False

    def forward(self, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        """[B, T, in], [B, in, hidden], [B, 1, hidden], [B, hidden, out], [B, 1, out] -> [B, T, out]."""
        launch = Launches(x)
        return launch.category_linear(launch.category_linear(x, weight_1, bias_1, relu=True), weight_2, bias_2)
