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
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.service import Service
from gr00t_trt.serve.worker import PolicyWorker
from gr00t_trt.serve.zmq_server import ZmqServer

CONFIG = {
    "video": ModalityConfig([0], ["video.webcam"]),
    "state": ModalityConfig([0], ["state.arm"]),
    "action": ModalityConfig(list(range(16)), ["action.arm"]),
    "language": ModalityConfig([0], ["annotation.task"]),
}


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

    def get_action(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        return self.stages["think"](observation)

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


def observation(value: float = 0.0, text: str = "go") -> dict[str, Any]:
    return {
        "video.webcam": np.zeros((1, 8, 8, 3), np.uint8),
        "state.arm": np.full((1, 5), value),
        "annotation.task": [text],
    }


@contextmanager
def serving(
    *,
    api_token: str | None = None,
    max_request_bytes: int = 2**20,
    port: int = 0,
    may_kill: bool = True,
    **settings: Any,
) -> Iterator[Served]:
    puppet, metrics = Puppet(), Metrics()
    worker = PolicyWorker(puppet, metrics, tables=(puppet.stages,), batcher=Batcher(CONFIG, len), **settings)
    description = {
        "submodules": {"dit_model": "eager fp32"},
        "observation": {"video.webcam": {"dtype": "uint8", "shape": [1, 8, 8, 3]}},
    }
    service = Service(worker, metrics, description, CONFIG, api_token=api_token, may_kill=may_kill)
    zmq_server = ZmqServer(service, "127.0.0.1", port, max_request_bytes=max_request_bytes)
    http_server = HttpServer(service, "127.0.0.1", 0, max_request_bytes=max_request_bytes, request_timeout_s=1.0)
    thread = threading.Thread(target=worker.run)
    for each in (thread, zmq_server, http_server):
        each.start()
    try:
        yield Served(
            puppet,
            worker,
            service,
            int(zmq_server.endpoint.rpartition(":")[2]),
            int(http_server.endpoint.rpartition(":")[2]),
        )
    finally:
        puppet.go.set()
        worker.stop()
        thread.join(10)
        zmq_server.close()
        http_server.close()
        assert not thread.is_alive()


def wait_until(true: Any, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
