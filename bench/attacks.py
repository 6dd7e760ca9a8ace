"""Attacks on the service by one client that speaks its protocols well, for `serve_load.py --attacks`.

    python bench/attacks.py NAME ZMQ_PORT HTTP_PORT SECONDS     one of them, in a process of its own

Unlike the messages of `hostile.py` these are well-formed, or never come to an end.
"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.wire import encode
from gr00t_trt.serve.zmtp import GREETING, frames_of

MIB = 2**20
CONNECTIONS = 300
_REQ = b"\x05READY\x0bSocket-Type\x00\x00\x00\x03REQ"
HANDSHAKE = GREETING + bytes((4, len(_REQ))) + _REQ
NEVER_ENDING = b"\x03" + struct.pack(">Q", MIB) + b"\1" * MIB
HEAD = b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 30000000\r\n\r\n"


class Target:
    """The server that is attacked."""

    def __init__(self, zmq_port: int, http_port: int):
        self.zmq_port, self.http_port = zmq_port, http_port
        with RobotInferenceClient("127.0.0.1", zmq_port) as client:
            self.observation: dict[str, Any] = example(client.status()["observation"])

    def instructed(self, text: str) -> dict[str, Any]:
        """The observation with another instruction."""
        return {key: [text] if "annotation" in key else value for key, value in self.observation.items()}

    def batch(self, size: int) -> dict[str, Any]:
        """The observation, so many times."""
        own = self.observation.items()
        return {key: np.stack([v] * size) if isinstance(v, np.ndarray) else v * size for key, v in own}


def idle_connections(target: Target) -> Iterator[None]:
    """On both ports."""
    yield from _opened((target.zmq_port, target.http_port), b"")


def unfinished_heads(target: Target) -> Iterator[None]:
    yield from _opened((target.http_port,), b"POST /act HTTP/1.1\r\nHost: x\r\n")


def unfinished_bodies(target: Target) -> Iterator[None]:
    yield from _opened((target.http_port,), HEAD + b" " * (4 * MIB))


def endless_messages(target: Target) -> Iterator[None]:
    """One frame after the other of a message that has always more to come."""
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", target.zmq_port)) as connection:
            connection.sendall(HANDSHAKE)
            for _ in range(64):
                connection.sendall(NEVER_ENDING)
                yield
        yield


def flood(target: Target) -> Iterator[None]:
    """Requests as fast as they can be sent, each in the name of another client, and nobody reads the answers."""
    numbers = itertools.count()
    while True:
        with suppress(OSError), socket.create_connection(("127.0.0.1", target.zmq_port)) as connection:
            connection.settimeout(0.5)
            connection.sendall(HANDSHAKE)
            while True:
                message = {"data": target.observation, "client_id": str(next(numbers))}
                connection.sendall(frames_of([b"", encode(message)]))
                time.sleep(0.005)
                yield
        yield


def long_instructions(target: Target) -> Iterator[None]:
    yield from _asked(target, [target.instructed("x" * size) for size in (5000, 20_000, MIB)])


def large_batches(target: Target) -> Iterator[None]:
    yield from _asked(target, [target.batch(size) for size in (16, 64, 120)])


def large_http_batches(target: Target) -> Iterator[None]:
    with HttpInferenceClient("127.0.0.1", target.http_port) as client:
        for size in itertools.cycle((16, 40, 100)):
            with suppress(ServiceError):
                client.get_action(target.batch(size))
            yield


def impatience(target: Target) -> Iterator[None]:
    """A client that gives up at once, and asks again."""
    while True:
        with suppress(ServiceError), RobotInferenceClient("127.0.0.1", target.zmq_port, timeout_ms=5) as client:
            client.get_action(target.observation)
        yield


ATTACKS: dict[str, Callable[[Target], Iterator[None]]] = {
    each.__name__: each
    for each in (
        *(idle_connections, unfinished_heads, unfinished_bodies, endless_messages),
        *(flood, long_instructions, large_batches, large_http_batches, impatience),
    )
}


def _opened(ports: tuple[int, ...], opening: bytes) -> Iterator[None]:
    """Connections that say no more than their opening, and are kept."""
    opened: list[socket.socket] = []
    for port in ports * CONNECTIONS:
        with suppress(OSError):
            opened.append(socket.create_connection(("127.0.0.1", port), timeout=1))
            opened[-1].sendall(opening)
        yield
    while True:
        time.sleep(0.05)
        yield


def _asked(target: Target, requests: list[dict[str, Any]]) -> Iterator[None]:
    with RobotInferenceClient("127.0.0.1", target.zmq_port) as client:
        for request in itertools.cycle(requests):
            with suppress(ServiceError):
                client.get_action(request)
            yield


def slowest_health_ms(http_port: int, seconds: float) -> float:
    """The longest of many health checks, each by a connection of its own; infinite when one is not answered."""
    slowest, ends = 0.0, time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.perf_counter()
        try:
            with socket.create_connection(("127.0.0.1", http_port), timeout=5) as connection:
                connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answered = connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        except OSError:
            answered = False
        slowest = max(slowest, (time.perf_counter() - began) * 1e3 if answered else float("inf"))
        time.sleep(0.05)
    return slowest


def main(name: str, zmq_port: int, http_port: int, seconds: float) -> None:
    ends = time.monotonic() + seconds
    print("ready", flush=True)
    for _ in ATTACKS[name](Target(zmq_port, http_port)):
        if time.monotonic() > ends:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
