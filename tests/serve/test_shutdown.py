"""A signal ends a server in words and in time, also in the middle of a request that would take minutes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient

ROOT = Path(__file__).resolve().parents[2]

SERVER = """
import hashlib, sys
from puppet import CONFIG, LIMITS, Puppet
from gr00t_trt.serve.http_server import HttpServer
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.service import Service
from gr00t_trt.serve.shutdown import ended_by_signals
from gr00t_trt.serve.worker import PolicyWorker
from gr00t_trt.serve.zmq_server import ZmqServer

class Slow(Puppet):
    def _think(self, observation):
        if observation["annotation.task"] == ["slow"]:
            print("thinking", flush=True)
            hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # one call of minutes that no signal interrupts
        return super()._think(observation)

policy, metrics = Slow(), Metrics()
worker = PolicyWorker(policy, metrics, limits=LIMITS)
service = Service(worker, metrics, {"submodules": {}}, CONFIG, limits=LIMITS)
bounds = {"max_request_bytes": 2**20, "request_timeout_s": 15.0}
servers = [ZmqServer(service, "127.0.0.1", 0, **bounds), HttpServer(service, "127.0.0.1", 0, **bounds)]
for server in servers:
    server.start()
def close():
    for server in servers:
        server.close()
with ended_by_signals(worker, close, print):
    for server in servers:
        print(server.endpoint, flush=True)
    worker.run()
close()
print("stopped")
"""


@pytest.fixture
def server() -> Any:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "serve")])
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(kind: Any, endpoint: str, text: str, answers: list[str]) -> threading.Thread:
    from puppet import observation

    def run() -> None:
        with kind("127.0.0.1", int(endpoint.rpartition(":")[2]), timeout_ms=20_000) as client:
            try:
                client.get_action(observation(1.0, text))
                answers.append("answered")
            except ServiceError as error:
                answers.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("slow", [True, False])
def test_everybody_is_told_within_three_seconds(server: subprocess.Popen[str], slow: bool) -> None:
    zmq_endpoint, http_endpoint = said(server), said(server)
    answers: list[str] = []
    asking = []
    if slow:
        asking.append(ask(RobotInferenceClient, zmq_endpoint, "slow", answers))
        assert said(server) == "thinking"
        asking += [ask(RobotInferenceClient, zmq_endpoint, "go", answers) for _ in range(2)]
        asking += [ask(HttpInferenceClient, http_endpoint, "go", answers)]
        with HttpInferenceClient("127.0.0.1", int(http_endpoint.rpartition(":")[2])) as client:
            while client.status()["queue_length"] < 3:
                time.sleep(0.01)
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    out, _ = server.communicate(timeout=10)
    assert time.monotonic() - began < 3
    for each in asking:
        each.join(5)
    assert answers == ["Server error: not answered: the server is shutting down"] * len(asking)
    assert server.returncode == (130 if slow else 0)
    assert out == ("ended in the middle of a request, which was refused\n" if slow else "stopped\n")


def test_a_second_signal_does_not_wait(server: subprocess.Popen[str]) -> None:
    endpoint, _ = said(server), said(server)
    answers: list[str] = []
    asking = ask(RobotInferenceClient, endpoint, "slow", answers)
    assert said(server) == "thinking"
    began = time.monotonic()
    server.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two signals at once are one
    server.send_signal(signal.SIGINT)
    assert server.wait(10) == 130
    assert time.monotonic() - began < 1.2
    asking.join(5)
    assert answers == ["Server error: not answered: the server is shutting down"]
