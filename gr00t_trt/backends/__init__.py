"""The backends, from eager PyTorch to TensorRT. Importing this package imports none of their compilers."""

from __future__ import annotations

from ..errors import PlanError, unknown
from .base import Availability, Backend, Built, Coverage, EngineFile, Target
from .eager import EagerBackend
from .inductor import InductorBackend
from .onnxruntime import OnnxRuntimeBackend
from .tensorrt import TensorRTBackend
from .torch_tensorrt import TorchTensorRTBackend

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        EagerBackend(),
        InductorBackend(),
        OnnxRuntimeBackend(),
        TorchTensorRTBackend(),
        TensorRTBackend(),
    )
}
"""Name on the command line and in plans -> the backend."""


def get_backend(name: str) -> Backend:
    """The backend of this name. Raises: PlanError naming the known ones."""
    if name not in BACKENDS:
        raise unknown(PlanError, "backend", name, BACKENDS)
    return BACKENDS[name]


def onnx_route() -> str:
    """The backend that an ONNX file goes to on this machine: tensorrt where it can build, else onnxruntime."""
    return "tensorrt" if BACKENDS["tensorrt"].availability().installed else "onnxruntime"


__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "Built",
    "Coverage",
    "EngineFile",
    "Target",
    "get_backend",
    "onnx_route",
]
