"""Which stages have Triton kernels."""

from __future__ import annotations

from torch import nn

from .backbone import FastLanguageModel, FastVisionModel
from .denoise import DenoiseLoop, DenoiseStep
from .dit import FastDiT
from .triton_backbone import KernelLanguageModel, KernelVisionModel, covers
from .triton_dit import TritonDiT
from .triton_step import KernelLoop, KernelStep


def with_kernels(stage: nn.Module) -> nn.Module | None:
    """The stage on Triton kernels, sharing its weights; None for one that they do not serve.

    Raises: BackendError for a transformer that they cannot run.
    """
    if isinstance(stage, FastDiT):
        return TritonDiT(stage)
    if isinstance(stage, DenoiseStep):
        return KernelStep(stage)
    if isinstance(stage, DenoiseLoop):
        return KernelLoop(stage)
    if isinstance(stage, FastVisionModel) and covers(stage):
        return KernelVisionModel(stage)
    return KernelLanguageModel(stage) if isinstance(stage, FastLanguageModel) and covers(stage) else None
