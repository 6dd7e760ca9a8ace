"""The denoising loop's own modules. None of them has per-embodiment weights: those come in as tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dit import FastDiT


class EmbodimentMlp(nn.Module):
    """Two layers around a ReLU with one set of weights per sample."""

    def _run(self, x: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        return torch.baddbmm(bias_2, F.relu(torch.baddbmm(bias_1, x, weight_1)), weight_2)


class FastStateEncoder(EmbodimentMlp):
    """The compile target `state_encoder`."""

    def forward(self, state: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor) -> Tensor:
        """[B, 1, 64], [B, 64, 1024], [B, 1, 1024], [B, 1024, 1536], [B, 1, 1536] -> [B, 1, 1536]."""
        return self._run(state, weight_1, bias_1, weight_2, bias_2)


class FastActionDecoder(EmbodimentMlp):
    """The compile target `action_decoder`."""

    def forward(
        self, model_output: Tensor, weight_1: Tensor, bias_1: Tensor, weight_2: Tensor, bias_2: Tensor
    ) -> Tensor:
        """[B, T, 1024], [B, 1024, 1024], [B, 1, 1024], [B, 1024, 32], [B, 1, 32] -> [B, T, 32]."""
        return self._run(model_output, weight_1, bias_1, weight_2, bias_2)


class FoldedActionEncoder(nn.Module):
    """The compile target `action_encoder`: its first two layers are one, its timestep a bias."""

    def forward(
        self, actions: Tensor, bias_in: Tensor, weight_in: Tensor, weight_out: Tensor, bias_out: Tensor
    ) -> Tensor:
        """[B, T, 32], [B, 1, D], [B, 32, D], [B, D, D], [B, T or 1, D] -> [B, T, D]."""
        return torch.baddbmm(bias_out, F.silu(torch.baddbmm(bias_in, actions, weight_in)), weight_out)


class DenoiseStep(nn.Module):
    """Encode, transform, decode and one Euler step: the compile target `denoise_step`. One graph serves all steps.

    Args:
        folded: The decoder's first layer is given with the transformer's last one multiplied into it.
    """

    def __init__(self, encoder: FoldedActionEncoder, dit: FastDiT, decoder: FastActionDecoder, *, folded: bool):
        super().__init__()
        self.encoder, self.dit, self.decoder, self.folded = encoder, dit, decoder, folded

    def forward(
        self,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulation: Tensor,
        step_size: Tensor,
        encoder_bias_in: Tensor,
        encoder_weight_in: Tensor,
        encoder_weight_out: Tensor,
        encoder_bias_out: Tensor,
        decoder_weight_1: Tensor,
        decoder_bias_1: Tensor,
        decoder_weight_2: Tensor,
        decoder_bias_2: Tensor,
    ) -> Tensor:
        """Advance the actions by one step.

        Args:
            actions: [B, T, 32] fp32.
            prefix: [B, 33, D], state and future tokens.
            context: As `FastDiT.forward`, and modulation likewise.
            step_size: [1] fp32, one over the number of steps.
            encoder_bias_in: [B, 1, D], the step's; other weights as the encoder and the decoder take them, but for
                `decoder_weight_1`, [B, D, 1024], where it is folded.
        Returns: [B, T, 32] fp32.
        """
        encoder = (encoder_bias_in, encoder_weight_in, encoder_weight_out, encoder_bias_out)
        decoder = (decoder_weight_1, decoder_bias_1, decoder_weight_2, decoder_bias_2)
        tokens = join_tokens(prefix, self.encoder(_cast(actions, encoder[1].dtype), *encoder))
        output = (self.dit.features if self.folded else self.dit)(tokens, context, modulation)
        velocity = self.decoder(_cast(output, decoder[0].dtype), *decoder)
        if velocity.shape[1] != actions.shape[1]:
            velocity = velocity[:, -actions.shape[1] :]
        return torch.addcmul(actions, _cast(velocity, actions.dtype), step_size)


class DenoiseLoop(nn.Module):
    """All steps in one graph: the compile target `denoise_loop`. The number of steps is that of the tables' rows."""

    def __init__(self, step: DenoiseStep):
        super().__init__()
        self.step = step

    def forward(
        self,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulations: Tensor,
        step_size: Tensor,
        encoder_biases_in: Tensor,
        encoder_weight_in: Tensor,
        encoder_weight_out: Tensor,
        encoder_bias_out: Tensor,
        decoder_weight_1: Tensor,
        decoder_bias_1: Tensor,
        decoder_weight_2: Tensor,
        decoder_bias_2: Tensor,
    ) -> Tensor:
        """As `DenoiseStep.forward`, from noise to actions; modulations [N, 34, D], encoder_biases_in [N, B, 1, D]."""
        weights = (encoder_weight_in, encoder_weight_out, encoder_bias_out)
        decoder = (decoder_weight_1, decoder_bias_1, decoder_weight_2, decoder_bias_2)
        step = self.stepping(prefix)
        for modulation, bias_in in zip(modulations.unbind(0), encoder_biases_in.unbind(0), strict=True):
            actions = step(actions, prefix, context, modulation, step_size, bias_in, *weights, *decoder)
        return actions

    def stepping(self, prefix: Tensor) -> Callable[..., Tensor]:
        """The callable that takes each step of one request, with the arguments of `DenoiseStep.forward`."""
        return self.step


def join_tokens(prefix: Tensor, action_tokens: Tensor) -> Tensor:
    """[B, 33, D] in the DiT's dtype, [B, T, D] -> [B, 33 + T, D], the tokens of a step."""
    return torch.cat((prefix, _cast(action_tokens, prefix.dtype)), dim=1)


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)
