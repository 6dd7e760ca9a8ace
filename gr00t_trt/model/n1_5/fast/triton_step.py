"""A denoising step, and all of them, as a chain of Triton kernels: three launches beside those of the transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .denoise import DenoiseLoop, DenoiseStep
from .launches import Launches, Norm
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

    def forward(
        self, actions: Tensor, prefix: Tensor, context: Tensor, modulation: Tensor, step_size: Tensor, *weights: Tensor
    ) -> Tensor:
        """As `DenoiseStep.forward`; `weights` are the encoder's and the decoder's, four each."""
        return self.step(Launches(prefix), actions, prefix, context, modulation, step_size, *weights)

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
        """As `forward`, launched by what may launch further steps."""
        tokens, moments = launch.action_tokens(actions, prefix, *weights[:4])
        x, norm = self.dit.blocks(launch, tokens, moments, context, modulation)
        return self._advanced(launch, actions, x, norm, step_size, weights[4:])

    def _advanced(
        self, launch: Launches, actions: Tensor, x: Tensor, norm: Norm, step_size: Tensor, decoder: Sequence[Tensor]
    ) -> Tensor:
        """The actions after what the transformer's blocks say."""
        skip = x.shape[1] - actions.shape[1]
        if self.folded:
            hidden = launch.category_linear(x, *decoder[:2], skip=skip, norm=norm, relu=True)
        else:
            x = launch.linear(x, self.dit.dit.proj_out_2, norm=norm, skip=skip)
            hidden = launch.category_linear(x, *decoder[:2], relu=True)
        return launch.category_linear(hidden, *decoder[2:], euler=(actions, step_size))


class KernelLoop(nn.Module):
    """The same as a `DenoiseLoop`."""

    wants_compiler = False

    def __init__(self, loop: DenoiseLoop):
        super().__init__()
        self.step = KernelStep(loop.step)

    def forward(
        self,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulations: Tensor,
        step_size: Tensor,
        encoder_biases_in: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        """As `DenoiseLoop.forward`; `weights` are the rest of the encoder's and the decoder's."""
        launch = Launches(prefix)
        for modulation, bias_in in zip(modulations.unbind(0), encoder_biases_in.unbind(0), strict=True):
            actions = self.step.step(launch, actions, prefix, context, modulation, step_size, bias_in, *weights)
        return actions


class KernelMlp(nn.Module):
    """The same as an `EmbodimentMlp`, such as the state encoder."""

    wants_compiler = False

    def forward(self, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        """[B, T, in], [B, in, hidden], [B, 1, hidden], [B, hidden, out], [B, 1, out] -> [B, T, out]."""
        launch = Launches(x)
        return launch.category_linear(launch.category_linear(x, weight_1, bias_1, relu=True), weight_2, bias_2)
