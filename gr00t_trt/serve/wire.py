"""The bytes of the ZeroMQ protocol: MessagePack, with numpy arrays and modality configs as marked maps.

Nothing that arrives is trusted: sizes that a message claims are checked against the bytes that are there before
anything is built from them, and no pickle is ever read. Never imports torch.
"""

from __future__ import annotations

import io
import json
import math
import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypedDict

import numpy as np

from ..common.interface import ModalityConfig
from ..errors import ServiceError

try:
    import msgpack
except ImportError as error:
    raise ServiceError("the service and its clients need msgpack", fix="pip install msgpack") from error

Message = dict[str, Any]
"""A request or a reply: text keys; values as `encode` takes them."""


class KeyForm(TypedDict):
    """What a status page says of one key of an observation; ``str`` is the dtype of an instruction."""

    dtype: str
    shape: list[int]


MAX_DEPTH = 16
MAX_ELEMENTS = 100_000
"""Maps, lists, keys and values of one message together. An observation has some twenty: an array counts as one."""

ARRAY, MODALITY = "__ndarray_class__", "__ModalityConfig_class__"

UNSENDABLE = (TypeError, ValueError, OverflowError, RecursionError)
"""What encoders raise for a value of another type, too deep, or too large."""

_TOO_MANY = f"the message has more than {MAX_ELEMENTS} elements"
_NPY = b"\x93NUMPY\x01\x00"


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
    except UNSENDABLE as error:
        raise unsendable(error) from error


def unsendable(error: Exception) -> ServiceError:
    """What an encoder of any protocol raises for a value that it has no form for."""
    return ServiceError(f"this cannot be sent: {error}", known="numbers, text, lists, maps, numpy arrays")


def decode(data: bytes | memoryview, revived: Callable[[dict[Any, Any]], Any] | None = None) -> Any:
    """The value of a message. Arrays are copies that belong to the caller.

    Args:
        revived: What a map stands for, the innermost first; None for arrays and modality configs of this protocol.
    Raises: ServiceError for bytes that are no message, nest deeper than `MAX_DEPTH`, hold more than `MAX_ELEMENTS`
        elements, or claim more than there is.
    """
    left = MAX_ELEMENTS - 1
    revive = revived or _revived

    def count(children: int) -> None:
        nonlocal left
        left -= children
        if left < 0:
            raise ServiceError(_TOO_MANY, fix="send arrays, not lists")

    def listed(value: list[Any]) -> list[Any]:
        count(len(value))
        return value

    def mapped(value: dict[Any, Any]) -> Any:
        count(2 * len(value))
        return revive(value)

    most = min(len(data), MAX_ELEMENTS)
    limits = {"max_array_len": most, "max_map_len": most // 2, "max_ext_len": 0}
    try:
        value = msgpack.unpackb(data, list_hook=listed, object_hook=mapped, ext_hook=_refuse_extension, **limits)
        if _nests_deeper(value, MAX_DEPTH):
            raise msgpack.StackError
    except ServiceError:
        raise
    except Exception as error:
        # Clients of N1 sent what torch.save writes: a zip archive, or a pickle.
        if bytes(data[:4]) == b"PK\x03\x04" or bytes(data[:2]) in (b"\x80\x02", b"\x80\x04", b"\x80\x05"):
            what = "the message is a pickle or a file of torch.save, not MessagePack"
            raise ServiceError(what, fix="use the client of N1.5 or ours; no pickle is ever read") from error
        raise _undecoded(error, len(data)) from error
    return value


def _undecoded(error: Exception, length: int) -> ServiceError:
    """msgpack's errors, which have no common base and are in part told apart by their texts alone, in words."""
    if isinstance(error, msgpack.ExtraData):
        return ServiceError(f"{len(error.extra)} bytes follow the message", known="one message per frame")
    if isinstance(error, msgpack.StackError):
        return ServiceError(f"the message nests deeper than {MAX_DEPTH} levels")
    if "incomplete input" in str(error):
        return ServiceError("the message is cut short")
    claim = re.match(r"(\d+) exceeds max_(\w+)_len", str(error))
    if claim is None:
        return ServiceError(f"not a message: {type(error).__name__}: {error}")
    if claim[2] == "ext":
        return _extension()
    if int(claim[1]) * {"array": 1, "map": 2}.get(claim[2], length + 1) <= length:
        return ServiceError(_TOO_MANY, fix="send arrays, not lists")
    return ServiceError("the message is cut short, or claims more elements than it has")


def _extension() -> ServiceError:
    return ServiceError("the message has an extension type", known="no extension types")


def _refuse_extension(code: int, data: bytes) -> None:
    raise _extension()


def _nests_deeper(value: object, levels: int) -> bool:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    if children is None:
        return False
    return levels == 0 or any(_nests_deeper(child, levels - 1) for child in children)


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
    """dtype and shape of an array on the wire; `size` in bytes, -1 for an impossible shape."""

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


def _marked(value: object) -> Message:
    if isinstance(value, np.ndarray):
        columns_first = value.flags.f_contiguous and not value.flags.c_contiguous
        start = _npy_start(value.dtype, value.shape, columns_first)
        rows = value.T if columns_first else value
        lends = rows.flags.c_contiguous and rows.dtype.kind in "biufc"  # its bytes without a copy; dates do not
        return {ARRAY: True, "as_npy": b"".join((start, rows.data if lends else rows.tobytes()))}
    if isinstance(value, ModalityConfig):
        return {MODALITY: True, "as_json": json.dumps(asdict(value), separators=(",", ":"), ensure_ascii=False)}
    raise TypeError(f"a {type(value).__name__}")


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
