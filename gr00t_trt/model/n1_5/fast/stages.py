"""The stages of the restructured model and the compile targets that they are."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping

import torch
from torch import nn

from ....errors import PlanError, unknown
from ...architecture import BATCH, IMAGES, LENGTH, Arguments
from ..architecture import N1_5
from ..gr00t import Gr00tN1d5
from .backbone import FastLanguageModel, FastVisionModel, FastVLComponents, PaddedLanguageModel
from .denoise import DenoiseLoop, DenoiseStep, FastActionDecoder, FastStateEncoder, FoldedActionEncoder
from .dit import CrossAttentionKV, FastDiT, VLWithCrossAttention

STEPPED = N1_5.loops[1:]

_SAMPLE = {0: BATCH}
_AXES: Mapping[str, Mapping[int, str]] = {
    "pixel_values": {0: IMAGES},
    "inputs_embeds": {0: BATCH, 1: LENGTH},
    "rotation": {1: LENGTH},
    "key_mask": {0: BATCH, 2: LENGTH, 3: LENGTH},
    "query_mask": {0: BATCH, 2: LENGTH},
    "backbone_features": {0: BATCH, 1: LENGTH},
    "context": {1: BATCH, 3: LENGTH},
    "modulation": {},
    "modulations": {},
    "step_size": {},
    "encoder_biases_in": {1: BATCH},
}
"""Argument -> its varying axes; arguments that are not listed vary with the batch along their first axis."""


def make_stages(plain: Gr00tN1d5, optimizations: frozenset[str]) -> dict[str, nn.Module]:
    """The stages in the order of a request, made from the plain model's modules. Raises: PlanError for foreign ones."""
    _check_modules(plain)
    head, eagle = plain.action_head, plain.backbone.eagle_model
    fused, cached = "fused_projections" in optimizations, "kv_cache" in optimizations
    language = FastLanguageModel(eagle.language_model.model, fused=fused)
    padded = PaddedLanguageModel(language)
    context = CrossAttentionKV(head.model, fused=fused)
    dit = FastDiT(
        head.model,
        None if cached else context,
        prefix_rows=1 + head.config.num_target_vision_tokens,
        token_pruning="token_pruning" in optimizations,
        fused=fused,
    )
    encoder, decoder = FoldedActionEncoder(), FastActionDecoder()
    step = DenoiseStep(encoder, dit, decoder, folded="constant_folding" in optimizations)
    vl_components = FastVLComponents(head) if fused else head.vl_components()
    unpadded = "prompt_cache" in optimizations
    stages: dict[str, nn.Module] = {
        "vision_model": FastVisionModel(eagle.vision_model) if fused else eagle.vision_model,
        "language_model": language if unpadded else padded,
        **({"language_model_padded": padded} if unpadded else {}),
        "vl_components": VLWithCrossAttention(vl_components, context) if cached else vl_components,
        "state_encoder": FastStateEncoder(),
        "action_encoder": encoder,
        "dit_model": dit,
        "action_decoder": decoder,
        "denoise_step": step,
        "denoise_loop": DenoiseLoop(step),
    }
    for stage in stages.values():
        stage.train(plain.training)
    return stages


def _check_modules(plain: Gr00tN1d5) -> None:
    """Raises: PlanError for a module whose weight is not all that it computes with: fused, the rest would be lost."""
    for name, module in plain.named_modules():
        home = type(module).__module__
        known = home.startswith("torch.nn.modules.") or home.startswith(f"{__package__.rpartition('.')[0]}.")
        weightless = isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding)) and "weight" not in module._parameters
        if not known or weightless:
            raise PlanError(
                f"{name} is a {home}.{type(module).__qualname__}"
                + (" whose weight is computed from other parameters" if weightless else ""),
                known="the modules that the plain model was made with",
                fix="merge adapters and parametrizations into the weights before the model is restructured",
            )


def registry(optimizations: Collection[str] = tuple(N1_5.optimizations)) -> dict[str, Arguments]:
    """Compile target of a model with these optimizations -> its arguments. Raises: PlanError for an unknown name."""
    from ..synthetic import tiny_config

    with torch.device("meta"):
        stages = make_stages(Gr00tN1d5(tiny_config()), check_names(optimizations))
    return {name: arguments_of(stage, optimizations) for name, stage in stages.items()}


def check_names(names: Collection[str]) -> frozenset[str]:
    """The names as a set. Raises: PlanError for one that is not among `N1_5.optimizations`."""
    for name in names:
        if name not in N1_5.optimizations:
            raise unknown(PlanError, "optimizations", name, N1_5.optimizations)
    return frozenset(names)


def arguments_of(stage: nn.Module, optimizations: Collection[str]) -> Arguments:
    """The arguments of a stage's `forward`, and what varies in them."""
    axes = dict(_AXES)
    if "kv_cache" not in optimizations:
        axes["context"] = axes["backbone_features"]
    return {argument: axes.get(argument, _SAMPLE) for argument in _arguments(stage)}


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
