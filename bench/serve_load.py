#!/usr/bin/env python3
"""Load, faults and hostile messages against a real server, measured and written as one JSON record.

    python bench/serve_load.py      the tiny model, a minute of load, 10,000 hostile messages
    python bench/serve_load.py --server="--model_path synthetic:full --use_torch_tensorrt --precision fp16"
    python bench/serve_load.py --seconds 3 --hostile 100    a rehearsal

Four parts, against `gr00t-trt serve` in a process of its own, over the loopback:

    overhead   one client: round trip less the time that the policy itself took in the same request
    load       many clients at once; each reply must belong to its request
    hostile    messages of `hostile.py` over ZeroMQ and HTTP, and half-open connections, while a good client goes on
    restart    kill -9 while the clients run, and the same command again: do they recover by themselves?

A reply is told from another by a mark: the server's policy hands the first state value back beside its actions.
Exit status: 0 done, 1 a reply was lost or mixed up, or a hostile message did harm; 2 bad input.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import hostile
import httpx
import numpy as np
import psutil
import zmq
from rich.console import Console
from rich.table import Table

from gr00t_trt.benchmark import Samples
from gr00t_trt.command import Parser, parse_flags, run_program
from gr00t_trt.environment import environment, git_state
from gr00t_trt.errors import ServiceError
from gr00t_trt.progress import progress
from gr00t_trt.records import dumps
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.wire import decode

ROOT = Path(__file__).resolve().parents[1]
MARK = "action.mark"
READY_S = 3600.0
ENEMIES = 4
HALF_OPEN = 100


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="serve_load.py", description=__doc__)
    p.add_argument("--seconds", type=float, default=60.0, help="of load, and at least of the restart [%(default)g]")
    p.add_argument("--clients", type=int, default=8, metavar="N", help="at once [%(default)s]")
    p.add_argument("--hostile", type=int, default=10_000, metavar="N", help="hostile messages [%(default)s]")
    p.add_argument("--samples", type=int, default=200, metavar="N", help="requests for the overhead [%(default)s]")
    p.add_argument("--server", default="--model_path synthetic", help="flags of the server [%(default)s]")
    p.add_argument("--record", metavar="PATH", help="where the record goes [stdout]")
    return p


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    flags = shlex.split(args.server)
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "serve_load",
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["bench/serve_load.py", *argv]),
        "git": git_state(ROOT),
        "environment": environment(),
        "server_flags": flags,
    }
    with progress(console) as steps, ExitStack() as stack:
        steps.step(f"starting the server: {args.server}")
        server = stack.enter_context(running(flags, 0, 0))
        with RobotInferenceClient("127.0.0.1", server.port) as client:
            status = client.status()
        record["served_by"] = status["submodules"]
        record["device"] = status["device"]
        record["startup"] = {"first_s": server.ready_s, "again_s": None}
        subject = Subject(server.port, status["observation"])
        steps.step(f"overhead: {args.samples} requests of one client")
        record["overhead"] = overhead(subject, args.samples)
        steps.step(f"load: {args.clients} clients for {args.seconds:g} s")
        record["load"] = load(subject, server, args.clients, args.seconds)
        steps.step(f"hostile: {args.hostile} messages")
        record["hostile"] = under_fire(subject, server, args.hostile)
        steps.step("kill -9 and restart while clients run")
        record["restart"] = restart(subject, server, flags, args.clients, args.seconds, stack)
        record["startup"]["again_s"] = record["restart"]["ready_again_s"]
    show(record, console)
    if args.record:
        Path(args.record).write_text(dumps(record) + "\n", encoding="utf-8")
    print(args.record or dumps(record))
    return 1 if found_wrong(record) else 0


class Server:
    """A server's process; `ready_s` is the time from its start to its last `ready`."""

    def __init__(self, flags: Sequence[str], port: int, http_port: int):
        own = [sys.executable, str(Path(__file__).resolve()), "serve", "--server", *flags]
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
    """The real program, whose policy hands the first state value of every request back beside its actions."""
    from gr00t_trt.policy import Gr00tPolicy
    from gr00t_trt.serve.__main__ import main as serve

    plain = Gr00tPolicy.get_action

    def get_action(self: Gr00tPolicy, observation: Any, **settings: Any) -> Any:
        action = plain(self, observation, **settings)
        first = self.modality_config["state"].modality_keys[0]
        action[MARK] = np.asarray(observation[first], np.float64)[..., 0]
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

    def ask(self, client: RobotInferenceClient) -> bool:
        """One request; whether the reply belongs to it. Raises: ServiceError without one."""
        with self._lock:
            number = float(next(self._numbers))
        state = self.observation[self._key].copy()
        state[..., 0] = number
        action = client.get_action({**self.observation, self._key: state})
        return bool((action.pop(MARK) == number).all()) and all(np.isfinite(value).all() for value in action.values())


