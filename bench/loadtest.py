"""A real server in a process of its own, and clients that know which reply belongs to which request.

Run as a program it is `gr00t-trt serve` with one difference: beside its actions the policy hands back the first state
value of every request, and how long it took.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from gr00t_trt.deploy.bundle.starts import peak_bytes
from gr00t_trt.errors import ServiceError
from gr00t_trt.record.samples import Samples
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.client import BaseInferenceClient, RobotInferenceClient

MARK = "action.mark"
"""float64 [T, 2], or [B, T, 2]: the first state value, and the milliseconds of the policy's `get_action`."""


class Server:
    """A server's process; `ready_s` is the time from its start to its last `ready`, `peak_bytes` its memory by then."""

    def __init__(self, flags: Sequence[str], port: int, http_port: int):
        own = [sys.executable, str(Path(__file__).resolve()), "--server", *flags]
        began = time.monotonic()
        self.process = subprocess.Popen(
            [*own, "--port", str(port), "--http_port", str(http_port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.words: list[str] = []
        # Read all along: a full pipe would stop the server.
        threading.Thread(target=self._listen, daemon=True).start()
        ports = [self._ready_line() for _ in range(2)]
        self.port, self.http_port = (int(line.rpartition(":")[2]) for line in ports)
        self.ready_s = time.monotonic() - began
        self.peak_bytes = peak_bytes(self.process.pid)
        self.usage = psutil.Process(self.process.pid)

    def _listen(self) -> None:
        for line in self.process.stderr or ():
            self.words.append(line)

    def _ready_line(self) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line.startswith("ready "):
            self.process.wait(10)
            raise ServiceError(f"the server did not start: {''.join(self.words)[-2000:]}")
        return line.strip()


@contextmanager
def running(flags: Sequence[str], port: int, http_port: int) -> Iterator[Server]:
    server = Server(flags, port, http_port)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
        server.process.wait(30)


def marked_server(argv: Sequence[str]) -> int:
    """The real program, whose policy gives `MARK` beside its actions."""
    from gr00t_trt.serve.program import main as serve
    from gr00t_trt.serve.program import wait_briefly

    wait_briefly()  # as the program does, before PyTorch is there
    from gr00t_trt.policy.policy import Gr00tPolicy

    plain = Gr00tPolicy.get_action

    def get_action(self: Gr00tPolicy, observation: Any, **settings: Any) -> Any:
        began = time.perf_counter()
        action = plain(self, observation, **settings)
        first = np.asarray(observation[self.modality_config["state"].modality_keys[0]])[..., 0]
        action[MARK] = mark = np.empty((*first.shape, 2))
        mark[..., 0] = first
        mark[..., 1] = (time.perf_counter() - began) * 1e3  # last: the mark is no overhead of the service
        return action

    Gr00tPolicy.get_action = get_action  # type: ignore[method-assign]
    return serve(argv)


class Subject:
    """What is asked: an observation with a number in it that no other request has."""

    def __init__(self, port: int, wanted: dict[str, Any]):
        self.port = port
        self.observation = example(wanted)
        self._key = next(key for key in self.observation if key.startswith("state."))
        self._numbers = iter(range(1, 10**9))
        self._lock = threading.Lock()

    def request(self) -> dict[str, Any]:
        """The observation with the next number in it."""
        with self._lock:
            number = float(next(self._numbers))
        state = self.observation[self._key].copy()
        state[..., 0] = number
        return {**self.observation, self._key: state}

    def belong(self, request: dict[str, Any], action: dict[str, np.ndarray]) -> bool:
        """Whether actions are the answer to a request, and numbers that a robot can follow."""
        numbers = action[MARK][..., 0]
        return bool((numbers == request[self._key][..., 0]).all()) and all(
            np.isfinite(value).all() for value in action.values()
        )

    def ask(self, client: BaseInferenceClient) -> bool:
        """One request; whether the reply belongs to it. Raises: ServiceError without one."""
        request = self.request()
        return self.belong(request, client.get_action(request))


def policy_ms(action: dict[str, np.ndarray]) -> float:
    """How long the policy took for these actions, by its own clock: `get_action` and nothing round it."""
    return float(action[MARK].flat[1])


class Driver(threading.Thread):
    """A client that asks again and again until it is told to stop.

    Args:
        connect: Makes its client; one over ZeroMQ that waits for a minute where it is left out.
        ask: Asks once, and says whether the reply belongs to the request; `Subject.ask` where it is left out.
        pause_s: Between an answer and the next request.
    """

    def __init__(
        self,
        subject: Subject,
        connect: Callable[[], BaseInferenceClient] | None = None,
        ask: Callable[[BaseInferenceClient], bool] | None = None,
        pause_s: float = 0.0,
    ):
        super().__init__(daemon=True)
        self._connect = connect or (lambda: RobotInferenceClient("127.0.0.1", subject.port, 60_000))
        self._ask, self._pause_s = ask or subject.ask, pause_s
        self.stop = threading.Event()
        self.right: list[tuple[float, float]] = []  # (when, milliseconds)
        self.mixed_up, self.errors = 0, []

    def run(self) -> None:
        with self._connect() as client:
            while not self.stop.wait(self._pause_s):
                began = time.perf_counter()
                try:
                    if self._ask(client):
                        self.right.append((time.monotonic(), (time.perf_counter() - began) * 1e3))
                    else:
                        self.mixed_up += 1
                except ServiceError as error:
                    self.errors.append(str(error).splitlines()[0])


@contextmanager
def driving(subject: Subject, count: int) -> Iterator[list[Driver]]:
    with driven([Driver(subject) for _ in range(count)]) as drivers:
        yield drivers


@contextmanager
def driven(drivers: list[Driver]) -> Iterator[list[Driver]]:
    """Run these drivers while the block runs."""
    for driver in drivers:
        driver.start()
    try:
        yield drivers
    finally:
        for driver in drivers:
            driver.stop.set()
        for driver in drivers:
            driver.join(90)


def tally(drivers: Sequence[Driver]) -> dict[str, Any]:
    return {
        "clients": len(drivers),
        "answered": sum(len(driver.right) for driver in drivers),
        "lost": sum(len(driver.errors) for driver in drivers),
        "mixed_up": sum(driver.mixed_up for driver in drivers),
        "errors": dict(Counter(error for driver in drivers for error in driver.errors)),
    }


def summed_up(took_ms: Sequence[float]) -> dict[str, Any] | None:
    """Latencies without the single ones; None for none."""
    known = Samples(tuple(took_ms)).to_dict() if took_ms else {}
    return {name: value for name, value in known.items() if name != "samples"} or None


if __name__ == "__main__":
    sys.exit(marked_server(sys.argv[1:]))
