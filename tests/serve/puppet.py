"""A server in this process whose policy does as it is told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.serve.batching import Batcher
from gr00t_trt.serve.http_server import HttpServer
from gr00t_trt.serve.limits import Limits
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.openpi_server import OpenpiServer
from gr00t_trt.serve.request_log import RequestLog
from gr00t_trt.serve.service import Service
from gr00t_trt.serve.worker import PolicyWorker
from gr00t_trt.serve.zmq_server import ZmqServer

CONFIG = {
    "video": ModalityConfig([0], ["video.webcam"]),
    "state": ModalityConfig([0], ["state.arm"]),
    "action": ModalityConfig(list(range(16)), ["action.arm"]),
    "language": ModalityConfig([0], ["annotation.task"]),
}
LIMITS = Limits(CONFIG, max_samples=4, max_tokens=40, noise_shape=(16, 3))
"""A token of the puppet is a letter."""


class Puppet:
    """Answers with its state, so that an answer tells which request it belongs to; the instruction says how.

    Attributes:
        calls: The observations that it was asked about.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.go = threading.Event()
        self.go.set()
        self.stages: dict[str, Callable[..., Any]] = {"think": self._think}

    def get_action(self, observation: dict[str, Any], *, noise: Any = None) -> dict[str, np.ndarray]:
        action = self.stages["think"](observation)
        return action if noise is None else {**action, "action.noise": noise.numpy()}

    def _think(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        self.calls.append(observation)
        self.go.wait(10)
        texts = observation.get("annotation.task", [""])
        state = np.asarray(observation["state.arm"], np.float32)
        if "fail" in texts:
            raise ZeroDivisionError("told to fail")
        if "nan" in texts:
            state = state * np.nan
        return {"action.arm": np.repeat(state, 16, axis=-2)}


@dataclass
class Served:
    """A running server; `port` is ZeroMQ's."""

    puppet: Puppet
    worker: PolicyWorker
    service: Service
    port: int
    http_port: int
    websocket_port: int
    zmq_server: ZmqServer
    openpi_server: OpenpiServer


def observation(value: float = 0.0, text: str = "go") -> dict[str, Any]:
    return {
        "video.webcam": np.zeros((1, 8, 8, 3), np.uint8),
        "state.arm": np.full((1, 5), value),
        "annotation.task": [text],
    }


def repeated(one: dict[str, Any], times: int) -> dict[str, Any]:
    """A batch of so many samples like this one."""
    return {key: np.stack([v] * times) if isinstance(v, np.ndarray) else v * times for key, v in one.items()}


@contextmanager
def serving(
    *,
    api_token: str | None = None,
    max_request_bytes: int = 2**20,
    port: int = 0,
    may_kill: bool = True,
    log: RequestLog | None = None,
    reloader: Any = None,
    **settings: Any,
) -> Iterator[Served]:
    """A server on free ports; bodies and messages may take a second to arrive. `settings`: of the worker."""
    puppet, metrics = Puppet(), Metrics()
    worker = PolicyWorker(
        puppet, metrics, tables=(puppet.stages,), batcher=Batcher(CONFIG, len), limits=LIMITS, **settings
    )
    description = {
        "submodules": {"dit_model": "eager fp32"},
        "commit": "c0ffee",
        "observation": {"video.webcam": {"dtype": "uint8", "shape": [1, 8, 8, 3]}},
    }
    service = Service(
        worker,
        metrics,
        description,
        CONFIG,
        limits=LIMITS,
        api_token=api_token,
        may_kill=may_kill,
        log=log,
        reloader=reloader,
    )
    bounds: dict[str, Any] = {"max_request_bytes": max_request_bytes, "request_timeout_s": 1.0}
    zmq_server = ZmqServer(service, "127.0.0.1", port, **bounds)
    http_server = HttpServer(service, "127.0.0.1", 0, **bounds)
    openpi_server = OpenpiServer(service, "127.0.0.1", 0, **bounds)
    servers = (zmq_server, http_server, openpi_server)
    service.addresses += [each.endpoint for each in servers]
    ports = [int(each.endpoint.rpartition(":")[2]) for each in servers]
    thread = threading.Thread(target=worker.run)
    for each in (thread, *servers):
        each.start()
    try:
        yield Served(puppet, worker, service, *ports, zmq_server, openpi_server)
    finally:
        puppet.go.set()
        worker.stop()
        thread.join(10)
        for server in servers:
            server.close()
        assert not thread.is_alive()


def wait_until(true: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)


def at_once(drive: Callable[[int], None], count: int) -> None:
    """Call ``drive(0)`` to ``drive(count - 1)``, each in a thread of its own, and wait for all."""
    threads = [threading.Thread(target=drive, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