class Driver(threading.Thread):
    """A client that asks again and again until it is told to stop."""

    def __init__(self, subject: Subject, timeout_ms: int = 60_000):
        super().__init__(daemon=True)
        self._subject, self._timeout_ms = subject, timeout_ms
        self.stop = threading.Event()
        self.right: list[tuple[float, float]] = []  # (when, milliseconds)
        self.mixed_up, self.errors = 0, []

    def run(self) -> None:
        with RobotInferenceClient("127.0.0.1", self._subject.port, self._timeout_ms) as client:
            while not self.stop.is_set():
                began = time.perf_counter()
                try:
                    if self._subject.ask(client):
                        self.right.append((time.monotonic(), (time.perf_counter() - began) * 1e3))
                    else:
                        self.mixed_up += 1
                except ServiceError as error:
                    self.errors.append(str(error).splitlines()[0])


@contextmanager
def driving(subject: Subject, count: int) -> Iterator[list[Driver]]:
    drivers = [Driver(subject) for _ in range(count)]
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


def overhead(subject: Subject, count: int) -> dict[str, Any]:
    round_trips, policies, beyond = [], [], []
    with RobotInferenceClient("127.0.0.1", subject.port, timings=True) as client:
        for number in range(count + 5):
            began = time.perf_counter()
            subject.ask(client)
            took = (time.perf_counter() - began) * 1e3
            timings = client.last_timings_ms
            policy = timings["total"] - timings["queue"]
            if number >= 5:
                round_trips.append(took)
                policies.append(policy)
                beyond.append(took - policy)
    shapes = {key: list(np.shape(value)) for key, value in subject.observation.items() if key.startswith("video.")}
    return {
        "views": shapes,
        "overhead_ms": Samples(tuple(beyond), warmup=5).to_dict(),
        "policy_ms": Samples(tuple(policies), warmup=5).to_dict(),
        "round_trip_ms": Samples(tuple(round_trips), warmup=5).to_dict(),
    }


