"""Messages that nobody well-meaning sends, for the load test and the tests of the service; reproducible from a seed."""

from __future__ import annotations

import itertools
import json
import pickle
import random
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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
    return _in_turn(_message, count, observation, seed)


def bodies(count: int, observation: Mapping[str, Any], *, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """(kind, HTTP body), likewise."""
    return _in_turn(_body, count, observation, seed)


def _in_turn(
    make: Callable[[str, dict[str, Any], random.Random], bytes], count: int, observation: Mapping[str, Any], seed: int
) -> Iterator[tuple[str, bytes]]:
    source = random.Random(seed)
    for kind in itertools.islice(itertools.cycle(KINDS), count):
        yield kind, make(kind, dict(observation), source)


@dataclass
class Fire:
    """Hostile messages to a server, one after the other, and what became of them; threads may share one.

    Attributes:
        observation: What the server's policy accepts.
        pause_s: Between an answer and the next message.
        answered: Counts what was answered, by kind.
        wrong: Counts what was not answered within a minute, or not with the error that it should have had.
    """

    observation: Mapping[str, Any]
    pause_s: float = 0.0
    answered: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)

    def over_zmq(self, port: int, count: int, seed: int) -> None:
        with zmq.Context() as context, context.socket(zmq.DEALER) as enemy:
            enemy.setsockopt(zmq.LINGER, 0)
            enemy.setsockopt(zmq.RCVTIMEO, 60_000)
            enemy.connect(f"tcp://127.0.0.1:{port}")
            for kind, raw in messages(count, self.observation, seed=seed):
                enemy.send_multipart([b"", raw])
                try:
                    reply = decode(enemy.recv_multipart()[1])
                except zmq.Again:
                    self.wrong[f"{kind}: no answer"] += 1
                    continue
                refused = list(reply) == ["error"] or kind == "one byte changed" or _only_odd(kind, raw)
                self._count(kind, refused)

    def over_http(self, port: int, count: int, seed: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as client:
            for kind, raw in bodies(count, self.observation, seed=seed):
                try:
                    status = client.post("/act", content=raw).status_code
                except httpx.TransportError as error:
                    self.wrong[f"{kind}: {type(error).__name__}"] += 1
                    continue
                # HTTP has no endpoints.
                self._count(kind, status != 200 or kind not in REFUSED or kind == "unknown endpoint")

    def _count(self, kind: str, as_it_should: bool) -> None:
        if not as_it_should:
            self.wrong[f"{kind}: answered"] += 1
        self.answered[kind] += 1
        time.sleep(self.pause_s)


def _only_odd(kind: str, raw: bytes) -> bool:
    """Whether a message of wrong types is one that a policy may still answer."""
    return kind == "wrong types" and b"get_action" in raw and b"annotation.other" in raw


DAMAGED = ("random bytes", "truncated", "one byte changed")


def _damaged(kind: str, good: bytes, source: random.Random) -> bytes:
    """What may come of a good message on its way."""
    if kind == "random bytes":
        return source.randbytes(source.randrange(0, 4096))
    if kind == "truncated":
        return good[: source.randrange(len(good))]
    raw = bytearray(good)
    raw[source.randrange(min(400, len(raw)))] ^= 1 << source.randrange(8)
    return bytes(raw)


def _message(kind: str, observation: dict[str, Any], source: random.Random) -> bytes:
    good = {"endpoint": "get_action", "data": observation}
    if kind in DAMAGED:
        return _damaged(kind, encode(good), source)
    if kind == "deep":
        opening = source.choice((b"\x91", b"\x81\xa4data", b"\xdc\x00\x01"))
        return b"\x81\xa4data" + opening * source.choice((20, 1000, 100_000)) + b"\xc0"
    if kind == "huge claim":
        claim = struct.pack(">I", source.choice((2**20, 2**31 - 1, 2**32 - 1)))
        return b"\x81\xa4data" + source.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb")) + claim + b"\xc0" * 10
    if kind == "many elements":
        return b"\x81\xa4data" + source.choice((b"\xdd", b"\xdf")) + struct.pack(">I", 200_000) + b"\x80" * 400_000
    if kind == "pickle":
        return pickle.dumps(good) if source.random() < 0.5 else _pickled()
    return bytes(msgpack.packb(_wrong(kind, good, source), default=_wire_default))


def _body(kind: str, observation: dict[str, Any], source: random.Random) -> bytes:
    if kind in DAMAGED:
        return _damaged(kind, encode_json({"observation": observation}), source)
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
        views = {key: np.shape(value) for key, value in data.items() if key.startswith("video.")}
        return {**good, "data": {**data, **{key: np.full(own, np.nan, np.float32) for key, own in views.items()}}}
    if kind == "NaN state":
        states = {key: np.shape(value) for key, value in data.items() if key.startswith("state.")}
        spoilt = {key: np.full(own, source.choice((np.nan, np.inf))) for key, own in states.items()}
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
