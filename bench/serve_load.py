#!/usr/bin/env python3
"""Load, faults and hostile messages against a real server, measured and written as one JSON record.

    python bench/serve_load.py      the tiny model, a minute of load, 10,000 hostile messages
    python bench/serve_load.py --server="--model_path synthetic:full --use_torch_tensorrt --precision fp16"
    python bench/serve_load.py --seconds 3 --hostile 100    a rehearsal

Four parts, against `gr00t-trt serve` in a process of its own, over the loopback:

    overhead   one client: round trip less the time that the policy itself took in the same request, and its parts
    load       many clients at once; each reply must belong to its request
    hostile    messages of `hostile.py` over ZeroMQ and HTTP, and half-open connections, while a good client goes on
    restart    kill -9 while the clients run, and the same command again: do they recover by themselves?

With --robots N,N also many robots: latency and throughput for each number of them, with --max_batch 1 and 8.
With --attacks S also each attack of `attacks.py` for S seconds: how much slower is a good client beside it, and is
/health answered?
With --soak S for so long, at --max_batch 1 and 8, good clients that check every answer beside hostile ones: is anything
lost or wrong, and does the memory stop growing?

A reply is told from another by a mark: the server's policy hands the first state value back beside its actions.

The server starts twice. Both starts share an engine cache that is empty before, unless --server names one: where
engines are compiled, the first start builds them and the second finds them.
Exit status: 0 done, 1 a reply was lost or mixed up, or a hostile message or an attack did harm; 2 bad input.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import attacks
import hostile
import numpy as np
import robots
import service_table
import soak
from loadtest import Server, Subject, driving, policy_ms, running, tally
from rich.console import Console
from rich.table import Table

from gr00t_trt.common.command import Parser, parse_flags, run_program
from gr00t_trt.common.progress import progress
from gr00t_trt.record.environment import environment, git_state
from gr00t_trt.record.files import dumps, prepare_record, write_record
from gr00t_trt.record.samples import Samples
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.waiting import QUEUE
from gr00t_trt.serve.wire import decode, encode

ROOT = Path(__file__).resolve().parents[1]
WARMUP = 5
"""Requests before those that are timed."""
ENEMIES = 4
HALF_OPEN = 100
SLOWER, HEALTH_MS = 3.0, 100.0
"""What an attack may cost: so many times a good client's p99, and the longest wait for /health."""


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def parser() -> argparse.ArgumentParser:
    p = Parser(prog="serve_load.py", description=__doc__)
    p.add_argument("--seconds", type=float, default=60.0, help="of load, and at least of the restart [%(default)g]")
    p.add_argument("--clients", type=int, default=8, metavar="N", help="at once [%(default)s]")
    p.add_argument("--hostile", type=int, default=10_000, metavar="N", help="hostile messages [%(default)s]")
    p.add_argument("--attacks", type=float, metavar="S", help="seconds of each attack [none]")
    p.add_argument("--robots", type=_counts, metavar="N,N", help="numbers of robots, such as 1,2,4,8,16,32 [none]")
    p.add_argument("--robots_s", type=float, default=5.0, metavar="S", help="seconds of each number [%(default)g]")
    p.add_argument("--soak", type=float, metavar="S", help="seconds of each of two servers, such as 1200 [none]")
    p.add_argument("--samples", type=int, default=200, metavar="N", help="requests for the overhead [%(default)s]")
    p.add_argument("--server", default="--model_path synthetic", help="flags of the server [%(default)s]")
    p.add_argument("--record", metavar="PATH", help="where the record goes [stdout]")
    return p