def load(subject: Subject, server: Server, clients: int, seconds: float) -> dict[str, Any]:
    memory = [server.usage.memory_info().rss]
    with driving(subject, clients) as drivers:
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            time.sleep(0.5)
            memory.append(server.usage.memory_info().rss)
    took = time.monotonic() - began
    result = tally(drivers)
    latencies = tuple(ms for driver in drivers for _, ms in driver.right)
    return {
        **result,
        "seconds": took,
        "per_second": result["answered"] / took,
        "fewest_of_a_client": min(len(driver.right) for driver in drivers),
        "most_of_a_client": max(len(driver.right) for driver in drivers),
        "round_trip_ms": Samples(latencies).to_dict() if latencies else None,
        # The first quarter fills caches; steady is what the rest shows.
        "rss_bytes": {"start": memory[0], "quarter": memory[len(memory) // 4], "end": memory[-1]},
    }


def under_fire(subject: Subject, server: Server, count: int) -> dict[str, Any]:
    before = {"rss_bytes": server.usage.memory_info().rss, "open_files": server.usage.num_fds()}
    answered: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    half_open = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(HALF_OPEN)]
    half_open += [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(HALF_OPEN)]
    for number, each in enumerate(half_open):
        each.sendall((b"", b"\xff" + b"\x00" * 8 + b"\x7f\x03", b"POST /act HTTP/1.1\r\n", b"\x00" * 64)[number % 4])
    of_http = count // 10
    with driving(subject, 1) as good:
        shares = [(count - of_http) // ENEMIES + (i < (count - of_http) % ENEMIES) for i in range(ENEMIES)]
        enemies = [
            threading.Thread(target=_fire, args=(subject, share, seed, answered, wrong))
            for seed, share in enumerate(shares)
        ]
        enemies.append(threading.Thread(target=_fire_http, args=(subject, server.http_port, of_http, answered, wrong)))
        for enemy in enemies:
            enemy.start()
        for enemy in enemies:
            enemy.join()
    for each in half_open:
        each.close()
    time.sleep(1.0)  # closed connections take a moment to be noticed
    after = {"rss_bytes": server.usage.memory_info().rss, "open_files": server.usage.num_fds()}
    return {
        "messages": sum(answered.values()),
        "of_them_http": of_http,
        "half_open_connections": len(half_open),
        "by_kind": dict(sorted(answered.items())),
        "unanswered_or_wrong": dict(wrong),
        "good_client": tally(good),
        "before": before,
        "after": after,
        "alive": server.process.poll() is None,
    }


def _fire(subject: Subject, count: int, seed: int, answered: Counter[str], wrong: Counter[str]) -> None:
    with zmq.Context() as context, context.socket(zmq.DEALER) as enemy:
        enemy.setsockopt(zmq.LINGER, 0)
        enemy.setsockopt(zmq.RCVTIMEO, 60_000)
        enemy.connect(f"tcp://127.0.0.1:{subject.port}")
        for kind, raw in hostile.messages(count, subject.observation, seed=seed):
            enemy.send_multipart([b"", raw])
            try:
                reply = decode(enemy.recv_multipart()[1])
            except zmq.Again:
                wrong[f"{kind}: no answer"] += 1
                continue
            if kind != "one byte changed" and list(reply) != ["error"] and not _only_odd(kind, raw):
                wrong[f"{kind}: answered"] += 1
            answered[kind] += 1


def _only_odd(kind: str, raw: bytes) -> bool:
    """Whether a message of wrong types is one that a policy may still answer."""
    return kind == "wrong types" and b"get_action" in raw and b"annotation.other" in raw


def _fire_http(subject: Subject, port: int, count: int, answered: Counter[str], wrong: Counter[str]) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, verify=False) as client:
        for kind, raw in hostile.bodies(count, subject.observation, seed=99):
            try:
                status = client.post("/act", content=raw).status_code
            except httpx.TransportError as error:
                wrong[f"{kind}: {type(error).__name__}"] += 1
                continue
            if status == 200 and kind in hostile.REFUSED and kind != "unknown endpoint":  # HTTP has none
                wrong[f"{kind}: answered"] += 1
            answered[kind] += 1


def restart(
    subject: Subject, server: Server, flags: Sequence[str], clients: int, seconds: float, stack: ExitStack
) -> dict[str, Any]:
    with driving(subject, clients) as drivers:
        time.sleep(min(2.0, seconds))
        server.process.kill()
        server.process.wait()
        killed = time.monotonic()
        again = stack.enter_context(running(flags, server.port, server.http_port))
        time.sleep(min(5.0, seconds))
    recovery = [next((when - killed for when, _ in d.right if when > killed), None) for d in drivers]
    return {
        **tally(drivers),
        "signal": "SIGKILL",
        "ready_again_s": again.ready_s,
        "recovered": sum(each is not None for each in recovery),
        "recovery_s": recovery,
    }


def found_wrong(record: dict[str, Any]) -> bool:
    good = record["hostile"]["good_client"]
    return bool(
        record["load"]["lost"]
        or record["load"]["mixed_up"]
        or good["lost"]
        or good["mixed_up"]
        or record["hostile"]["unanswered_or_wrong"]
        or not record["hostile"]["alive"]
        or record["restart"]["mixed_up"]
        or record["restart"]["recovered"] < record["restart"]["clients"]
    )


def show(record: dict[str, Any], console: Console) -> None:
    table = Table(title="gr00t-trt serve under load", title_justify="left", title_style="")
    for head in ("", "what was seen"):
        table.add_column(head)
    cost, load_, fire, again = (record[key] for key in ("overhead", "load", "hostile", "restart"))
    trip, megabyte = load_["round_trip_ms"] or {}, 1e6
    rows = {
        "start-up": f"{record['startup']['first_s']:.1f} s to ready, {record['startup']['again_s']:.1f} s again",
        "overhead": f"p50 {cost['overhead_ms']['p50']:.2f} ms, p99 {cost['overhead_ms']['p99']:.2f} ms, beside "
        f"{cost['policy_ms']['p50']:.1f} ms of the policy",
        "load": f"{load_['clients']} clients, {load_['answered']} answers in {load_['seconds']:.0f} s, "
        f"{load_['lost']} lost, {load_['mixed_up']} mixed up, p50 {trip.get('p50', 0):.0f} ms; memory "
        f"{load_['rss_bytes']['quarter'] / megabyte:.0f} to {load_['rss_bytes']['end'] / megabyte:.0f} MB",
        "hostile": f"{fire['messages']} messages, {sum(fire['unanswered_or_wrong'].values())} unanswered or wrong; "
        f"good client: {fire['good_client']['answered']} answers, {fire['good_client']['lost']} lost, "
        f"{fire['good_client']['mixed_up']} mixed up; memory {fire['before']['rss_bytes'] / megabyte:.0f} to "
        f"{fire['after']['rss_bytes'] / megabyte:.0f} MB",
        "kill -9": f"{again['recovered']} of {again['clients']} clients recovered, {again['lost']} requests lost",
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)


if __name__ == "__main__":
    sys.exit(marked_server(sys.argv[2:]) if sys.argv[1:2] == ["serve"] else main())
