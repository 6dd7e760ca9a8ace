"""The backends, a row each: all that the rest of the package knows of them. Never imports torch.

A backend is one class in `gr00t_trt.backends` (see `backends.base.Backend`) and one row here; whoever offers, ranks,
draws or describes backends reads `BACKENDS`.
"""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import PlanError, unknown


@dataclass(frozen=True)
class Availability:
    """Whether a backend can be used here, and why not.

    Attributes:
        installed: The backend can build here.
        reason: When not installed: what is missing and the install command. Else an empty string.
        versions: Distribution or library name -> version, for the record.
        caveats: Plain sentences that a user of this backend here must know.
    """

    installed: bool
    reason: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class BackendRow:
    """One backend.

    Attributes:
        name: On the command line, in plans and in records.
        title: What people call it, in labels.
        source: ``module:Class``, imported when the backend is used; one that starts with a dot is below
            `gr00t_trt.backends`.
        color: In charts, as ``#rrggbb``; readers of all kinds of colour vision should tell the rows apart.
        moving_parts: What it needs besides PyTorch, counted: where latencies leave it open, the row with fewer wins.
        writes: What it leaves in `--engine_dir`.
        honors: The fields of `BuildOptions` that mean something to it.
        distributions: Python distributions whose versions a record names.
        falls_back: The backend of the stages that it has nothing for.
        executed_by: Where engines are built and cannot run: what computes the numbers that are compared.
        not_on_cpu: The precisions that it has no products for where a CPU computes.
    """

    name: str
    title: str
    source: str
    color: str
    moving_parts: int
    writes: Literal["engines", "ONNX files"] | None = None
    honors: tuple[str, ...] = ()
    distributions: tuple[str, ...] = ()
    falls_back: str | None = None
    executed_by: str | None = None
    not_on_cpu: tuple[str, ...] = ()

    @functools.cached_property
    def backend(self) -> Any:
        """The one instance of the backend, a `backends.base.Backend`."""
        module, _, name = self.source.partition(":")
        return getattr(importlib.import_module(module, "gr00t_trt.backends"), name)()

    @property
    def makes_engines(self) -> bool:
        """Whether it builds TensorRT engines."""
        return self.writes == "engines"


_TENSORRT = ("tensorrt", "tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx")
_ENGINE_OPTIONS = ("use_fp32_acc", "use_explicit_typing", "disable_tf32", "debug", "optimization_level")
_FURTHER = ("use_cpp_runtime", "cpu_offload", "decompose_attention", "require_full_compilation", "compute_capabilities")

BACKENDS: dict[str, BackendRow] = {
    row.name: row
    for row in (
        BackendRow("eager", "eager PyTorch", ".eager:EagerBackend", "#8C8C8C", moving_parts=0),
        BackendRow("inductor", "torch.compile", ".inductor.backend:InductorBackend", "#E0B000", moving_parts=1),
        BackendRow(
            "triton",
            "Triton kernels",
            ".triton:TritonBackend",
            "#D55E00",
            moving_parts=2,
            distributions=("triton",),
            falls_back="inductor",
        ),
        BackendRow(
            "onnxruntime",
            "ONNX Runtime",
            ".onnx.backend:OnnxRuntimeBackend",
            "#CC79A7",
            moving_parts=2,
            writes="ONNX files",
            honors=("use_fp32_acc", "disable_tf32", "debug", "optimization_level"),
            distributions=("onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu"),
            not_on_cpu=("bf16",),
        ),
        BackendRow(
            "torch_tensorrt",
            "Torch-TensorRT",
            ".torch_tensorrt.backend:TorchTensorRTBackend",
            "#009E73",
            moving_parts=4,
            writes="engines",
            honors=(*_ENGINE_OPTIONS, *_FURTHER),
            distributions=("torch-tensorrt", "torch-tensorrt-rtx", *_TENSORRT),
            executed_by="the compiler's own graph, executed in PyTorch",
        ),
        BackendRow(
            "tensorrt",
            "ONNX-TensorRT",
            ".tensorrt.backend:TensorRTBackend",
            "#0072B2",
            moving_parts=3,
            writes="engines",
            honors=(*_ENGINE_OPTIONS, "compute_capabilities", "trt_engine_path"),
            distributions=("onnx", "onnxscript", *_TENSORRT),
            executed_by="the exported graph, run by ONNX Runtime",
        ),
    )
}
"""Name -> row, in the order in which they are tried. Exported to ONNX, attention is always decomposed, and a file
becomes one engine or none: hence the options that `tensorrt` and `onnxruntime` lack."""

AUTO = "auto"
"""In a backend's place: whichever of them is measured to be the fastest."""


def get_backend(name: str) -> Any:
    """The backend of this name, a `backends.base.Backend`. Raises: PlanError naming the known ones."""
    if name not in BACKENDS:
        raise unknown(PlanError, "backend", name, BACKENDS)
    return BACKENDS[name].backend


def onnx_route() -> str:
    """The backend that an ONNX file goes to on this machine: tensorrt where it can build, else onnxruntime."""
    return "tensorrt" if get_backend("tensorrt").availability().installed else "onnxruntime"


def honoring(option: str) -> tuple[str, ...]:
    """The backends to which a field of `BuildOptions` means something."""
    return tuple(row.name for row in BACKENDS.values() if option in row.honors)


def moving_parts(name: str) -> float:
    """`BackendRow.moving_parts`; infinite for a name that is no backend."""
    return BACKENDS[name].moving_parts if name in BACKENDS else math.inf
