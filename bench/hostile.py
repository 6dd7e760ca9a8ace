"""Messages that nobody well-meaning sends, for the load test and the tests of the service; reproducible from a seed."""

from __future__ import annotations

import json
import pickle
import random
import struct
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
import msgpack
import numpy as np
import zmq

from gr00t_trt.serve.json_wire import encode_json
from gr00t_trt.serve.wire import decode, encode

KINDS = (
    "random bytes",
    "truncated",
    "one byte changed",
    "deep",
    "huge claim",
    "many elements",
    "wrong types",
    "pickle",
    "lying array",
    "NaN image",
    "NaN state",
    "wrong token",
    "unknown endpoint",
)

REFUSED = tuple(kind for kind in KINDS if kind not in ("one byte changed", "wrong types", "NaN image"))
"""Those that must be answered with an error whatever the policy checks; the others, by a policy that checks."""


def messages(count: int, observation: Mapping[str, Any], *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(kind, ZeroMQ payload), all kinds in turn. `one byte changed` may leave a request that is still a good one.

    Args:
        observation: What the server's policy accepts.
    """
    source = random.Random(seed)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield kind, _message(kind, dict(observation), source)


def bodies(count: int, observation: Mapping[str, Any], *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(kind, HTTP body), likewise."""
    source = random.Random(seed)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        yield kind, _body(kind, dict(observation), source)


def fire(
    port: int,
    observation: Mapping[str, Any],
    count: int,
    seed: int,
    answered: Counter[str],
    wrong: Counter[str],
    pause_s: float = 0.0,
) -> None:
    """Send ZeroMQ messages one after the other.

    Args:
        answered: Counts what was answered, by kind.
        wrong: Counts what was not answered within a minute, or not with the error that it should have had.
        pause_s: Between an answer and the next message.
    """
    with zmq.Context() as context, context.socket(zmq.DEALER) as enemy:
        enemy.setsockopt(zmq.LINGER, 0)
        enemy.setsockopt(zmq.RCVTIMEO, 60_000)
        enemy.connect(f"tcp://127.0.0.1:{port}")
        for kind, raw in messages(count, observation, seed=seed):
            enemy.send_multipart([b"", raw])
            try:
                reply = decode(enemy.recv_multipart()[1])
            except zmq.Again:
                wrong[f"{kind}: no answer"] += 1
                continue
            if kind != "one byte changed" and list(reply) != ["error"] and not _only_odd(kind, raw):
                wrong[f"{kind}: answered"] += 1
            answered[kind] += 1
            time.sleep(pause_s)


def _only_odd(kind: str, raw: bytes) -> bool:
    """Whether a message of wrong types is one that a policy may still answer."""
    return kind == "wrong types" and b"get_action" in raw and b"annotation.other" in raw


def fire_http(
    port: int,
    observation: Mapping[str, Any],
    count: int,
    seed: int,
    answered: Counter[str],
    wrong: Counter[str],
    pause_s: float = 0.0,
) -> None:
    """Post HTTP bodies one after the other; arguments as for `fire`."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as client:
        for kind, raw in bodies(count, observation, seed=seed):
            try:
                status = client.post("/act", content=raw).status_code
            except httpx.TransportError as error:
                wrong[f"{kind}: {type(error).__name__}"] += 1
                continue
            if status == 200 and kind in REFUSED and kind != "unknown endpoint":  # HTTP has none
                wrong[f"{kind}: answered"] += 1
            answered[kind] += 1
            time.sleep(pause_s)


def _message(kind: str, observation: dict[str, Any], source: random.Random) -> bytes:
    good = {"endpoint": "get_action", "data": observation}
    if kind == "random bytes":
        return source.randbytes(source.randrange(0, 4096))
    if kind == "truncated":
        raw = encode(good)
        return raw[: source.randrange(len(raw))]
    if kind == "one byte changed":
        raw = bytearray(encode(good))
        raw[source.randrange(min(400, len(raw)))] ^= 1 << source.randrange(8)
        return bytes(raw)
    if kind == "deep":
        opening = source.choice((b"\x91", b"\x81\xa4data", b"\xdc\x00\x01"))
        return b"\x81\xa4data" + opening * source.choice((20, 1000, 100_000)) + b"\xc0"
    if kind == "huge claim":
        claim = struct.pack(">I", source.choice((2**20, 2**31 - 1, 2**32 - 1)))
        return b"\x81\xa4data" + source.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + claim + b"\xc0" * 10
    if kind == "many elements":
        return b"\x81\xa4data" + source.choice((b"\xdd", b"\xdf")) + struct.pack(">I", 200_000) + b"\x80" * 400_000
    if kind == "pickle":
        return pickle.dumps({"endpoint": "get_action", "data": observation}) if source.random() < 0.5 else _pickled()
    return bytes(msgpack.packb(_wrong(kind, good, source), default=_wire_default))


def _body(kind: str, observation: dict[str, Any], source: random.Random) -> bytes:
    good: dict[str, Any] = {"observation": observation}
    if kind == "random bytes":
        return source.randbytes(source.randrange(0, 4096))
    if kind == "truncated":
        raw = encode_json(good)
        return raw[: source.randrange(len(raw))]
    if kind == "one byte changed":
        raw = bytearray(encode_json(good))
        raw[source.randrange(min(400, len(raw)))] ^= 1 << source.randrange(8)
        return bytes(raw)
    if kind == "deep":
        return b'{"observation":' + source.choice((b"[", b'{"a":')) * source.choice((20, 1000, 100_000))
    if kind == "many elements":
        return b'{"observation":[' + b"{}," * 200_000 + b"0]}"
    if kind in ("huge claim", "lying array", "pickle"):
        shape = source.choice(([2**40], [2**62, 2**62], [-1], [0, 2**70], ["x"], None, [1] * 100))
        dtype = "|O" if kind == "pickle" else source.choice(("<f8", "|V0", "<U0", "nonsense", ["x"], None))
        observation[next(iter(observation))] = {"__numpy__": "AAAA", "dtype": dtype, "shape": shape}
        return json.dumps({"observation": observation}, default=str).encode()
    wrong = _wrong(kind, {"endpoint": "get_action", "data": observation}, source)
    if isinstance(wrong, dict) and "data" in wrong:
        wrong["observation"] = wrong.pop("data")
    return json.dumps(wrong, default=lambda value: json.loads(encode_json(value)), skipkeys=True).encode()


def _wrong(kind: str, good: dict[str, Any], source: random.Random) -> Any:
    data = good["data"]
    if kind == "wrong types":
        return source.choice(
            (
                None,
                [1, 2],
                "get_action",
                {1: 2},
                {"endpoint": ["get_action"], "data": data},
                {"endpoint": {"a": 1}},
                {**good, "data": [1, 2, 3]},
                {**good, "data": dict.fromkeys(data, "text")},
                {**good, "data": dict.fromkeys(data)},
                {**good, "data": {**data, next(iter(data)): np.zeros(3)}},
                {**good, "data": {key: np.zeros((0, 0)) for key in data}},
                {**good, "data": {**data, "annotation.other": [{"text": 1}]}},
            )
        )
    if kind == "lying array":
        header = source.choice(
            (
                "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }",
                "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
                "{'descr': '<f8', 'fortran_order': False, 'shape': (0, 4611686018427387904, 8), }",
                "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }",
                "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
                "{'descr': " + "[" * 500,
                "__import__('os').abort()",
            )
        ).encode()
        raw = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + b"\x00" * 16
        return {**good, "data": {**data, next(iter(data)): {"__ndarray_class__": True, "as_npy": raw}}}
    if kind == "NaN image":
        spoilt = {
            key: np.full(np.shape(value), np.nan, np.float32) for key, value in data.items() if key.startswith("video.")
        }
        return {**good, "data": {**data, **spoilt}}
    if kind == "NaN state":
        spoilt = {
            key: np.full(np.shape(value), source.choice((np.nan, np.inf)))
            for key, value in data.items()
            if key.startswith("state.")
        }
        return {**good, "data": {**data, **spoilt}}
    if kind == "wrong token":
        return {**good, "api_token": source.choice(("", "wrong", 7, None, "\x00", "x" * 10_000)), "data": {}}
    if kind == "unknown endpoint":
        return {"endpoint": source.choice(("", "get_actions", "__class__", "x" * 100_000, 3)), "data": data}
    return {**good, "data": {}}


def _wire_default(value: Any) -> Any:
    return msgpack.unpackb(encode(value))


def _pickled() -> bytes:
    """An array that numpy would have to unpickle."""
    raw = pickle.dumps(np.array([{"a": 1}], object))
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + raw
    data = {"state.left_arm": {"__ndarray_class__": True, "as_npy": npy}}
    return bytes(msgpack.packb({"endpoint": "get_action", "data": data}))
