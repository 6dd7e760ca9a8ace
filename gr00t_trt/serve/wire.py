"""The bytes of the ZeroMQ protocol: MessagePack, with numpy arrays and modality configs as marked maps.

Nothing that arrives is trusted: sizes that a message claims are checked against the bytes that are there before
anything is built from them, and no pickle is ever read. Never imports torch.
"""

from __future__ import annotations

import io
import json
import math
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig
from ..errors import ServiceError

try:
    import msgpack
except ImportError as error:
    raise ServiceError("the service needs msgpack", fix="pip install 'gr00t_trt[serve]'") from error

MAX_DEPTH = 16
MAX_ELEMENTS = 100_000
"""Maps, lists, keys and values of one message together. An observation has some twenty: an array counts as one."""

ARRAY, MODALITY = "__ndarray_class__", "__ModalityConfig_class__"

_NPY = b"\x93NUMPY\x01\x00"
_FIXED = {
    **dict.fromkeys((*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3), 0),
    **{0xA0 + length: length for length in range(32)},
    **{0xCA: 4, 0xCB: 8},
    **{0xCC + i: 2 ** (i % 4) for i in range(8)},
}
"""First byte -> bytes that follow, for nil, booleans, numbers and short text."""
_BYTES = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""First byte -> width of the length that follows, for binary data and text."""
_NESTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte -> width of the count that follows, and elements per count, for lists and maps."""


def encode(value: Any) -> bytes:
    """A message as bytes.

    Args:
        value: None, booleans, numbers, text, bytes, lists, tuples (which arrive as lists), maps with text keys, numpy
            arrays of any dtype without objects, and `ModalityConfig`.
    Raises: ServiceError for anything else.
    """
    try:
        _THREAD.packer.reset()  # of what a value that could not be sent has left
        _THREAD.packer.pack(value)
        return bytes(_THREAD.packer.bytes())
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ServiceError(f"this cannot be sent: {error}", known="numbers, text, lists, maps, numpy arrays") from error


def decode(data: bytes | memoryview) -> Any:
    """The value of a message. Arrays are copies that belong to the caller.

    Raises: ServiceError for bytes that are no message, nest deeper than `MAX_DEPTH`, hold more than `MAX_ELEMENTS`
        elements, or claim more than there is.
    """
    _check_structure(data)
    try:
        return msgpack.unpackb(data, object_hook=_revived)
    except ServiceError:
        raise
    except Exception as error:  # the library's errors have no common base: text that is no UTF-8, keys that are numbers
        raise ServiceError(f"not a message: {type(error).__name__}: {error}") from error


def array_from_npy(data: object) -> np.ndarray:
    """An array from a complete NPY 1.0 file.

    Raises: ServiceError for anything else: pickled objects, a shape that is not what follows it.
    """
    if not isinstance(data, bytes) or not data.startswith(_NPY):
        raise ServiceError("an array is not a NPY file of version 1.0", fix="numpy.save writes them")
    start = len(_NPY) + 2
    start += int.from_bytes(data[len(_NPY) : start], "little")
    return _array(data, start, _npy_layout(data[len(_NPY) : start]))


@dataclass(frozen=True)
class _Layout:
    """What an array's bytes mean; `size` is how many they must be, -1 for a shape that none can have."""

    dtype: np.dtype
    shape: tuple[int, ...]
    columns_first: bool
    size: int


def _layout(dtype: np.dtype, shape: tuple[int, ...], columns_first: bool) -> _Layout:
    """Raises: ServiceError for a dtype that needs unpickling."""
    if dtype.hasobject or dtype.itemsize == 0:
        raise ServiceError(f"an array of dtype {dtype} cannot be received", known="numbers, booleans, text")
    size = math.prod(shape) * dtype.itemsize if min(shape, default=0) >= 0 else -1  # numpy's product would wrap round
    return _Layout(dtype, shape, columns_first, size)


@lru_cache(maxsize=256)  # a robot sends the same ones all day, and parsing one takes longer than all the rest
def _npy_layout(header: bytes) -> _Layout:
    try:
        shape, columns_first, dtype = np.lib.format.read_array_header_1_0(io.BytesIO(header))
    except Exception as error:  # the header is Python source: whatever its parser may say
        raise ServiceError(f"an array's header cannot be read: {str(error)[:200]}") from error
    return _layout(dtype, shape, columns_first)


