"""Which stages have Triton kernels."""

from __future__ import annotations

from torch import nn

from .backbone import FastLanguageModel, FastVisionModel
from .denoise import DenoiseLoop, DenoiseStep, EmbodimentMlp
from .dit import FastDiT
from .triton_backbone import with_attention
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
    return with_attention(stage)
