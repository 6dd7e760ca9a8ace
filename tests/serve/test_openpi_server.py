"""openpi's WebSocket protocol, spoken by openpi's own client where it is installed, and by `websockets` alone."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from puppet import Served, at_once, observation, repeated, serving, wait_until
from test_attacks import connections, ended
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from gr00t_trt.serve.openpi_wire import decode_openpi, encode_openpi

MIB = 2**20
HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextmanager
def client(served: Served, **settings: Any) -> Iterator[ClientConnection]:
    """A connection that has been greeted."""
    url = f"ws://127.0.0.1:{served.websocket_port}"
    with connect(url, compression=None, proxy=None, **settings) as connection:
        decode_openpi(connection.recv(10, decode=False))
        yield connection


def asked(connection: ClientConnection, request: Any) -> Any:
    """The answer to a request, or to raw bytes: a map, or text where it is an error."""
    connection.send(request if isinstance(request, bytes) else encode_openpi(request))
    reply = connection.recv(10)
    return reply if isinstance(reply, str) else decode_openpi(reply)


@contextmanager
def openpi_client(served: Served, **settings: Any) -> Iterator[Any]:
    module = pytest.importorskip("openpi_client.websocket_client_policy", reason="needs the package openpi-client")
    made = module.WebsocketClientPolicy("127.0.0.1", served.websocket_port, **settings)
    try:
        yield made
    finally:
        made._ws.close()


def test_openpis_own_client_gets_our_actions(served: Served) -> None:
    with openpi_client(served) as policy:
        about = policy.get_server_metadata()
        assert about["submodules"] == {"dit_model": "eager fp32"}
        assert about["modality_keys"]["state"] == ["state.arm"]
        for value in (1.5, 2.5):
            action = policy.infer(observation(value))
            assert action["action.arm"].dtype == np.float32
            assert (action["action.arm"] == value).all()
            np.testing.assert_array_equal(action["actions"], action["action.arm"])
            assert action["server_timing"]["infer_ms"] > 0
        with pytest.raises(RuntimeError, match="told to fail"):
            policy.infer(observation(text="fail"))
        assert (policy.infer(observation(3.0))["actions"] == 3.0).all()  # the connection has survived


def test_openpis_own_client_shows_its_key_as_the_token() -> None:
    with serving(api_token="sesame") as served:
        with openpi_client(served, api_key="sesame") as policy:
            assert (policy.infer(observation(1.0))["actions"] == 1.0).all()
        for key in ("wrong", None):
            with pytest.raises(InvalidStatus, match="401"), openpi_client(served, api_key=key):
                pass


def test_both_encodings_are_the_same() -> None:
    module = pytest.importorskip("openpi_client.msgpack_numpy", reason="needs the package openpi-client")
    message = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "turned": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 4), np.uint8),
        "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("x")],
        "text": np.array(["go", "home"]),
        "plain": [1, 2.5, "x", None, b"y", {"deep": True}],
    }
    assert encode_openpi(message) == module.packb(message)
    again = decode_openpi(encode_openpi(message))
    for own, theirs in zip(flat(again), flat(module.unpackb(module.packb(message))), strict=True):
        assert type(own) is type(theirs)
        np.testing.assert_array_equal(own, theirs)


def flat(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from flat(each)
    else:
        yield value


def test_options_and_the_prompt_stand_beside_the_observation(served: Served) -> None:
    request = observation(1.0)
    del request["annotation.task"]
    with client(served) as connection:
        reply = asked(connection, {**request, "prompt": "go", "seed": 7, "timings": True, "served_by": True})
        assert {"action.noise", "timings", "served_by", "actions"} <= set(reply)
        np.testing.assert_array_equal(
            reply["action.noise"], asked(connection, {**request, "prompt": "go", "seed": 7})["action.noise"]
        )
        assert served.puppet.calls[-1]["annotation.task"] == "go"
        assert "leave prompt out" in asked(connection, {**observation(), "prompt": "go"})
        assert "seed is 'x'" in asked(connection, {**observation(), "seed": "x"})
        assert "more than the 40" in asked(connection, observation(text="x" * 41))
        assert "timings" not in asked(connection, observation())


def test_a_single_step_needs_no_time_axis(served: Served) -> None:
    full = observation(1.0)
    step = {key: value[0] if isinstance(value, np.ndarray) else value for key, value in full.items()}
    with client(served) as connection:
        assert asked(connection, step)["actions"].shape == (16, 5)
        assert asked(connection, repeated(full, 2))["actions"].shape == (2, 16, 5)
    assert [call["video.webcam"].ndim for call in served.puppet.calls[-2:]] == [4, 5]


def test_health_needs_neither_token_nor_websocket() -> None:
    with serving(api_token="sesame") as served:
        url = f"http://127.0.0.1:{served.websocket_port}"
        health = httpx.get(f"{url}/healthz", trust_env=False)
        assert (health.status_code, health.text) == (200, "OK\n")
        assert httpx.get(f"{url}/", trust_env=False).status_code == 401
        for headers in ({"Authorization": "Bearer sesame"}, {"X-API-Token": "sesame"}):
            with client(served, additional_headers=headers) as connection:
                assert (asked(connection, observation(1.0))["actions"] == 1.0).all()


def marked(**fields: Any) -> bytes:
    fields = {"data": b"\0" * 8, "dtype": "<f4", "shape": [2], **fields}
    body = {b"__ndarray__": True, **{key.encode(): value for key, value in fields.items()}}
    return bytes(msgpack.packb({**dict.fromkeys(observation(), 0), "state.arm": body}))


def scalar(data: Any, dtype: Any) -> bytes:
    return bytes(msgpack.packb({"x": {b"__npgeneric__": True, b"data": data, b"dtype": dtype}}))


def hostile() -> dict[str, bytes]:
    good = encode_openpi(observation())
    return {
        "nothing": b"",
        "no message": b"\xc1",
        "cut short": good[:-3],
        "two": good + good,
        "no map": b"\x93\x01\x02\x03",
        "deep": b"\x91" * 100 + b"\xc0",
        "huge claim": b"\xdd\xff\xff\xff\xff",
        "pickle": b"\x80\x04K\x01.",
        "extension": b"\xc7\x01\x05a",
        "lying array": marked(shape=[10**12]),
        "negative shape": marked(shape=[-1]),
        "wrapped shape": marked(shape=[2**62, 4]),
        "shape of text": marked(shape="ab"),
        "shape of booleans": marked(shape=[True, 2]),
        "no shape": marked(shape=None),
        "array of text": marked(data="text"),
        "objects": marked(dtype="|O"),
        "void": marked(dtype="|V0"),
        "no dtype": marked(dtype=7),
        "a dtype that is none": marked(dtype="nonsense"),
        "a dtype of commas": marked(dtype="f4," * 5),
        "a long dtype": marked(dtype="x" * 100_000),
        "scalar too large": scalar(300, "|u1"),
        "scalar cut off": scalar(1.5, "<i8"),
        "scalar of a list": scalar([1], "<f4"),
        "scalar of objects": scalar(1, "|O"),
        "scalar of 2 GB": scalar("x", "<U999999999"),
    }


@pytest.mark.parametrize("kind", sorted(hostile()))
def test_hostile_bytes_get_words(served: Served, kind: str) -> None:
    calls = len(served.puppet.calls)
    with client(served) as connection:
        words = asked(connection, hostile()[kind])
        assert isinstance(words, str), kind
        assert "Traceback" not in words
        assert len(words) < 500
        assert len(served.puppet.calls) == calls
        assert (asked(connection, observation(1.0))["actions"] == 1.0).all()


def test_random_bytes_never_get_an_action(served: Served) -> None:
    random, good = np.random.default_rng(0), encode_openpi(observation(1.0))
    with client(served) as connection:
        for length in random.integers(0, 300, 200):
            assert isinstance(asked(connection, random.bytes(int(length))), str)
            assert isinstance(asked(connection, good[: int(length)]), str)
        connection.send("text")
        assert "a text message" in connection.recv(10)


@pytest.mark.parametrize(
    "opening",
    [b"\x00\xff" * 50, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, HANDSHAKE + b"\xff\x00"],
    ids=["noise", "headers", "frame"],
)
def test_what_is_no_websocket_is_closed(served: Served, opening: bytes) -> None:
    with connections(served.websocket_port, 1, opening) as (one,):
        assert ended(one)
    works(served)


def works(served: Served) -> None:
    began = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{served.websocket_port}/healthz", trust_env=False).status_code == 200
    with client(served) as connection:
        assert (asked(connection, observation(3.0))["actions"] == 3.0).all()
    assert time.monotonic() - began < 2


def frame(claimed: int, data: bytes, *, last: bool = True) -> bytes:
    """The beginning of a binary message; its mask is nothing."""
    return bytes((0x82 if last else 0x02, 0xFF)) + struct.pack(">Q", claimed) + b"\0" * 4 + data


def test_a_message_over_the_limit_ends_its_connection(served: Served) -> None:
    with client(served) as connection, pytest.raises(ConnectionClosed, match="1009"):
        asked(connection, b"\0" * (MIB + 1))
    with connections(served.websocket_port, 1, HANDSHAKE + frame(2**40, b"")) as (one,):
        assert ended(one)
    pieces = frame(MIB // 2, b"\1" * (MIB // 2), last=False) + frame(MIB, b"")
    with connections(served.websocket_port, 1, HANDSHAKE + pieces) as (one,):
        assert ended(one)
    works(served)


def test_unfinished_messages_have_a_deadline_and_a_common_limit() -> None:
    begun = HANDSHAKE + frame(1_000_000, b"\1" * 900_000)
    with serving(max_request_bytes=MIB) as served, connections(served.websocket_port, 12, begun) as senders:
        server = served.openpi_server
        wait_until(lambda: sum(each.held for each in server._connections) <= 4 * MIB)
        works(served)
        assert all(ended(each) for each in senders)


def test_idle_connections_make_room_and_robots_that_pause_stay(served: Served) -> None:
    with client(served) as robot, connections(served.websocket_port, 300) as idle:
        assert asked(robot, observation(1.0))
        wait_until(lambda: sum(1 for _ in served.openpi_server._connections) <= 140)
        works(served)
        robot.ping().wait(5)
        time.sleep(1.6)  # longer than a message may take
        assert (asked(robot, observation(2.0))["actions"] == 2.0).all()
        del idle
    works(served)


def test_a_client_that_has_gone_is_not_computed_for() -> None:
    with serving() as served, client(served) as good:
        served.puppet.go.clear()
        with client(served) as first, client(served) as dying:
            first.send(encode_openpi(observation(1.0)))
            wait_until(lambda: served.puppet.calls)
            dying.send(encode_openpi(observation(2.0)))
            wait_until(lambda: len(served.worker._queue) == 1)
            dying.socket.shutdown(socket.SHUT_RDWR)
            good.send(encode_openpi(observation(3.0)))
            wait_until(lambda: len(served.worker._queue) == 2)
            time.sleep(0.05)
            served.puppet.go.set()
            assert (decode_openpi(first.recv(10, decode=False))["actions"] == 1.0).all()
        assert (decode_openpi(good.recv(10, decode=False))["actions"] == 3.0).all()
        assert len(served.puppet.calls) == 2


def test_clients_of_all_protocols_at_once_each_get_their_own_answer(served: Served) -> None:
    wrong: list[Any] = []

    def drive(number: int) -> None:
        with client(served) as connection:
            for step in range(8):
                value = number * 1000.0 + step
                reply = asked(connection, observation(value))
                if isinstance(reply, str) or not (reply["actions"] == value).all():
                    wrong.append((value, reply))

    at_once(drive, 8)
    assert not wrong


def test_who_waits_when_the_server_ends_is_told_so() -> None:
    words: list[Any] = []
    with serving() as served:
        served.puppet.go.clear()
        with client(served) as first, client(served) as waiting:
            first.send(encode_openpi(observation(1.0)))
            wait_until(lambda: served.puppet.calls)
            waiting.send(encode_openpi(observation(2.0)))
            wait_until(lambda: len(served.worker._queue) == 1)
            served.worker.refuse_waiting()
            words.append(waiting.recv(10))
            served.puppet.go.set()
            assert (decode_openpi(first.recv(10, decode=False))["actions"] == 1.0).all()
    assert words == ["not answered: the server is shutting down"]


def test_metadata_is_plain(served: Served) -> None:
    with connect(f"ws://127.0.0.1:{served.websocket_port}/any/path", proxy=None) as connection:
        assert json.dumps(decode_openpi(connection.recv(10, decode=False)))