def _counts(text: str) -> list[int]:
    counts = [int(each) for each in text.split(",")]
    if min(counts) < 1:
        raise ValueError
    return counts


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    asked = shlex.split(args.server)
    if args.record:
        prepare_record(args.record)
    record: dict[str, Any] = {
        "schema": 1,
        "kind": "serve_load",
        "created_utc": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": shlex.join(["bench/serve_load.py", *argv]),
        "git": git_state(ROOT),
        "environment": environment(),
        "server_flags": asked,
    }
    with progress(console) as steps, ExitStack() as stack:
        flags = [*asked, *own_cache(asked, stack)]
        steps.step(f"starting the server: {args.server}")
        server = stack.enter_context(running(flags, 0, 0))
        with RobotInferenceClient("127.0.0.1", server.port) as client:
            status = client.status()
        record["backends"] = status["submodules"]
        record["device"] = status["device"]
        record["startup"] = {
            "first_s": server.ready_s, "first_engines": status["engines"], "peak_bytes": server.peak_bytes,
        }  # fmt: skip
        subject = Subject(server.port, status["observation"])
        parts: dict[str, tuple[str, Callable[[], Any]]] = {
            "overhead": (f"{args.samples} requests of one client", lambda: overhead(subject, args.samples)),
            "load": (
                f"{args.clients} clients for {args.seconds:g} s",
                lambda: load(subject, server, args.clients, args.seconds),
            ),
            "hostile": (f"{args.hostile} messages", lambda: under_fire(subject, server, args.hostile)),
            "attacks": ("one after the other", lambda: attacked(subject, server, args.attacks)),
            "robots": ("together and one by one", lambda: robots.many(flags, args.robots, args.robots_s)),
            "soak": (f"{args.soak} s of each of two servers", lambda: soak.soaked(flags, args.soak)),
            "restart": (
                "kill -9 and restart while clients run",
                lambda: restart(subject, server, flags, args.clients, args.seconds, stack),
            ),
        }
        for name in ("attacks", "robots", "soak"):
            if not getattr(args, name):
                del parts[name]
        for name, (what, part) in parts.items():
            steps.step(f"{name}: {what}")
            record[name] = part()
            if args.record:  # after each: a machine that goes away has given what it had
                write_record(record, args.record)
        with RobotInferenceClient("127.0.0.1", server.port) as client:
            again = client.status()["engines"]
        record["startup"].update(again_s=record["restart"]["ready_again_s"], again_engines=again)
    show(record, console)
    if args.record:
        write_record(record, args.record)
    print(args.record or dumps(record))
    return 1 if found_wrong(record) else 0


def own_cache(flags: Sequence[str], stack: ExitStack) -> list[str]:
    """The flags that give a server a new engine cache, which goes with `stack`; none where it is given one."""
    if any(flag.replace("-", "_").startswith("__engine_cache") for flag in flags):
        return []
    return ["--engine_cache", stack.enter_context(TemporaryDirectory(prefix="gr00t_trt-engines-"))]


def overhead(subject: Subject, count: int) -> dict[str, Any]:
    """What the service costs a request: the round trip of `get_action` as its caller sees it, from an observation to
    actions as arrays, less the time inside the policy's `get_action`; and where that goes."""
    round_trips, policies, beyond = [], [], []
    with RobotInferenceClient("127.0.0.1", subject.port) as client:
        for number in range(count + WARMUP):
            request = subject.request()
            began = time.perf_counter()
            action = client.get_action(request)
            took = (time.perf_counter() - began) * 1e3
            policy = policy_ms(action)
            if number >= WARMUP:
                round_trips.append(took)
                policies.append(policy)
                beyond.append(took - policy)
        waited = client.status()["timings_ms"][QUEUE]["p50"]
        pause_s = Samples(tuple(policies)).p50 / 1e3
        message, reply = {"endpoint": "get_action", "data": request}, encode(action)
        encoding = timed_after_pauses(lambda: encode(message), pause_s, count)
        decoding = timed_after_pauses(lambda: decode(reply), pause_s, count)
        ping = timed_after_pauses(client.ping, pause_s, count)
    cost = Samples(tuple(beyond), warmup=WARMUP)
    parts = {"client_encoding": encoding.p50, "server_queue": waited, "client_decoding": decoding.p50}
    shapes = {key: list(np.shape(value)) for key, value in subject.observation.items() if key.startswith("video.")}
    return {
        "views": shapes,
        "overhead_ms": cost.to_dict(),
        "policy_ms": Samples(tuple(policies), warmup=WARMUP).to_dict(),
        "round_trip_ms": Samples(tuple(round_trips), warmup=WARMUP).to_dict(),
        # Medians. The rest is the transport, the threads that it wakes, and the server's reading and writing.
        "split_ms": {**parts, "rest": cost.p50 - sum(parts.values())},
        "ping_ms": ping.to_dict(),
    }


