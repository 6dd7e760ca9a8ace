"""The denoising loop's own modules. None of them has per-embodiment weights: those come in as tensors."""

from __future__ import annotations

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


class PlainActionEncoder(nn.Module):
    """The compile target `action_encoder` without `action_encoder_fold`."""

    def forward(
        self,
        actions: Tensor,
        tau: Tensor,
        weight_1: Tensor,
        bias_1: Tensor,
        weight_2: Tensor,
        bias_2: Tensor,
        weight_out: Tensor,
        bias_out: Tensor,
    ) -> Tensor:
        """As `FoldedActionEncoder.forward`; tau [1, 1, D], weights [B, 32, D] and [B, 2 D, D], biases [B, 1, D]."""
        a = torch.baddbmm(bias_1, actions, weight_1)
        h = torch.baddbmm(bias_2, torch.cat((a, tau.expand_as(a)), dim=-1), weight_2)
        return torch.baddbmm(bias_out, F.silu(h), weight_out)


class Tokens(nn.Module):
    """Puts the tokens of a step together.

    Args:
        future: [32, D], position [max_seq_len, D] or None: used without `future_tokens`, else both None.
    """

    def __init__(self, future: nn.Embedding | None, position: nn.Embedding | None):
        super().__init__()
        self.future, self.position = future, position

    def forward(self, prefix: Tensor, action_tokens: Tensor) -> Tensor:
        """[B, 33, D], or the state token alone [B, 1, D]; [B, T, D] -> [B, 33 + T, D]."""
        if self.future is None:
            return torch.cat((prefix, _cast(action_tokens, prefix.dtype)), dim=1)
        future = self.future.weight
        action_tokens = _cast(action_tokens, future.dtype)
        if self.position is not None:
            action_tokens = action_tokens + self.position.weight[: action_tokens.shape[1]]
        batch = action_tokens.shape[0]
        return torch.cat((_cast(prefix, future.dtype), future.expand(batch, -1, -1), action_tokens), dim=1)


class _Step(nn.Module):
    """What the steps share: everything after the action encoder."""

    def __init__(self, encoder: nn.Module, tokens: Tokens, dit: FastDiT, decoder: FastActionDecoder):
        super().__init__()
        self.encoder, self.tokens, self.dit, self.decoder = encoder, tokens, dit, decoder

    def _advance(
        self,
        actions: Tensor,
        tokens: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulation: Tensor,
        step_size: Tensor,
        decoder: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> Tensor:
        hidden = _cast(self.tokens(prefix, tokens), self.dit.dtype)
        output = _cast(self.dit(hidden, context, modulation), decoder[0].dtype)
        velocity = self.decoder(output, *decoder)
        if velocity.shape[1] != actions.shape[1]:
            velocity = velocity[:, -actions.shape[1] :]
        return torch.addcmul(actions, _cast(velocity, actions.dtype), step_size)


class DenoiseStep(_Step):
    """Encode, transform, decode and one Euler step: the compile target `denoise_step`. One graph serves all steps."""

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
            encoder_bias_in: [B, 1, D], the step's; other weights as the encoder and the decoder take them.
        Returns: [B, T, 32] fp32.
        """
        x = _cast(actions, encoder_weight_in.dtype)
        tokens = self.encoder(x, encoder_bias_in, encoder_weight_in, encoder_weight_out, encoder_bias_out)
        decoder = (decoder_weight_1, decoder_bias_1, decoder_weight_2, decoder_bias_2)
        return self._advance(actions, tokens, prefix, context, modulation, step_size, decoder)


class PlainDenoiseStep(_Step):
    """`DenoiseStep` without `action_encoder_fold`."""

    def forward(
        self,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulation: Tensor,
        step_size: Tensor,
        encoder_tau: Tensor,
        encoder_weight_1: Tensor,
        encoder_bias_1: Tensor,
        encoder_weight_2: Tensor,
        encoder_bias_2: Tensor,
        encoder_weight_out: Tensor,
        encoder_bias_out: Tensor,
        decoder_weight_1: Tensor,
        decoder_bias_1: Tensor,
        decoder_weight_2: Tensor,
        decoder_bias_2: Tensor,
    ) -> Tensor:
        """As `DenoiseStep.forward`; encoder_tau is [1, 1, D], the encoded timestep."""
        encoder = (encoder_weight_1, encoder_bias_1, encoder_weight_2, encoder_bias_2)
        x = _cast(actions, encoder_weight_1.dtype)
        tokens = self.encoder(x, encoder_tau, *encoder, encoder_weight_out, encoder_bias_out)
        decoder = (decoder_weight_1, decoder_bias_1, decoder_weight_2, decoder_bias_2)
        return self._advance(actions, tokens, prefix, context, modulation, step_size, decoder)


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
        for modulation, bias_in in zip(modulations.unbind(0), encoder_biases_in.unbind(0), strict=True):
            actions = self.step(actions, prefix, context, modulation, step_size, bias_in, *weights, *decoder)
        return actions


class PlainDenoiseLoop(nn.Module):
    """`DenoiseLoop` without `action_encoder_fold`."""

    def __init__(self, step: PlainDenoiseStep):
        super().__init__()
        self.step = step

    def forward(
        self,
        actions: Tensor,
        prefix: Tensor,
        context: Tensor,
        modulations: Tensor,
        step_size: Tensor,
        encoder_taus: Tensor,
        encoder_weight_1: Tensor,
        encoder_bias_1: Tensor,
        encoder_weight_2: Tensor,
        encoder_bias_2: Tensor,
        encoder_weight_out: Tensor,
        encoder_bias_out: Tensor,
        decoder_weight_1: Tensor,
        decoder_bias_1: Tensor,
        decoder_weight_2: Tensor,
        decoder_bias_2: Tensor,
    ) -> Tensor:
        """As `DenoiseLoop.forward`; encoder_taus is [N, 1, 1, D]."""
        encoder = (encoder_weight_1, encoder_bias_1, encoder_weight_2, encoder_bias_2)
        weights = (*encoder, encoder_weight_out, encoder_bias_out)
        decoder = (decoder_weight_1, decoder_bias_1, decoder_weight_2, decoder_bias_2)
        for modulation, tau in zip(modulations.unbind(0), encoder_taus.unbind(0), strict=True):
            actions = self.step(actions, prefix, context, modulation, step_size, tau, *weights, *decoder)
        return actions


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)
