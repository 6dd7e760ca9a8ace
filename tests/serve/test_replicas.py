"""Two policies on Ray Serve behind one server: the same answers as one process, and none lost when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from puppet import repeated
from trained_pair import write_pair

from gr00t_trt.errors import ServiceError, UsageError
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.deploy_weights.program import main
from gr00t_trt.serve.flags import parse

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def server(*flags: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    line = ["--server", "--model_path", "synthetic", "--device", "cpu", "--port", "0", *flags]
    process = subprocess.Popen(
        [sys.executable, "-m", "gr00t_trt", "serve", *line],
        stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        ready = process.stdout.readline()
        assert ready.startswith("ready tcp://")
        yield process, int(ready.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


def answers(port: int, observations: list[dict[str, Any]]) -> list[dict[str, np.ndarray]]:
    with RobotInferenceClient("127.0.0.1", port) as client:
        return [client.get_action(each, seed=seed) for seed, each in enumerate(observations)]


def test_an_address_without_replicas_is_a_mistake() -> None:
    with pytest.raises(UsageError, match="say how many with --replicas"):
        parse(["--server", "--ray_address", "auto"])


@pytest.mark.ray
def test_two_replicas_answer_like_one_process_and_lose_nothing_when_one_is_killed() -> None:
    pytest.importorskip("ray", reason="needs ray[serve]")
    with server() as (_, port):
        with RobotInferenceClient("127.0.0.1", port) as client:
            wanted = client.status()["observation"]
        observations = [example(wanted) for _ in range(6)]
        alone = answers(port, observations)
    with server("--replicas", "2") as (process, port):
        for one, two in zip(alone, answers(port, observations), strict=True):
            for key, value in one.items():
                np.testing.assert_array_equal(value, two[key])
        refused_alike(port, observations[0])
        wrong: list[Any] = []
        stop = threading.Event()

        def drive(number: int) -> None:
            with RobotInferenceClient("127.0.0.1", port, timeout_ms=30_000) as client:
                while not stop.is_set():
                    try:
                        action = client.get_action(observations[number], seed=number)
                        done[number] += 1
                        if any((value != alone[number][key]).any() for key, value in action.items()):
                            wrong.append(number)
                    except ServiceError as error:
                        wrong.append(str(error))

        done = [0] * 6
        robots = [threading.Thread(target=drive, args=(number,)) for number in range(6)]
        for robot in robots:
            robot.start()
        time.sleep(1.0)
        replicas = [each for each in psutil.Process(process.pid).children(recursive=True) if "Replica" in named(each)]
        assert len(replicas) == 2
        before = list(done)
        replicas[0].kill()
        time.sleep(3.0)
        stop.set()
        for robot in robots:
            robot.join(40)
        assert not wrong
        assert all(after > own for after, own in zip(done, before, strict=True))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


@pytest.mark.ray
def test_other_weights_replica_by_replica(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray", reason="needs ray[serve]")
    runs = write_pair(tmp_path)
    given = ["--data_config", "fourier_gr1_arms_only", "--denoising_steps", "1"]
    alone: dict[str, dict[str, np.ndarray]] = {}
    observation: dict[str, Any] = {}
    for name in ("old", "new"):
        with server("--model_path", str(runs / name), *given) as (_, port):
            with RobotInferenceClient("127.0.0.1", port) as client:
                observation = dict(observation or example(client.status()["observation"]))
            alone[name] = answers(port, [observation])[0]
    flags = ["--replicas", "2", "--model_path", str(runs / "old"), "--allow_reload", str(runs), *given]
    with server(*flags) as (process, port):
        seen, stop = [], threading.Event()

        def robot() -> None:
            while not stop.is_set():
                seen.extend(answers(port, [observation]))

        robots = [threading.Thread(target=robot) for _ in range(2)]
        for each in robots:
            each.start()
        line = ["--host", "127.0.0.1", "--port", str(port)]
        assert main([str(runs / "nothing"), *line]) == 2
        assert main([str(runs / "new"), *line]) == 0
        assert "from checkpoint to first action" in capsys.readouterr().out
        stop.set()
        for each in robots:
            each.join(40)
        replicas = [each for each in psutil.Process(process.pid).children(recursive=True) if "Replica" in named(each)]
        replicas[0].kill()
        time.sleep(3.0)
        later = [answers(port, [observation])[0] for _ in range(8)]
        with RobotInferenceClient("127.0.0.1", port) as client:
            told = client.status()
    assert {kind(each, alone) for each in seen} <= {"old", "new"}
    assert {kind(each, alone) for each in later} == {"new"}
    assert (told["model"], told["reload"]["state"]) == (str(runs / "new"), "done")


def kind(answer: dict[str, np.ndarray], alone: dict[str, dict[str, np.ndarray]]) -> str:
    """Which checkpoint an answer is of."""
    equal = (name for name, own in alone.items() if all((answer[key] == own[key]).all() for key in own))
    return next(equal, "mixed")


def named(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def refused_alike(port: int, observation: dict[str, Any]) -> None:
    key = next(key for key in observation if key.startswith("state."))
    with RobotInferenceClient("127.0.0.1", port) as client:
        with pytest.raises(ServiceError, match="Server error: state"):
            client.get_action({**observation, key: observation[key] * np.nan})
        with pytest.raises(ServiceError, match="a batch of 9, more than the 8"):
            client.get_action(repeated(observation, 9))