def timed_after_pauses(call: Callable[[], object], pause_s: float, count: int) -> Samples:
    """Times of `call`, each after a pause, as between two requests of a client: threads sleep and caches cool."""
    took = []
    for _ in range(count + WARMUP):
        time.sleep(pause_s)
        began = time.perf_counter()
        call()
        took.append((time.perf_counter() - began) * 1e3)
    return Samples(tuple(took[WARMUP:]), warmup=WARMUP)


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
    fire = hostile.Fire(subject.observation)
    half_open = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(HALF_OPEN)]
    half_open += [socket.create_connection(("127.0.0.1", server.http_port)) for _ in range(HALF_OPEN)]
    for number, each in enumerate(half_open):
        each.sendall((b"", b"\xff" + b"\x00" * 8 + b"\x7f\x03", b"POST /act HTTP/1.1\r\n", b"\x00" * 64)[number % 4])
    of_http = count // 10
    with driving(subject, 1) as good:
        shares = [(count - of_http) // ENEMIES + (i < (count - of_http) % ENEMIES) for i in range(ENEMIES)]
        shots = [(fire.over_zmq, (server.port, share, seed)) for seed, share in enumerate(shares)]
        shots.append((fire.over_http, (server.http_port, of_http, 99)))
        enemies = [threading.Thread(target=send, args=args) for send, args in shots]
        for enemy in enemies:
            enemy.start()
        for enemy in enemies:
            enemy.join()
    for each in half_open:
        each.close()
    time.sleep(1.0)  # closed connections take a moment to be noticed
    after = {"rss_bytes": server.usage.memory_info().rss, "open_files": server.usage.num_fds()}
    return {
        "messages": sum(fire.answered.values()),
        "of_them_http": of_http,
        "half_open_connections": len(half_open),
        "by_kind": dict(sorted(fire.answered.items())),
        "unanswered_or_wrong": dict(fire.wrong),
        "good_client": tally(good),
        "before": before,
        "after": after,
        "alive": server.process.poll() is None,
    }


def attacked(subject: Subject, server: Server, seconds: float) -> dict[str, Any]:
    """Attack -> a good client's p99 beside it and just before, its requests, the slowest /health, the memory."""
    out: dict[str, Any] = {}
    for name in attacks.ATTACKS:
        _, _, alone = _beside(subject, server, seconds)
        line = [sys.executable, attacks.__file__, name, str(server.port), str(server.http_port), str(seconds + 2)]
        enemy = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            enemy.stdout.readline()  # type: ignore[union-attr]
            good, health_ms, latency = _beside(subject, server, seconds)
        finally:
            enemy.kill()
            enemy.communicate()
        times_alone = latency["p99_ms"] / alone["p99_ms"]
        before = {"p99_alone_ms": alone["p99_ms"], "times_alone": times_alone}
        out[name] = {**good, **latency, **before, "slowest_health_ms": health_ms}
    return out


def _beside(subject: Subject, server: Server, seconds: float) -> tuple[dict[str, Any], float, dict[str, Any]]:
    with driving(subject, 1) as drivers:
        health_ms = attacks.slowest_health_ms(server.http_port, seconds)
    took = [ms for _, ms in drivers[0].right] or [float("inf")]
    latency = {"p50_ms": float(np.quantile(took, 0.5)), "p99_ms": float(np.quantile(took, 0.99))}
    return tally(drivers), health_ms, {**latency, "rss_bytes": server.usage.memory_info().rss}


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
        or any(row["lost"] or row["mixed_up"] for row in record.get("robots", ()))
        or any(row["lost"] or row["mixed_up"] or row["unanswered_or_wrong"] for row in record.get("soak", ()))
        or any(map(_did_harm, record.get("attacks", {}).values()))
        or record["restart"]["mixed_up"]
        or record["restart"]["recovered"] < record["restart"]["clients"]
    )


def _did_harm(attack: dict[str, Any]) -> bool:
    wrong = attack["lost"] or attack["mixed_up"]
    return bool(wrong or attack["times_alone"] > SLOWER or attack["slowest_health_ms"] > HEALTH_MS)


def show(record: dict[str, Any], console: Console) -> None:
    table = Table(title="gr00t-trt serve under load", title_justify="left", title_style="")
    for head in ("", "what was seen"):
        table.add_column(head)
    for name, text in service_table.rows(record).items():
        table.add_row(name, text)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
