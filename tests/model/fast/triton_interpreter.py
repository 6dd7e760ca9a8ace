"""Triton's interpreter, mended: unmended it is silently wrong about 16-bit numbers."""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

NARROW = {"bf16": (torch.bfloat16, torch.int16), "fp8e4nv": (torch.float8_e4m3fn, torch.uint8)}


def mend_the_interpreter() -> None:
    """Three faults of it, 3.6 to 3.9: a product multiplies the bits of bf16 as integers, rounding cuts digits off, and
    with numpy 2.4 a number known at run time cannot end a loop."""
    interpreter.InterpreterBuilder.create_dot = _with_wide_products(interpreter.InterpreterBuilder.create_dot)
    interpreter._convert_float = _rounding_to_nearest(interpreter._convert_float)
    interpreter._patch_lang_tensor = _with_numbers_that_end_loops(interpreter._patch_lang_tensor)


def _with_wide_products(dot):
    convert = interpreter._convert_float

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(convert(x.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)

    return lambda own, a, b, *rest: dot(own, widened(a), widened(b), *rest)


def _rounding_to_nearest(convert):
    def converted(data, source, target, mode):
        if source != tl.float32 or target.name not in NARROW:
            return convert(data, source, target, mode)
        dtype, bits = NARROW[target.name]
        return torch.from_numpy(np.ascontiguousarray(data)).to(dtype).view(bits).numpy()

    return converted


def _with_numbers_that_end_loops(patch):
    def patched(tensor, *rest):
        patch(tensor, *rest)
        tensor.__index__ = lambda own: int(own.handle.data.item())

    return patched
