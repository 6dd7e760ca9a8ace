"""Which stages have Triton kernels."""

from __future__ import annotations

from torch import nn

from .backbone import FastLanguageModel, FastVisionModel, FastVLComponents
from .denoise import DenoiseLoop, DenoiseStep, EmbodimentMlp
from .dit import FastDiT, VLWithCrossAttention
from .triton_backbone import (
    KernelLanguageModel,
    KernelVisionModel,
    KernelVLComponents,
    KernelVLWithCrossAttention,
    covers,
)  # fmt: skip
from .triton_chains import LanguageChain, VisionChain, can_be_chained
from .triton_dit import TritonDiT
from .triton_step import KernelLoop, KernelMlp, KernelStep


def with_kernels(stage: nn.Module, *, chained: bool = False) -> nn.Module | None:
    """The stage on Triton kernels, sharing its weights; None for one that they do not serve.

    Args:
        chained: Products of vision tower and language model by Triton kernels too, where they know all layers.
    Raises: BackendError for a transformer that they cannot run.
    """
    if isinstance(stage, FastDiT):
        return TritonDiT(stage)
    if isinstance(stage, DenoiseStep):
        return KernelStep(stage)
    if isinstance(stage, DenoiseLoop):
        return KernelLoop(stage)
    if isinstance(stage, EmbodimentMlp):
        return KernelMlp()
    if isinstance(stage, FastVisionModel) and chained and can_be_chained(stage):
        return VisionChain(stage)
    if isinstance(stage, FastLanguageModel) and chained and can_be_chained(stage):
        return LanguageChain(stage)
    return _with_attention(stage)


def _with_attention(stage: nn.Module) -> nn.Module | None:
    """With kernels of attention only; None where they do not fit."""
    if isinstance(stage, VLWithCrossAttention):
        inner = stage.vl_components
        return KernelVLWithCrossAttention(stage) if isinstance(inner, FastVLComponents) and covers(inner) else None
    if isinstance(stage, FastVLComponents) and covers(stage):
        return KernelVLComponents(stage)
    if isinstance(stage, FastVisionModel) and covers(stage):
        return KernelVisionModel(stage)
    return KernelLanguageModel(stage) if isinstance(stage, FastLanguageModel) and covers(stage) else None
