"""Large messages that come to nothing are read slowly, on every protocol, and nobody else is."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from puppet import Served, observation, serving
from test_attacks import connections, served_well
from test_zmtp import HANDSHAKE
from websockets.sync.client import connect

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve import pace
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.openpi_wire import encode_openpi
from gr00t_trt.serve.pace import Pace

MIB = 2**20


def test_credit_is_used_up_by_what_comes_to_nothing_and_comes_back_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    account = Pace(2 * MIB)
    account.spend(2 * MIB)
    assert account.wait_s() == 0
    account.spend(MIB)
    assert account.wait_s() == MIB / pace.BYTES_PER_S
    account.spend(-MIB)  # it has become a request
    assert account.wait_s() == 0
    account.spend(5 * MIB)
    now[0] += 10
    assert account.wait_s() == 0
    account.spend(-100 * MIB)  # there is never more credit than at first
    account.spend(3 * MIB)
    assert account.wait_s() == MIB / pace.BYTES_PER_S


def too_many() -> dict[str, Any]:
    """A batch of five, one more than is served, with 480 KB of frames."""
    return {
        "video.webcam": np.zeros((5, 1, 160, 200, 3), np.uint8),
        "state.arm": np.zeros((5, 1, 5)),
        "annotation.task": ["go"] * 5,
    }


@contextmanager
def asking(kind: str, served: Served) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """What asks a server over one connection; an exception or text is a refusal."""
    if kind == "websocket":
        with connect(f"ws://127.0.0.1:{served.websocket_port}", compression=None, proxy=None) as socket_:
            socket_.recv()

            def ask(request: dict[str, Any]) -> Any:
                socket_.send(encode_openpi(request))
                return socket_.recv()

            yield ask
        return
    client = RobotInferenceClient if kind == "zmq" else HttpInferenceClient
    with client("127.0.0.1", served.port if kind == "zmq" else served.http_port) as own:
        yield own.get_action


@pytest.mark.parametrize("kind", ["zmq", "http", "websocket"])
def test_whose_large_requests_are_refused_waits_and_the_others_do_not(kind: str) -> None:
    with serving(max_request_bytes=MIB) as served, asking(kind, served) as ask:
        refused: list[tuple[str, float]] = []

        def attack() -> None:
            for _ in range(8):
                try:
                    words = ask(too_many())
                except ServiceError as error:
                    words = str(error)
                refused.append((words, time.monotonic()))

        attacker, began = threading.Thread(target=attack), time.monotonic()
        attacker.start()
        slowest = 0.0
        with asking(kind, served) as good:
            while attacker.is_alive():
                asked = time.monotonic()
                good(observation(1.0))
                slowest = max(slowest, time.monotonic() - asked)
        attacker.join()
    assert len(refused) == 8
    assert all("a batch of 5, more than the 4" in words for words, _ in refused)
    # The last of them is read once all before it, less the credit, have been paid for.
    assert refused[-1][1] - began > 0.9 * (7 * 480_000 - MIB) / pace.BYTES_PER_S
    assert slowest < 0.4  # the attack lasts for longer


def taken(connection: socket.socket, size: int, seconds: float) -> int:
    """How many of so many bytes the other side takes in so many seconds."""
    connection.settimeout(0.1)
    sent, ends = 0, time.monotonic() + seconds
    while sent < size and time.monotonic() < ends:
        try:
            sent += connection.send(bytes(min(MIB, size - sent)))
        except TimeoutError:
            pass
        except OSError:
            return sent
    return sent


@pytest.mark.parametrize("kind", ["zmq", "http", "websocket"])
def test_a_large_message_is_read_slowly_once_others_have_come_to_nothing(kind: str) -> None:
    size = 24 * MIB
    opening = {
        "zmq": HANDSHAKE + b"\x02" + struct.pack(">Q", size),
        "http": b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size,
        "websocket": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    }[kind]
    with serving(max_request_bytes=32 * MIB) as served:
        port = {"zmq": served.port, "http": served.http_port, "websocket": served.websocket_port}[kind]
        with connections(port, 3, opening) as senders:
            if kind == "websocket":
                for each in senders:
                    assert each.recv(2**16).startswith(b"HTTP/1.1 101 ")
                    each.sendall(b"\x82\xff" + struct.pack(">Q", size) + bytes(4))
            first, _, third = (taken(each, size - MIB, s) for each, s in zip(senders, (10, 0.6, 0.6), strict=True))
            assert first == size - MIB  # as fast as it comes
            assert third < size - MIB  # what the network holds, which is the kernel's affair, and a little more
            served_well(served)