@lru_cache(maxsize=256)
def _npy_start(dtype: np.dtype, shape: tuple[int, ...], columns_first: bool) -> bytes:
    if dtype.hasobject:
        raise TypeError(f"an array of dtype {dtype}")
    stream = io.BytesIO()
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": columns_first, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue()


def array_from_bytes(data: bytes, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of its own memory from its raw bytes, in C order.

    Raises: ServiceError when these are too few or too many, or of a dtype that needs unpickling.
    """
    return _array(data, 0, _layout(dtype, shape, False))


def _array(data: bytes, start: int, layout: _Layout) -> np.ndarray:
    shape, dtype = layout.shape, layout.dtype
    if len(data) - start != layout.size:
        raise ServiceError(f"an array claims {dtype} {list(shape)}, but has {len(data) - start} bytes")
    try:
        if not layout.size:
            return np.empty(shape, dtype)
        flat = np.frombuffer(bytearray(memoryview(data)[start:]), dtype)
        return flat.reshape(shape, order="F" if layout.columns_first else "C")
    except ValueError as error:  # too many axes, or one too long, beside an empty one
        raise ServiceError(f"an array claims the shape {list(shape)}: {error}") from error


def _marked(value: object) -> dict[str, Any]:
    if isinstance(value, np.ndarray):
        columns_first = value.flags.f_contiguous and not value.flags.c_contiguous
        start = _npy_start(value.dtype, value.shape, columns_first)
        return {ARRAY: True, "as_npy": b"".join((start, _raw(value.T if columns_first else value)))}
    if isinstance(value, ModalityConfig):
        fields = {"delta_indices": value.delta_indices, "modality_keys": value.modality_keys}
        return {MODALITY: True, "as_json": json.dumps(fields, separators=(",", ":"), ensure_ascii=False)}
    raise TypeError(f"a {type(value).__name__}")


def _raw(value: np.ndarray) -> bytes | memoryview:
    """An array's bytes in C order, not copied where numpy lends them."""
    lends = value.flags.c_contiguous and value.dtype.kind in "biufc"  # not dates, among others
    return value.data if lends else value.tobytes()


class _Packer(threading.local):
    """One packer per thread: its buffer, once as large as the messages, costs no further memory from the system."""

    def __init__(self) -> None:
        self.packer = msgpack.Packer(default=_marked, autoreset=False)


_THREAD = _Packer()


def _revived(value: dict[Any, Any]) -> Any:
    if ARRAY in value:
        return array_from_npy(value.get("as_npy"))
    if MODALITY in value:
        try:
            fields = json.loads(value["as_json"])
            return ModalityConfig([int(i) for i in fields["delta_indices"]], [str(k) for k in fields["modality_keys"]])
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ServiceError(f"a modality config cannot be read: {error}") from error
    return value


def _check_structure(data: bytes | memoryview) -> None:
    """Walk over the message, building nothing: a claimed count costs memory as soon as a parser believes it."""
    at, elements, end = 0, 0, len(data)
    here = 1  # elements still to come on this level
    outside: list[int] = []  # and on those round it
    while here or outside:
        if not here:
            here = outside.pop()
            continue
        here -= 1
        elements += 1
        if elements > MAX_ELEMENTS:
            raise ServiceError(f"the message has more than {MAX_ELEMENTS} elements", fix="send arrays, not lists")
        if at >= end:
            raise ServiceError("the message is cut short")
        byte = data[at]
        at += 1
        if byte in _FIXED:
            at += _FIXED[byte]
        elif byte in _BYTES:
            width = _BYTES[byte]
            at += width + int.from_bytes(data[at : at + width], "big")
        elif byte <= 0x9F or byte in _NESTED:
            if byte <= 0x9F:
                children = (byte & 0x0F) * (2 if byte <= 0x8F else 1)
            else:
                width, each = _NESTED[byte]
                children = each * int.from_bytes(data[at : at + width], "big")
                at += width
            if children > end - at:
                raise ServiceError("the message is cut short, or claims more elements than it has")
            outside.append(here)
            here = children
            if len(outside) > MAX_DEPTH:
                raise ServiceError(f"the message nests deeper than {MAX_DEPTH} levels")
        else:
            raise ServiceError(f"the message has an extension type (byte {byte:#04x})", known="no extension types")
    if at > end:
        raise ServiceError("the message is cut short")
    if at < end:
        raise ServiceError(f"{end - at} bytes follow the message", known="one message per frame")
