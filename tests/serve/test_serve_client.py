"""The clients: light, patient as long as they are told, and back again when the server is."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from puppet import CONFIG, Served, observation, serving, wait_until

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve.client import BaseInferenceClient, RobotInferenceClient
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.resize import resize_frames

ROOT = Path(__file__).resolve().parents[2]


def clients(served: Served, **settings: Any) -> list[Any]:
    return [
        RobotInferenceClient("localhost", served.port, **settings),
        HttpInferenceClient("127.0.0.1", served.http_port, **settings),
    ]


@pytest.mark.parametrize("kind", ["zmq", "http"])
def test_a_client_is_used_like_a_policy(served: Served, kind: str) -> None:
    with clients(served, timings=True)[kind == "http"] as client:
        assert client.ping()
        assert client.get_modality_config() == CONFIG
        action = client.get_action(observation(4.0))
        assert list(action) == ["action.arm"]
        assert action["action.arm"].dtype == np.float32
        assert (action["action.arm"] == 4.0).all()
        assert list(client.last_timings_ms) == ["queue", "think", "between stages", "total"]
        with pytest.raises(ServiceError, match=r"Server error: (Internal server error: )?told to fail"):
            client.get_action(observation(4.0, "fail"))
        assert (client.get_action(observation(5.0))["action.arm"] == 5.0).all()
        client.close()
        assert client.ping()


def test_an_error_is_a_runtime_error_as_existing_programs_expect(served: Served) -> None:
    with (
        BaseInferenceClient(port=served.port) as client,
        pytest.raises(RuntimeError, match="Server error: Unknown endpoint: fly"),
    ):
        client.call_endpoint("fly", {"a": 1})


def test_frames_of_another_size_are_resized_before_they_are_sent(served: Served) -> None:
    large = {**observation(1.0), "video.webcam": np.full((1, 48, 64, 3), 77, np.uint8)}
    for client in clients(served, resize=True):
        with client:
            client.get_action(large)
        sent = served.puppet.calls[-1]["video.webcam"]
        assert sent.shape == (1, 8, 8, 3)
        assert (sent == 77).all()


@pytest.mark.parametrize("size", [(48, 64, 8, 8), (48, 64, 20, 28), (5, 7, 9, 3)])
def test_resizing_averages_what_falls_into_a_pixel(size: tuple[int, int, int, int]) -> None:
    height, width, new_height, new_width = size
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    # Every pixel repeated until the sizes divide: then a mean over blocks is exact.
    fine = frames.repeat(new_height, 1).repeat(new_width, 2).astype(np.float64)
    exact = fine.reshape(2, new_height, height, new_width, width, 3).mean((2, 4))
    resized = resize_frames(frames, new_height, new_width)
    assert resized.dtype == np.uint8
    assert np.abs(resized - exact).max() <= 0.51


@pytest.mark.parametrize("answers", ["silence", "nobody"])
def test_a_timeout_is_a_timeout(answers: str) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        if answers == "silence":
            listener.listen()
        for kind in (RobotInferenceClient, HttpInferenceClient):
            began = time.monotonic()
            with (
                kind("127.0.0.1", port, timeout_ms=200) as client,
                pytest.raises(ServiceError, match=r"no answer from 127.0.0.1:\d+"),
            ):
                client.get_action(observation())
            assert time.monotonic() - began < 2
            with kind("127.0.0.1", port, timeout_ms=200) as client:
                assert not client.ping()


def test_a_restarted_server_is_found_again_within_one_call() -> None:
    with serving() as first:
        client = RobotInferenceClient("127.0.0.1", first.port, timeout_ms=20_000)
        assert client.ping()
    results: list[Any] = []
    asking = threading.Thread(target=lambda: results.append(client.get_action(observation(9.0))))
    asking.start()  # nobody is there yet
    time.sleep(0.2)
    with serving(port=first.port):
        asking.join(20)
        assert (results[0]["action.arm"] == 9.0).all()
        assert client.ping()
    client.close()


def test_a_server_that_dies_over_a_request_is_asked_once_more() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as dying:
        dying.setsockopt(zmq.LINGER, 0)
        port = dying.bind_to_random_port("tcp://127.0.0.1")
        client = RobotInferenceClient("127.0.0.1", port, timeout_ms=20_000)
        results: list[Any] = []
        asking = threading.Thread(target=lambda: results.append(client.get_action(observation(9.0))))
        asking.start()
        dying.recv_multipart()
    with serving(port=port):
        asking.join(20)
    assert (results[0]["action.arm"] == 9.0).all()
    client.close()


def test_kill_server_takes_nil_for_an_answer() -> None:
    with serving() as served, BaseInferenceClient("127.0.0.1", served.port, timeout_ms=5000) as client:
        client.kill_server()
        assert served.worker._stopping


def test_a_token_goes_with_every_request_and_an_empty_one_does_not() -> None:
    with serving(api_token="sesame") as served:
        for client in clients(served, api_token="sesame"):
            assert (client.get_action(observation(1.0))["action.arm"] == 1.0).all()
        for client in clients(served, api_token=""):
            with pytest.raises(ServiceError, match="Unauthorized: Invalid API token"):
                client.get_action(observation(1.0))


@pytest.mark.parametrize("kind", ["zmq", "http"])
def test_a_request_says_who_asks_and_how_long(served: Served, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    submit = served.worker.submit
    monkeypatch.setattr(served.worker, "submit", lambda request: (seen.append(request), submit(request)))
    with clients(served, timeout_ms=5000)[kind == "http"] as client:
        client.get_action(observation(1.0))
        client.close()  # and comes again by another connection
        client.get_action(observation(2.0))
    first, second = seen
    assert first.client == second.client == ("named", client.client_id)
    assert 4 < first.timeout_s <= 5


@pytest.mark.parametrize("kind", ["zmq", "http"])
def test_a_seed_makes_an_action_repeatable_and_an_answer_says_what_gave_it(served: Served, kind: str) -> None:
    with clients(served, served_by=True)[kind == "http"] as client:
        first, again = (client.get_action(observation(1.0), seed=7)["action.noise"] for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert (client.get_action(observation(1.0), seed=8)["action.noise"] != first).any()
        np.testing.assert_array_equal(client.get_action(observation(1.0), noise=first[0])["action.noise"], first)
        assert client.last_served_by == {"submodules": {"dit_model": "eager fp32"}, "commit": "c0ffee"}
        with pytest.raises(ServiceError, match="seed is '-1', not an integer"):
            client.get_action(observation(1.0), seed=-1)
        with pytest.raises(ServiceError, match=r"noise is float32 \[3, 3\], not numbers \[1, 16, 3\]"):
            client.get_action(observation(1.0), noise=np.zeros((3, 3), np.float32))
        assert (client.get_action(observation(5.0))["action.arm"] == 5.0).all()


@pytest.mark.parametrize("kind", ["zmq", "http"])
def test_a_client_that_gave_up_costs_no_work(kind: str) -> None:
    with serving() as served, clients(served, timeout_ms=300)[kind == "http"] as client:
        served.puppet.go.clear()
        with RobotInferenceClient("127.0.0.1", served.port) as other:
            asking = threading.Thread(target=lambda: other.get_action(observation(1.0)))
            asking.start()
            wait_until(lambda: served.puppet.calls)
            for _ in range(2):
                with pytest.raises(ServiceError, match="no answer from"):
                    client.get_action(observation(2.0))
            wait_until(
                lambda: all(map(served.worker._useless, waiting(served)))
            )  # it arrived a little after it was sent
            served.puppet.go.set()
            asking.join(10)
            wait_until(lambda: not len(served.worker._queue))
            assert (other.get_action(observation(3.0))["action.arm"] == 3.0).all()
        assert [float(call["state.arm"][0, 0]) for call in served.puppet.calls] == [1.0, 3.0]


def waiting(served: Served) -> list[Any]:
    return [request for line in served.worker._queue._waiting.values() for _, request in line.entries]


def test_a_token_that_can_stand_in_no_header_is_refused() -> None:
    with pytest.raises(ServiceError, match="cannot stand in a header"):
        HttpInferenceClient(api_token="two\nlines")


@pytest.mark.parametrize("module", ["client", "http_client", "ask", "flags", "__main__"])
def test_a_robot_needs_no_torch(module: str) -> None:
    code = f"import sys, gr00t_trt.serve.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
