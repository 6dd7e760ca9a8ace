"""The bodies of the HTTP protocol: JSON, with numpy arrays and scalars as base64 of their raw bytes.

Never imports torch.
"""

from __future__ import annotations

import base64
import json
import secrets
from typing import Any

import numpy as np

from ..errors import ServiceError
from .wire import MAX_DEPTH, MAX_ELEMENTS, UNSENDABLE, Message, array_from_bytes, unsendable

ARRAY = "__numpy__"
Long = dict[str, memoryview]
"""Name -> a long string, as `_shortened` finds them."""
_AT_ONCE = 2**18
"""Characters of base64 that are decoded at once; a multiple of four, which are three bytes."""

_LONG = 2**18
"""Bytes of a string that is taken out of a body before the rest is read: `json.loads` lets no other thread run."""

_NOT_INSIDE = (b"\\", b",", b":")


def encode_json(value: Any) -> bytes:
    """A body as bytes; `value` as `wire.encode` takes it, and numpy scalars.

    Raises: ServiceError for anything else, and for a NaN or an infinity outside an array, which JSON has no word for.
    """
    try:
        text = json.dumps(value, default=_marked, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except UNSENDABLE as error:
        raise unsendable(error) from error
    return text.encode("utf-8")


def decode_json(data: bytes | str) -> Any:
    """The value of a body. Arrays are copies that belong to the caller; numpy scalars arrive as arrays of no axes.

    Raises: ServiceError for text that is no JSON, nests deeper than `MAX_DEPTH` or holds more than `MAX_ELEMENTS`
        elements.
    """
    try:
        text, long = _shortened(data) if isinstance(data, bytes) else (data, Long())
        # Base64 has none of these: they count elements, and a comma in an instruction does no harm.
        if sum(text.count(mark) for mark in ",[{") > MAX_ELEMENTS:
            raise ServiceError(f"the body has more than {MAX_ELEMENTS} elements", fix="send arrays, not lists")
        return _revived(json.loads(text), long, 0)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"not JSON: {type(error).__name__}: {error}") from error


def _shortened(data: bytes) -> tuple[str, Long]:
    """A body whose long strings are short names instead, and name -> what each string was.

    Only of strings without a backslash. Between two strings of JSON stands a comma or a colon, so that what has neither
    and lies between two quotes is inside of one; or the body is no JSON, with or without it.
    """
    whole, parts, long = memoryview(data), list[bytes | memoryview](), Long()
    at, done, secret = _LONG, 0, secrets.token_hex(8)  # nobody can have sent such a name
    while (end := data.find(b'"', at)) >= 0:
        start = data.rfind(b'"', done, at) + 1
        whole_string = start > 0 and data[max(start - 2, 0) : start - 1] != b"\\"  # not from an escaped quote on
        if whole_string and end - start > _LONG and all(data.find(mark, start, end) < 0 for mark in _NOT_INSIDE):
            name = f"{secret}{len(long)}"
            long[name] = whole[start:end]
            parts += [whole[done:start], name.encode()]
            done = end
        at = end + _LONG
    return b"".join((*parts, whole[done:])).decode("utf-8"), long


def _marked(value: object) -> Message:
    if not isinstance(value, np.ndarray | np.generic) or value.dtype.hasobject:
        raise TypeError(f"a {type(value).__name__}")
    raw = base64.b64encode(value.tobytes()).decode("ascii")
    return {ARRAY: raw, "dtype": np.lib.format.dtype_to_descr(value.dtype), "shape": list(value.shape)}


def _revived(value: Any, long: Long, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise ServiceError(f"the body nests deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_revived(item, long, depth + 1) for item in value]
    if isinstance(value, str):
        return json.loads(b'"%b"' % bytes(long[value])) if value in long else value
    if not isinstance(value, dict):
        return value
    if ARRAY in value:
        return _array(value, long)
    return {_revived(key, long, depth): _revived(item, long, depth + 1) for key, item in value.items()}


def _array(value: dict[str, Any], long: Long) -> np.ndarray:
    try:
        text = value[ARRAY]
        raw = _bytes_of(long.get(text, text))
        dtype = np.lib.format.descr_to_dtype(value["dtype"])
        shape = tuple(int(size) for size in value["shape"])
    except (KeyError, TypeError, ValueError, SyntaxError, OverflowError) as error:
        known = '{"__numpy__": base64 of its bytes in C order, "dtype": "<f4", "shape": [2, 2]}'
        what = f"an array cannot be read: {type(error).__name__}: {str(error)[:200]}"
        raise ServiceError(what, known=known) from error
    return array_from_bytes(raw, dtype, shape)


def _bytes_of(text: str | memoryview) -> bytes:
    """Of base64, part by part: other threads get their turn between two of them."""
    parts = range(0, len(text), _AT_ONCE)
    return b"".join(base64.b64decode(text[start : start + _AT_ONCE], validate=True) for start in parts)
