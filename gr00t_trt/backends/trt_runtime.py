"""The bytes of an engine -> something to call on a GPU; the same for engines of any route.

A call sets addresses, enqueues on PyTorch's current stream and returns: it waits for nothing, allocates nothing when
its inputs are contiguous and aligned, and may be captured in a CUDA graph once it has run at the size in question.
Call it on a stream of your own: on the default one TensorRT waits. Written from TensorRT's documentation and tested
against a stand-in; it has not run on a GPU yet.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..errors import BackendError
from .onnx_interface import Interface
from .trt_network import TensorRT, describe_engine, torch_dtype

ALIGNMENT = 256
"""Bytes that TensorRT wants addresses to be multiples of."""


def deserialize(trt: TensorRT, plan: bytes, what: str) -> Any:
    """The `ICudaEngine` of serialised bytes. Needs a GPU.

    Args:
        what: What the bytes are, for the message.
    Raises: BackendError with TensorRT's own words, for bytes of another version or for another GPU.
    """
    trt.log.errors.clear()
    engine = trt.module.Runtime(trt.log).deserialize_cuda_engine(plan)
    if engine is None:
        raise BackendError(f"{what}: {trt.flavour} {trt.version} cannot load it: {trt.reason()}", fix="build it here")
    return engine


class EngineCall:
    """Runs one engine with one output; same arguments as the eager module.

    The result lies in a buffer that the next call writes to: copy it to keep it longer. Not for several threads.

    Args:
        form: Which argument is which input of the engine.
        device: The GPU that the engine was loaded on.
    Raises: BackendError for an engine with more than one output, or without memory for it.
    """

    def __init__(self, trt: TensorRT, engine: Any, form: Interface, device: torch.device):
        inputs, outputs = describe_engine(trt.module, engine)
        if len(outputs) != 1:
            raise BackendError(f"{form.target.name}: the engine has {len(outputs)} outputs", known="one")
        self.engine, self._trt = engine, trt  # the context keeps neither the engine nor its log alive
        self.context = engine.create_execution_context()
        if self.context is None:
            raise BackendError(f"{form.target.name}: no memory on {device} to run the engine")
        self._form, self._device = form, device
        self._inputs = {each.name for each in inputs}
        self._output = outputs[0].name
        dtype = torch_dtype(trt.module, engine.get_tensor_dtype(self._output))
        if dtype is None:
            raise BackendError(f"{form.target.name}: the engine's output is {outputs[0].dtype}, which PyTorch lacks")
        self._shapes: dict[str, tuple[int, ...]] = {}
        for each in inputs:
            self._set_shape(each.name, each.maximum)
        largest = tuple(self.context.get_tensor_shape(self._output))
        # Allocated once at its largest: the address stays the same, which a captured graph relies on.
        self._buffer = torch.empty(math.prod(largest), dtype=dtype, device=device)
        self._result = self._buffer.view(largest)
        self._bind(self._output, self._buffer)

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        """Raises: BackendError when TensorRT refuses a shape or the launch."""
        resized = False
        held = []  # copies must stay until the work that reads them is enqueued
        for name, tensor in zip(self._form.target.argument_names, self._form.arguments(args), strict=True):
            if name not in self._inputs:
                continue  # the network does not use it
            tensor = _readable(tensor)
            held.append(tensor)
            resized |= self._set_shape(name, tuple(tensor.shape))
            self._bind(name, tensor)
        if resized:
            shape = tuple(self.context.get_tensor_shape(self._output))
            self._result = self._buffer[: math.prod(shape)].view(shape)
        stream = torch.cuda.current_stream(self._device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise BackendError(f"{self._form.target.name}: TensorRT did not run the engine")
        return self._result

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shapes.get(name) == shape:
            return False
        if not self.context.set_input_shape(name, shape):
            raise BackendError(f"{self._form.target.name}: TensorRT refused {name} of shape {shape}")
        self._shapes[name] = shape
        return True

    def _bind(self, name: str, tensor: torch.Tensor) -> None:
        if not self.context.set_tensor_address(name, tensor.data_ptr()):
            raise BackendError(f"{self._form.target.name}: TensorRT refused the address of {name}")


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)
