"""The stages of the restructured model and the compile targets that they are."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping

import torch
from torch import nn

from ... import Gr00tN1d5
from ...targets import BATCH, IMAGES, LENGTH, Submodule
from .backbone import FastLanguageModel, FastVisionModel, FastVLComponents, PaddedLanguageModel
from .denoise import (
    DenoiseLoop,
    DenoiseStep,
    FastActionDecoder,
    FastStateEncoder,
    FoldedActionEncoder,
    PlainActionEncoder,
    PlainDenoiseLoop,
    PlainDenoiseStep,
    Tokens,
)
from .dit import Context, FastDiT, VLContext
from .optimisations import OPTIMISATIONS, check_names

STEPPED = ("denoise_step", "denoise_loop")

COVERED: Mapping[str, tuple[str, ...]] = {
    "vision_model": ("vision_model",),
    "language_model": ("language_model",),
    "language_model_padded": ("language_model",),
    "vl_components": ("vl_components",),
    "state_encoder": ("state_encoder",),
    "action_encoder": ("action_encoder",),
    "dit_model": ("dit_model",),
    "action_decoder": ("action_decoder",),
    "denoise_step": ("dit_model", "action_encoder", "action_decoder"),
    "denoise_loop": ("dit_model", "action_encoder", "action_decoder"),
}
"""Stage -> the plain model's stages that are cast with it; the first gives it its dtype.

`vl_components` ends with keys and values made by weights of the DiT. They are cast with `dit_model`, not with it.
"""

_SAMPLE = {0: BATCH}
_AXES: Mapping[str, Mapping[int, str]] = {
    "pixel_values": {0: IMAGES},
    "inputs_embeds": {0: BATCH, 1: LENGTH},
    "rotation": {1: LENGTH},
    "visible": {0: BATCH, 2: LENGTH, 3: LENGTH},
    "seeing": {0: BATCH, 2: LENGTH},
    "backbone_features": {0: BATCH, 1: LENGTH},
    "context": {1: BATCH, 3: LENGTH},
    "modulation": {},
    "modulations": {},
    "step_size": {},
    "tau": {},
    "encoder_tau": {},
    "encoder_taus": {},
    "encoder_biases_in": {1: BATCH},
}
"""Argument -> its varying axes; arguments that are not listed vary with the batch along their first axis."""


def make_stages(plain: Gr00tN1d5, optimisations: frozenset[str]) -> dict[str, nn.Module]:
    """The stages in the order of a request, made from the plain model's modules."""
    head, eagle = plain.action_head, plain.backbone.eagle_model
    fused, hoisted = "fused_projections" in optimisations, "cross_attention_kv" in optimisations
    folded, joined = "action_encoder_fold" in optimisations, "future_tokens" in optimisations

    patches = "patch_product" in optimisations

    language = FastLanguageModel(eagle.language_model.model, fused=fused)
    padded = PaddedLanguageModel(language)
    context = Context(head.model, fused=fused)
    dit = FastDiT(
        head.model,
        None if hoisted else context,
        prefix_rows=1 + head.config.num_target_vision_tokens,
        action_rows="action_rows" in optimisations,
        fused=fused,
    )
    encoder = FoldedActionEncoder() if folded else PlainActionEncoder()
    decoder = FastActionDecoder()
    tokens = Tokens(None, None) if joined else Tokens(head.future_tokens, head.position_embedding)
    step = (DenoiseStep if folded else PlainDenoiseStep)(encoder, tokens, dit, decoder)

    stages: dict[str, nn.Module] = {
        "vision_model": FastVisionModel(eagle.vision_model, fused=fused, patch_product=patches)
        if fused or patches
        else eagle.vision_model,
        "language_model": language if "unpadded_mask" in optimisations else padded,
    }
    if "unpadded_mask" in optimisations:
        stages["language_model_padded"] = padded
    vl_components = FastVLComponents(head) if fused else head.vl_components()
    stages |= {
        "vl_components": VLContext(vl_components, context) if hoisted else vl_components,
        "state_encoder": FastStateEncoder(),
        "action_encoder": encoder,
        "dit_model": dit,
        "action_decoder": decoder,
        "denoise_step": step,
        "denoise_loop": DenoiseLoop(step) if isinstance(step, DenoiseStep) else PlainDenoiseLoop(step),
    }
    for stage in stages.values():
        stage.train(plain.training)
    return stages


def registry(optimisations: Collection[str] = tuple(OPTIMISATIONS)) -> Mapping[str, Submodule]:
    """The compile targets of a model with these optimisations, as `submodules.REGISTRY` lists the plain model's.

    Raises: PlanError for an unknown name.
    """
    with torch.device("meta"):
        return targets_of(make_stages(_smallest(), check_names(optimisations)), optimisations)


def targets_of(stages: Mapping[str, nn.Module], optimisations: Collection[str]) -> dict[str, Submodule]:
    """One compile target per stage, its arguments those of `forward`."""
    axes = dict(_AXES)
    if "cross_attention_kv" not in optimisations:
        axes["context"] = axes["backbone_features"]
    return {
        name: Submodule(name, {argument: axes.get(argument, _SAMPLE) for argument in _arguments(stage)})
        for name, stage in stages.items()
    }


def argument_dtypes(name: str, stage: nn.Module, stage_dtypes: Mapping[str, torch.dtype]) -> tuple[torch.dtype, ...]:
    """What each floating argument of a stage is cast to; actions and step size of a step stay in fp32."""

    def of(argument: str) -> torch.dtype:
        if name not in STEPPED:
            return stage_dtypes[name]
        if argument in ("actions", "step_size"):
            return torch.float32
        owner = {"encoder": "action_encoder", "decoder": "action_decoder"}.get(argument.split("_")[0], "dit_model")
        return stage_dtypes[owner]

    return tuple(of(argument) for argument in _arguments(stage))


def _arguments(stage: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(stage.forward).parameters)


def _smallest() -> Gr00tN1d5:
    from ..synthetic import tiny_config

    return Gr00tN1d5(tiny_config())
