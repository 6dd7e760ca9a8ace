"""What one client can do to the others, however it goes about it: nothing that they would notice for long."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from puppet import Served, observation, repeated, serving, wait_until
from test_zmtp import HANDSHAKE

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve import http_guard, zmq_server
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.wire import encode

MIB = 2**20


@contextmanager
def connections(port: int, count: int, opening: bytes = b"") -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(count)]
        for each in opened:
            each.sendall(opening)
            each.settimeout(5)
        yield opened


def ended(connection: socket.socket) -> bool:
    """Whether the other side closes a connection, whatever it says before; within its timeout."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    return True


def sent_of(connection: socket.socket, data: bytes, times: int) -> int:
    """How often data can be sent until the other side, or the network, takes no more."""
    for number in range(times):
        try:
            connection.sendall(data)
        except OSError:
            return number
    return times


def served_well(served: Served) -> None:
    """A new client of either protocol is answered at once, and so is a health check."""
    began = time.monotonic()
    assert httpx.get(f"http://127.0.0.1:{served.http_port}/health", trust_env=False).status_code == 200
    for client in (RobotInferenceClient("127.0.0.1", served.port), HttpInferenceClient("127.0.0.1", served.http_port)):
        with client:
            assert (client.get_action(observation(3.0))["action.arm"] == 3.0).all()
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("opening", [b"", b"POST /act HTTP/1.1\r\nHost: x\r\n", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_idle_connections_make_room_and_have_a_deadline(
    served: Served, opening: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_guard, "IDLE_S", 0.5)
    with connections(served.http_port, 300, opening) as idle:
        served_well(served)
        assert all(ended(each) for each in idle)
    served_well(served)


def test_unfinished_bodies_make_room_and_have_a_deadline_and_a_common_limit() -> None:
    head = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n" + b" " * 900_000
    with serving(max_request_bytes=MIB) as served, connections(served.http_port, 12) as senders:
        for each in senders:
            each.sendall(head)
        wait_until(lambda: sum(peeked(each) == b"" for each in senders) >= 7)  # 4 MiB are kept
        served_well(served)
        assert all(ended(each) for each in senders)
        assert served.service.status()["requests"]["get_action"]["Refusal"] >= 4  # 408


def peeked(connection: socket.socket) -> bytes | None:
    """What could be read; empty at the end, None where nothing has come yet."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except ConnectionError:
        return b""


def test_without_its_token_no_body_is_read() -> None:
    with serving(api_token="sesame") as served, connections(served.http_port, 1) as (one,):
        one.sendall(b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert one.recv(4096).startswith(b"HTTP/1.1 401 ")


def test_a_message_that_never_ends_ends_its_connection(served: Served) -> None:
    frame = b"\x03" + struct.pack(">Q", MIB // 2) + b"\1" * (MIB // 2)
    with connections(served.port, 1, HANDSHAKE) as (endless,):
        # How much lies in the network when it is closed is the kernel's affair: up to some 30 MiB of these 256.
        assert sent_of(endless, frame, 512) < 512
        assert ended(endless)
    served_well(served)


def test_unfinished_messages_have_a_deadline_and_a_common_limit() -> None:
    begun = HANDSHAKE + b"\x02" + struct.pack(">Q", MIB) + b"\1" * 900_000
    with serving(max_request_bytes=MIB) as served, connections(served.port, 12, begun) as senders:
        wait_until(lambda: sum(len(each.receiver._body) for each in held(served)) <= 4 * MIB)
        served_well(served)
        assert all(ended(each) for each in senders)


def held(served: Served) -> Any:
    return [each for each in list(served.zmq_server._peers) if each.receiver.held]


def test_silent_connections_have_a_deadline_and_make_room(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq_server, "_HANDSHAKE_S", 0.5)
    monkeypatch.setattr(zmq_server, "_OF_AN_ADDRESS", 20)
    with RobotInferenceClient("127.0.0.1", served.port) as before, connections(served.port, 40) as silent:
        assert before.ping()
        served_well(served)
        assert all(ended(each) for each in silent)
        assert before.ping()


def test_who_does_not_read_answers_is_not_read_from_and_goes(served: Served) -> None:
    status = b"\x81\xa8endpoint\xa6status"
    asked = b"\x01\x00" + bytes((0, len(status))) + status
    with connections(served.port, 1, HANDSHAKE) as (deaf,):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        assert sent_of(deaf, asked * 100, 10**6) < 10**6  # its own buffer is full, or the server has enough
        served_well(served)
        wait_until(lambda: not any(each.blocked for each in served.zmq_server._peers))
    served_well(served)


def test_many_messages_at_once_are_read_a_few_at_a_time(served: Served) -> None:
    ping = b"\x81\xa8endpoint\xa4ping"
    flood = (b"\x01\x00" + bytes((0, len(ping))) + ping) * 20_000
    with connections(served.port, 1, HANDSHAKE) as (busy,):
        reader = threading.Thread(target=lambda: drain(busy, 20_000 * 40), daemon=True)
        reader.start()
        busy.settimeout(20)
        busy.sendall(flood)
        served_well(served)
        reader.join(20)
        assert not reader.is_alive()  # and each has its answer


def drain(connection: socket.socket, size: int) -> None:
    while size > 0:
        size -= len(connection.recv(2**16))


def test_a_long_instruction_and_a_large_batch_are_refused_by_both_protocols(served: Served) -> None:
    many = repeated(observation(), 5)
    calls = len(served.puppet.calls)
    for client in (RobotInferenceClient("127.0.0.1", served.port), HttpInferenceClient("127.0.0.1", served.http_port)):
        with client:
            for request, words in (
                (many, "a batch of 5, more than the 4"),
                (observation(text="x" * 41), "a prompt of 41 tokens, more than the 40"),
                (observation(text="x" * 100_000), "an instruction of 100000 characters"),
            ):
                with pytest.raises(ServiceError, match=words):
                    client.get_action(request)
    assert len(served.puppet.calls) == calls  # no work was done


def test_one_connection_is_one_client_whatever_it_calls_itself() -> None:
    with serving(max_queue=4) as served, RobotInferenceClient("127.0.0.1", served.port) as good:
        served.puppet.go.clear()

        def named(name: str) -> bytes:
            raw = encode({"data": observation(), "client_id": name})
            return b"\x01\x00\x02" + struct.pack(">Q", len(raw)) + raw

        with connections(served.port, 1, HANDSHAKE + named("first")) as (flood,):
            wait_until(lambda: served.puppet.calls)
            for number in range(20):
                flood.sendall(named(str(number)))
            wait_until(lambda: len(served.worker._queue) == 4)
            answers: list[Any] = []
            asking = threading.Thread(target=lambda: answers.append(good.get_action(observation(1.0))))
            asking.start()
            wait_until(lambda: len(served.worker._queue._waiting) == 2)
            served.puppet.go.set()
            asking.join(10)
            assert (answers[0]["action.arm"] == 1.0).all()
