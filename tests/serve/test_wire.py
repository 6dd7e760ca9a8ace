"""The bytes of both protocols, exactly; and that nothing that arrives can do harm."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import pickle
import random
import struct

import hostile
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from puppet import observation

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.errors import ServiceError
from gr00t_trt.serve import json_wire
from gr00t_trt.serve.json_wire import decode_json, encode_json
from gr00t_trt.serve.wire import MAX_DEPTH, MAX_ELEMENTS, decode, encode

DTYPES = st.one_of(
    hnp.integer_dtypes(), hnp.unsigned_integer_dtypes(), hnp.floating_dtypes(sizes=(16, 32, 64)),
    hnp.boolean_dtypes(), hnp.unicode_string_dtypes(max_len=5),
)  # fmt: skip
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))


def test_a_request_has_the_published_bytes() -> None:
    assert encode({"endpoint": "ping"}) == bytes.fromhex("81a8656e64706f696e74a470696e67")
    assert encode(None) == b"\xc0"


@pytest.mark.parametrize(("rows", "length"), [(1, b"\xc4"), (100, b"\xc5"), (20_000, b"\xc6")])
def test_an_array_is_a_marked_map_with_a_whole_npy_file(rows: int, length: bytes) -> None:
    array = np.arange(rows, dtype=np.float32)
    raw = encode(array)
    assert raw.startswith(b"\x82\xb1__ndarray_class__\xc3\xa6as_npy" + length)
    assert (
        raw.index(b"\x93NUMPY\x01\x00")
        == len(b"\x82\xb1__ndarray_class__\xc3\xa6as_npy")
        + {
            b"\xc4": 2,
            b"\xc5": 3,
            b"\xc6": 5,
        }[length]
    )
    # Read back with msgpack and numpy alone, as an existing client does.
    npy = msgpack.unpackb(raw)["as_npy"]
    np.testing.assert_array_equal(np.load(io.BytesIO(npy), allow_pickle=False), array)


def test_a_modality_config_is_compact_json_in_a_marked_map() -> None:
    config = ModalityConfig([0], ["video.webcam"])
    assert msgpack.unpackb(encode({"video": config})) == {
        "video": {
            "__ModalityConfig_class__": True,
            "as_json": '{"delta_indices":[0],"modality_keys":["video.webcam"]}',
        }
    }
    assert decode(encode({"video": config})) == {"video": config}


@given(st.dictionaries(st.text(max_size=8), ARRAYS, max_size=3))
def test_arrays_of_any_dtype_pass_both_ways(value: dict[str, np.ndarray]) -> None:
    for there, back in ((encode, decode), (encode_json, decode_json)):
        received = back(there({"data": [value]}))["data"][0]
        assert received.keys() == value.keys()
        for key, array in value.items():
            assert received[key].dtype == array.dtype
            np.testing.assert_array_equal(received[key], array)
            assert received[key].flags.writeable


@given(ARRAYS, st.booleans())
def test_an_array_is_written_as_numpy_writes_it(array: np.ndarray, columns_first: bool) -> None:
    array = np.asfortranarray(array) if columns_first else array
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    assert msgpack.unpackb(encode(array))["as_npy"] == stream.getvalue()
    strided = np.repeat(array[..., None], 2, axis=-1)[..., 0]
    np.testing.assert_array_equal(decode(encode(strided)), strided)


def test_what_numpy_writes_is_what_we_read() -> None:
    for array in (
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["äé", "b"]),
        np.float32(2.5),
        np.zeros((0, 3)),
    ):
        stream = io.BytesIO()
        np.save(stream, array)
        raw = msgpack.packb({"__ndarray_class__": True, "as_npy": stream.getvalue()})
        np.testing.assert_array_equal(decode(raw), array)


@pytest.mark.parametrize("value", [object(), np.float32(1), np.int64(1), np.array([{}]), {"a": {1, 2}}, 2**70])
def test_other_objects_cannot_be_sent(value: object) -> None:
    with pytest.raises(ServiceError, match="cannot be sent"):
        encode({"value": value})


def test_what_could_not_be_sent_leaves_nothing_behind() -> None:
    with pytest.raises(ServiceError):
        encode({"a": 1, "b": object()})
    assert encode({"a": 1}) == b"\x81\xa1a\x01"
    days = np.array(["2026-01-01"], "datetime64[D]")  # numpy lends no bytes of these
    np.testing.assert_array_equal(decode(encode(days)), days)


def test_numpy_doubles_pass_as_numbers_and_tuples_as_lists() -> None:
    assert decode(encode({"a": (np.float64(1.5), "b")})) == {"a": [1.5, "b"]}


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "cut short"),
        (b"\x81", "cut short"),
        (encode({"a": 1}) + b"\x00", "1 bytes follow"),
        (b"\x91" * (MAX_DEPTH + 1) + b"\xc0", "deeper than 16"),
        (b"\xdd" + struct.pack(">I", 2**32 - 1) + b"\xc0", "claims more"),
        (b"\x81\xc6" + struct.pack(">I", 2**32 - 1), "claims more|cut short"),
        (b"\xdd" + struct.pack(">I", MAX_ELEMENTS) + b"\xc0" * MAX_ELEMENTS, "more than 100000 elements"),
        (b"\xdf" + struct.pack(">I", MAX_ELEMENTS) + b"\xa1a\xc0" * MAX_ELEMENTS, "more than 100000 elements"),
        (b"\xdf" + struct.pack(">I", 2**32 - 1) + b"\xc0", "claims more"),
        (b"\xdd" + struct.pack(">I", 2**16) + (b"\x92\x90\x90" * 2**16), "more than 100000 elements"),
        (b"\xc7\x00\x01", "extension type"),
        (b"\xd4\x01\x00", "extension type"),
        (b"\x81\x01\x02", "not allowed"),
        (b"\xa2\xff\xff", "UnicodeDecodeError"),
        (pickle.dumps({"state.arm": [0.0]}), "a pickle or a file of torch.save, not MessagePack"),
        (b"PK\x03\x04" + bytes(100), "a pickle or a file of torch.save, not MessagePack"),
    ],
)
def test_a_message_that_is_none_is_told_so(raw: bytes, words: str) -> None:
    with pytest.raises(ServiceError, match=words):
        decode(raw)


def test_the_limits_leave_room_for_what_they_allow() -> None:
    assert decode(b"\x91" * MAX_DEPTH + b"\xc0")
    assert len(decode(b"\xdd" + struct.pack(">I", MAX_ELEMENTS - 1) + b"\xc0" * (MAX_ELEMENTS - 1))) == MAX_ELEMENTS - 1


def test_every_truncation_is_refused() -> None:
    raw = encode({"endpoint": "get_action", "data": {"state.arm": np.zeros((1, 5))}})
    for length in range(len(raw)):
        with pytest.raises(ServiceError):
            decode(raw[:length])


def test_nothing_hostile_gets_further_than_an_error() -> None:
    for _, raw in hostile.messages(130, observation(), seed=1):
        with contextlib.suppress(ServiceError):
            decode(raw)
    for _, raw in hostile.bodies(130, observation(), seed=1):
        with contextlib.suppress(ServiceError):
            decode_json(raw)


def test_changed_bytes_are_an_error_or_another_message() -> None:
    good = encode({"endpoint": "get_action", "data": observation()})
    source = random.Random(2)
    for _ in range(600):
        raw = bytearray(good)
        for _ in range(source.randrange(1, 6)):
            raw[source.randrange(400)] = source.randrange(256)
        with contextlib.suppress(ServiceError):
            decode(bytes(raw))


def test_the_published_json_of_an_array() -> None:
    array = np.arange(4, dtype=np.float32).reshape(2, 2)
    raw = base64.b64encode(array.tobytes()).decode()
    assert encode_json({"a": array}) == f'{{"a":{{"__numpy__":"{raw}","dtype":"<f4","shape":[2,2]}}}}'.encode()
    assert json.loads(encode_json(np.uint8(3))) == {"__numpy__": "Aw==", "dtype": "|u1", "shape": []}
    np.testing.assert_array_equal(decode_json(encode_json(array.T)), array.T)


LONG_TEXT = st.text("ab\\\"'\n,:{}[]é\u2028 ", min_size=0, max_size=40) | st.text("abc+/=", min_size=8, max_size=40)
DOCUMENTS = st.recursive(
    st.none() | st.integers(0, 10**6) | LONG_TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(LONG_TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS, st.sampled_from([(",", ":"), (" , ", "  :  "), (",        ", ":\n\n\n\n\n\n\n\n")]), st.booleans())
def test_long_strings_are_read_as_json_reads_them(value: object, separators: tuple[str, str], plain: bool) -> None:
    raw = json.dumps(value, separators=separators, ensure_ascii=plain).encode()
    with pytest.MonkeyPatch.context() as patch:
        for length in (1, 2, 3, 7):
            patch.setattr(json_wire, "_LONG", length)
            assert decode_json(raw) == json.loads(raw)


@given(st.binary(max_size=60) | st.text('"ab\\,:[]{}', max_size=60).map(str.encode))
def test_what_is_no_json_stays_none(raw: bytes) -> None:
    try:
        expected = json.loads(raw.decode())
    except ValueError:
        expected = ServiceError
    with pytest.MonkeyPatch.context() as patch:
        for length in (1, 2, 3, 7):
            patch.setattr(json_wire, "_LONG", length)
            with pytest.raises(ServiceError) if expected is ServiceError else contextlib.nullcontext():
                assert decode_json(raw) == expected


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"\xff", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON|elements|deeper"),
        (b"[" * 20 + b"]" * 20, "deeper than 16"),
        (b"[" + b"0," * MAX_ELEMENTS + b"0]", "elements"),
        (b'{"__numpy__": "AAAA", "dtype": "<f8", "shape": [1000000000000]}', "but has 3 bytes"),
        (b'{"__numpy__": "A", "dtype": "<f8", "shape": [1]}', "cannot be read"),
        (b'{"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}', "cannot be received"),
    ],
)
def test_a_body_that_is_none_is_told_so(raw: bytes, words: str) -> None:
    with pytest.raises(ServiceError, match=words):
        decode_json(raw)


def test_no_nan_outside_an_array_is_put_into_json() -> None:
    with pytest.raises(ServiceError, match="cannot be sent"):
        encode_json({"a": float("nan")})
