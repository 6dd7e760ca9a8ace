"""A long run: clients that check every answer, hostile ones beside them, and the server's memory meanwhile."""

from __future__ import annotations

import itertools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hostile
import numpy as np
from attacks import HANDSHAKE
from loadtest import MARK, Driver, Server, Subject, driven, running, summed_up, tally
from robots import MAX_BATCH

from gr00t_trt.serve.client import BaseInferenceClient, RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.wire import encode
from gr00t_trt.serve.zmtp import frames_of

REPEATED = 16
"""Observations with a seed each, asked for again and again: their actions must be the same to the last bit."""
BATCHES = (1, MAX_BATCH)
PAUSE_S = 0.25
"""Of a good client between two requests: six of them leave a server time to breathe, as robots do."""
HOSTILE_PAUSE_S = 0.06


def soaked(flags: Sequence[str], seconds: float) -> list[dict[str, Any]]:
    """A row for each `--max_batch` of `BATCHES`.

    Args:
        flags: Of the servers, one after the other.
        seconds: Of each.
    """
    rows = []
    for most in BATCHES:
        with running([*flags, "--max_batch", str(most)], 0, 0) as server:
            rows.append({"max_batch": most, **_soaked(server, seconds)})
    return rows


def _soaked(server: Server, seconds: float) -> dict[str, Any]:
    with RobotInferenceClient("127.0.0.1", server.port, 60_000) as client:
        subject = Subject(server.port, client.status()["observation"])
        repeated = _Repeated(subject, client)
    ports = ((RobotInferenceClient, server.port), (HttpInferenceClient, server.http_port))
    zmq, http = (_connecting(kind, port) for kind, port in ports)
    asking = [(zmq, subject.ask), (zmq, subject.ask), (http, subject.ask), (zmq, repeated.ask), (http, repeated.ask)]
    good = [Driver(subject, connect, ask, PAUSE_S) for connect, ask in asking]
    fire, over = hostile.Fire(subject.observation, HOSTILE_PAUSE_S), threading.Event()
    memory, began = [server.usage.memory_info().rss], time.monotonic()
    with driven(good):
        enemies = [threading.Thread(target=each) for each in _enemies(server, subject, over, fire)]
        for enemy in enemies:
            enemy.start()
        while (left := began + seconds - time.monotonic()) > 0:
            time.sleep(min(left, 60.0))
            memory.append(server.usage.memory_info().rss)
        over.set()
        for enemy in enemies:
            enemy.join()
    return {
        **tally(good),
        "seconds": time.monotonic() - began,
        "round_trip_ms": summed_up([ms for driver in good for _, ms in driver.right]),
        "hostile": dict(sorted(fire.answered.items())),
        "unanswered_or_wrong": dict(fire.wrong),
        "rss_bytes_by_minute": memory,
        "open_files": server.usage.num_fds(),
    }


class _Repeated:
    """Observations with seeds whose actions are known."""

    def __init__(self, subject: Subject, client: BaseInferenceClient):
        self._observations = [subject.request() for _ in range(REPEATED)]
        self._known = [self._actions(client, number) for number in range(REPEATED)]
        self._numbers = itertools.cycle(range(REPEATED))

    def _actions(self, client: BaseInferenceClient, number: int) -> dict[str, np.ndarray]:
        action = client.get_action(self._observations[number], seed=number)
        return {name: value for name, value in action.items() if name != MARK}  # which says how long it took, too

    def ask(self, client: BaseInferenceClient) -> bool:
        """One request; whether the same came back as the first time."""
        number = next(self._numbers)
        action, known = self._actions(client, number), self._known[number]
        return action.keys() == known.keys() and all(np.array_equal(action[name], known[name]) for name in known)


def _connecting(kind: type[BaseInferenceClient], port: int) -> Callable[[], BaseInferenceClient]:
    return lambda: kind("127.0.0.1", port, timeout_ms=60_000)


def _enemies(server: Server, subject: Subject, over: threading.Event, fire: hostile.Fire) -> list[Callable[[], None]]:
    def firing(send: Callable[[int, int, int], None], port: int, seed: int) -> Callable[[], None]:
        def run() -> None:
            seeds = itertools.count(1000 * seed)
            while not over.is_set():
                send(port, len(hostile.KINDS), next(seeds))

        return run

    return [
        *(firing(fire.over_zmq, server.port, seed) for seed in (1, 2)),
        firing(fire.over_http, server.http_port, 3),
        lambda: _raw(server, over, fire.answered),
        lambda: _dying(server.port, subject, over, fire.answered),
    ]


def _raw(server: Server, over: threading.Event, answered: Counter[str]) -> None:
    """Connections to both ports that say something else, or nothing, and are closed or reset."""
    source = random.Random(4)
    odd = HANDSHAKE + b"\x02" + b"\x3f" * 8
    openings = (b"", source.randbytes(200), odd, b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01")
    while not over.wait(HOSTILE_PAUSE_S):
        port = source.choice((server.port, server.http_port))
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(source.choice(openings))
            if source.random() < 0.5:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        answered["connection"] += 1


def _dying(port: int, subject: Subject, over: threading.Event, answered: Counter[str]) -> None:
    """Clients that ask, and are gone before the answer or never read it."""
    source = random.Random(5)
    while not over.wait(0.3):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            request = {"endpoint": "get_action", "data": subject.request()}
            connection.sendall(HANDSHAKE + frames_of([b"", encode(request)]))
            time.sleep(source.choice((0.01, 0.05)))
        answered["died"] += 1
