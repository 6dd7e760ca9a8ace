"""The bytes of openpi's protocol: MessagePack, with numpy arrays and scalars as maps whose keys are bytes.

    {b"__ndarray__": True, b"data": its bytes in C order, b"dtype": "<f4", b"shape": [16, 7]}
    {b"__npgeneric__": True, b"data": 1.5, b"dtype": "<f4"}

Never imports torch.
"""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np

from ..errors import ServiceError
from .wire import UNSENDABLE, array_from_bytes, decode, unsendable

ARRAY, SCALAR = b"__ndarray__", b"__npgeneric__"

_MAX_DTYPE = 16
_OF_KIND: dict[str, type | tuple[type, ...]] = {"b": bool, "i": int, "u": int, "f": (int, float), "U": str}
"""Kind of dtype -> what a scalar of it arrives as."""


def encode_openpi(value: Any) -> bytes:
    """A message as bytes; `value` as `wire.encode` takes it, and numpy scalars, without modality configs.

    Raises: ServiceError for anything else.
    """
    try:
        return bytes(msgpack.packb(value, default=_marked))
    except UNSENDABLE as error:
        raise unsendable(error) from error


def decode_openpi(data: bytes) -> Any:
    """The value of a message. Arrays are copies that belong to the caller. Raises: ServiceError as `wire.decode`."""
    return decode(data, _revived)


def _marked(value: object) -> dict[bytes, Any]:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.kind in "VOc":
        raise TypeError(f"a {type(value).__name__}")
    if isinstance(value, np.generic):
        return {SCALAR: True, b"data": value.item(), b"dtype": value.dtype.str}
    return {ARRAY: True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def _revived(value: dict[Any, Any]) -> Any:
    if ARRAY in value:
        return _array(value)
    return _scalar(value) if SCALAR in value else value


def _array(value: dict[Any, Any]) -> np.ndarray:
    data, shape = value.get(b"data"), value.get(b"shape")
    sizes = [size for size in shape if type(size) is int] if isinstance(shape, list) else None
    if not isinstance(data, bytes) or sizes is None or sizes != shape:
        raise _unreadable("an array", value, '{b"data": its bytes in C order, b"dtype": "<f4", b"shape": [2, 2]}')
    return array_from_bytes(data, _dtype(value.get(b"dtype")), tuple(sizes))


def _scalar(value: dict[Any, Any]) -> Any:
    dtype, item = _dtype(value.get(b"dtype")), value.get(b"data")
    wanted = _OF_KIND.get(dtype.kind)
    if wanted is None or not isinstance(item, wanted) or (wanted is not bool and isinstance(item, bool)):
        raise _unreadable("a scalar", value, '{b"data": 1.5, b"dtype": "<f4"}')
    try:
        return dtype.type(item)
    except (TypeError, ValueError, OverflowError) as error:
        raise ServiceError(f"a scalar claims {dtype}: {error}") from error


def _dtype(name: object) -> np.dtype:
    if not isinstance(name, str) or len(name) > _MAX_DTYPE:
        raise ServiceError(f"a dtype is {str(name)[:60]!r}", known="numpy's short names, such as '<f4'")
    try:
        return np.dtype(name)
    except (TypeError, ValueError, SyntaxError) as error:
        raise ServiceError(f"a dtype is {name!r}: {error}", known="numpy's short names, such as '<f4'") from error


def _unreadable(what: str, value: dict[Any, Any], known: str) -> ServiceError:
    found = {str(key)[:20]: type(each).__name__ for key, each in value.items()}
    return ServiceError(f"{what} cannot be read: {str(found)[:200]}", known=known)
