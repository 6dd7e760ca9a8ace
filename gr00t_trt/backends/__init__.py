"""The backends, from eager PyTorch to TensorRT. Importing this package imports none of their compilers."""

from __future__ import annotations

from ..engines.manifest import Coverage, EngineFile
from ..errors import PlanError, unknown
from ..model.targets import Target
from .base import Availability, Backend, Built
from .eager import EagerBackend
from .inductor.backend import InductorBackend
from .onnx.backend import OnnxRuntimeBackend
from .tensorrt.backend import TensorRTBackend
from .torch_tensorrt.backend import TorchTensorRTBackend

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
