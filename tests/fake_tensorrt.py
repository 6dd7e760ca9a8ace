"""A TensorRT made of PyTorch: an engine is a module, its execution context calls it on the memory it was told of."""

from __future__ import annotations

import ctypes
import enum
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch

ALIGNMENT = 64
"""What PyTorch gives on a CPU; on a GPU it gives 512, and TensorRT asks for 256."""

SIZES = {torch.float32: 4, torch.float16: 2, torch.bfloat16: 2, torch.int64: 8, torch.bool: 1}


DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64 INT32 BOOL FP8")


DTYPES = {
    DataType.FLOAT: torch.float32,
    DataType.HALF: torch.float16,
    DataType.BF16: torch.bfloat16,
    DataType.INT64: torch.int64,
    DataType.BOOL: torch.bool,
}


class TensorIOMode:
    INPUT, OUTPUT = "in", "out"


class ILogger:
    class Severity:
        ERROR = 1


class FakeEngine:
    """Inputs: name -> (DataType, minimum, optimum, maximum). Output: (name, DataType, shape with -1)."""

    num_layers = 42

    def __init__(
        self,
        inputs: dict[str, tuple[Any, ...]],
        output: tuple[str, Any, tuple[int, ...]],
        run: Callable[..., torch.Tensor] | None = None,
        *,
        context: bool = True,
    ):
        self.inputs, self.outputs, self.run, self._context = inputs, {output[0]: output[1:]}, run, context
        self.contexts: list[FakeContext] = []

    @property
    def num_io_tensors(self) -> int:
        return len(self.inputs) + len(self.outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self.inputs, *self.outputs][index]

    def get_tensor_dtype(self, name: str) -> Any:
        return self.inputs[name][0] if name in self.inputs else self.outputs[name][0]

    def get_tensor_mode(self, name: str) -> str:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert profile == 0
        return list(self.inputs[name][1:])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.outputs[name][1]

    def create_execution_context(self) -> FakeContext | None:
        if not self._context:
            return None
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]


class FakeContext:
    def __init__(self, engine: FakeEngine):
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.streams: list[int] = []
        self.shape_calls = 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        _, low, _, high = self.engine.inputs[name]
        self.shape_calls += 1
        self.shapes[name] = tuple(shape)
        return all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        # As in the engines of this model: an output's dynamic axes are those of the first input.
        first = self.shapes[next(iter(self.engine.inputs))]
        return tuple(first[axis] if size == -1 else size for axis, size in enumerate(self.engine.outputs[name][1]))

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"{name} is not aligned"
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.streams.append(stream)
        tensors = [self._memory(name, self.shapes[name]) for name in self.engine.inputs]
        for name in self.engine.outputs:
            assert self.engine.run is not None
            self._memory(name, self.get_tensor_shape(name)).copy_(self.engine.run(*tensors))
        return True

    def _memory(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        dtype = DTYPES[self.engine.get_tensor_dtype(name)]
        size = math.prod(shape) * SIZES[dtype]
        raw = (ctypes.c_uint8 * size).from_address(self.addresses[name])
        return torch.frombuffer(raw, dtype=dtype).view(shape)


class Runtime:
    """Deserialises what is in `ENGINES`, and complains about anything else."""

    ENGINES: ClassVar[dict[bytes, FakeEngine]] = {}

    def __init__(self, log: Any):
        self.log = log

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        engine = self.ENGINES.get(plan)
        if engine is None:
            self.log.errors += ["Serialization assertion: Version tag does not match", "and more"]
        return engine


class Log:
    def __init__(self) -> None:
        self.errors: list[str] = []
