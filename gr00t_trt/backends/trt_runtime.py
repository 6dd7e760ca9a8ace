"""The bytes of an engine -> something to call on a GPU; the same for engines of any route.

A call sets addresses, enqueues on PyTorch's current stream and returns: it waits for nothing, allocates nothing when
its inputs are contiguous and aligned, and may be captured in a CUDA graph once it has run at the size in question.
Call it on a stream of your own: on the default one TensorRT waits. Written from TensorRT's documentation and tested
against a stand-in; it has not run on a GPU yet.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..errors import BackendError
from .tensorrt.network import TensorRT, describe_engine, load_tensorrt, torch_dtype

ALIGNMENT = 256
"""Bytes that TensorRT wants addresses to be multiples of."""


class TrtRunner:
    """Runs one engine with one output.

    The result lies in a buffer that the next call writes to: copy it to keep it longer. Not for several threads.

    Args:
        plan: The serialised engine.
        inputs: Names of the engine's inputs, in the order in which a call gives them; names that the engine lacks
            are of tensors that it does not use.
        outputs: Name of the one output.
        device: The GPU that it runs on.
        trt: The TensorRT to load it with; this machine's by default.

    Attributes:
        engine: The `ICudaEngine`.
    Raises: BackendError for an engine of another version, for another GPU or with another output, or without memory.
    """

    def __init__(
        self,
        plan: bytes,
        inputs: Sequence[str],
        outputs: Sequence[str],
        device: torch.device,
        *,
        trt: TensorRT | None = None,
    ):
        self._trt = trt or load_tensorrt()  # held for its log, which the engine does not keep alive
        self._trt.log.errors.clear()
        self.engine = self._trt.module.Runtime(self._trt.log).deserialize_cuda_engine(plan)
        if self.engine is None:
            said = f"{self._trt.flavour} {self._trt.version} cannot load the engine: {self._trt.reason()}"
            raise BackendError(said, fix="build it here")
        takes, gives = describe_engine(self._trt.module, self.engine)
        if [each.name for each in gives] != list(outputs) or len(gives) != 1:
            raise BackendError(
                f"the engine's outputs are {', '.join(each.name for each in gives)} and not {', '.join(outputs)}"
            )
        self.context = self.engine.create_execution_context()
        if self.context is None:
            raise BackendError(f"no memory on {device} to run the engine")
        self._inputs, self._device = tuple(inputs), device
        self._used = {each.name for each in takes}
        self._output = gives[0].name
        dtype = torch_dtype(self._trt.module, self.engine.get_tensor_dtype(self._output))
        if dtype is None:
            raise BackendError(f"the engine's {self._output} is {gives[0].dtype}, which PyTorch lacks")
        self._shapes: dict[str, tuple[int, ...]] = {}
        for each in takes:
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
        for name, tensor in zip(self._inputs, args, strict=True):
            if name not in self._used:
                continue
            tensor = _readable(tensor)
            held.append(tensor)
            resized |= self._set_shape(name, tuple(tensor.shape))
            self._bind(name, tensor)
        if resized:
            shape = tuple(self.context.get_tensor_shape(self._output))
            self._result = self._buffer[: math.prod(shape)].view(shape)
        stream = torch.cuda.current_stream(self._device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise BackendError(f"TensorRT did not run the engine: {self._trt.reason()}")
        return self._result

    def _set_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._shapes.get(name) == shape:
            return False
        if not self.context.set_input_shape(name, shape):
            raise BackendError(f"TensorRT refused {name} of shape {shape}: {self._trt.reason()}")
        self._shapes[name] = shape
        return True

    def _bind(self, name: str, tensor: torch.Tensor) -> None:
        if not self.context.set_tensor_address(name, tensor.data_ptr()):
            raise BackendError(f"TensorRT refused the address of {name}: {self._trt.reason()}")


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_contiguous() and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)
