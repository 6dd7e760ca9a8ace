"""Torch-TensorRT on a machine without a GPU: every patch that this needs, applied in one scope and undone after it.

Exporting, lowering, partitioning and (with TensorRT-RTX) building an engine need no GPU, but the code around
them asks about one at import and at every turn. `cpu_only` answers those questions and takes all answers back on
exit. `torch.cuda.is_available()` stays False throughout: nothing here pretends that an engine could run.

What is answered, and why it is asked:

    torch.cuda.get_device_capability    import: is this a Jetson? (lists of excluded features)
    torch.cuda.current_device           import and settings: the default device number
    torch.cuda.get_device_properties    compile: name and memory of the default device
    torch.cuda.mem_get_info             compile: a warning when less than half of the memory is free
    torch._C._CudaDeviceProperties      import: a type annotation; absent from CPU builds of torch
    os.path.isfile                      import only: the C++ runtime library needs libtorch_cuda.so, which CPU
                                        builds of torch do not have; unseen, the Python runtime is taken
    torch_tensorrt.Device.to            compile: moves the module to "its" device, which must be the CPU
    tensorrt.Runtime                    engine build: the serialised engine is deserialised at once to be
                                        serialised again; the bytes are passed through instead
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

_ABSENT = object()
_RUNTIME_LIBRARIES = ("libtorchtrt.so", "libtorchtrt_runtime.so", "torchtrt.dll", "torchtrt_runtime.dll")
_CAPABILITY = (8, 9)
_MEMORY_BYTES = 48 * 2**30

_lock = threading.RLock()
_depth = 0


class _EngineBytes:
    """Stand-in for a deserialised engine; it can only be serialised again."""

    def __init__(self, plan: Any):
        self._plan = plan

    def serialize(self) -> Any:
        return self._plan

    def get_aliased_input_tensor(self, name: str) -> None:
        """Asked for every output since 2.14: none of our modules writes into its inputs."""


class _PassThroughRuntime:
    """tensorrt.Runtime without a device: the serialised engine is kept as it is."""

    def __init__(self, logger: Any):
        self.logger = logger

    def deserialize_cuda_engine(self, plan: Any) -> _EngineBytes:
        return _EngineBytes(plan)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute for the length of the scope; an attribute that was absent is absent again afterwards."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def import_torch_tensorrt() -> Any:
    """Import torch_tensorrt and undo what its import changes for the whole process.

    The import routes all Python warnings into the logging module; that is put back.
    """
    captured = logging._warnings_showwarning is not None  # type: ignore[attr-defined]
    try:
        return importlib.import_module("torch_tensorrt")
    finally:
        if not captured:
            logging.captureWarnings(False)


def _import_here() -> Any:
    isfile = os.path.isfile

    def without_runtime(path: Any) -> bool:
        return os.path.basename(os.fspath(path)) not in _RUNTIME_LIBRARIES and isfile(path)

    with ExitStack() as scope:
        if torch.version.cuda is None and "torch_tensorrt" not in sys.modules:
            scope.enter_context(replaced(os.path, "isfile", without_runtime))
            if not hasattr(torch._C, "_CudaDeviceProperties"):
                placeholder = type("_CudaDeviceProperties", (), {})
                scope.enter_context(replaced(torch._C, "_CudaDeviceProperties", placeholder))
        return import_torch_tensorrt()


@contextmanager
def cpu_only() -> Iterator[Any]:
    """Make torch_tensorrt work without a GPU inside the scope; yields the module.

    Scopes may be nested; a second thread waits until the first has left. Where a GPU is present nothing is
    patched. The first scope of a process imports torch_tensorrt.

    Raises: ImportError when torch_tensorrt or its TensorRT library is missing.
    """
    global _depth
    with _lock, ExitStack() as scope:
        if torch.cuda.is_available():
            yield import_torch_tensorrt()
            return
        if _depth == 0:
            major, minor = _CAPABILITY
            device = types.SimpleNamespace(name="no GPU", major=major, minor=minor, total_memory=_MEMORY_BYTES)
            answers = {
                "get_device_capability": lambda device=None: _CAPABILITY,
                "current_device": lambda: 0,
                "get_device_properties": lambda number=None: device,
                "mem_get_info": lambda device=None: (_MEMORY_BYTES, _MEMORY_BYTES),
            }
            for name, answer in answers.items():
                scope.enter_context(replaced(torch.cuda, name, answer))
            module = _import_here()
            scope.enter_context(replaced(module.Device, "to", lambda self, kind: torch.device("cpu")))
            tensorrt = sys.modules["tensorrt"]  # torch_tensorrt binds this name to either flavour
            scope.enter_context(replaced(tensorrt, "Runtime", _PassThroughRuntime))
        _depth += 1
        try:
            yield sys.modules["torch_tensorrt"]
        finally:
            _depth -= 1
