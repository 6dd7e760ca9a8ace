"""The HTTP protocol over a real socket, spoken with httpx and numpy alone."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import time
from typing import Any

import hostile
import httpx
import numpy as np
import pytest
from puppet import Served, at_once, observation, serving

CLIENT = httpx.Client(timeout=10, verify=False)  # certificates take longer to load than all these tests


def marked(array: np.ndarray) -> dict[str, Any]:
    raw = base64.b64encode(array.tobytes()).decode()
    return {"__numpy__": raw, "dtype": np.lib.format.dtype_to_descr(array.dtype), "shape": array.shape}


def by_hand(value: float, text: str = "go") -> dict[str, Any]:
    return {
        "video.webcam": marked(np.zeros((1, 8, 8, 3), np.uint8)),
        "state.arm": marked(np.full((1, 5), value)),
        "annotation.task": [text],
    }


def array_of(value: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(value["__numpy__"]), value["dtype"]).reshape(value["shape"])


def post(served: Served, body: Any, **settings: Any) -> httpx.Response:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CLIENT.post(f"http://127.0.0.1:{served.http_port}/act", content=raw, **settings)


def get(served: Served, path: str, **settings: Any) -> httpx.Response:
    return CLIENT.get(f"http://127.0.0.1:{served.http_port}{path}", **settings)


def test_both_encodings_get_the_same_answer_in_the_published_form(served: Served) -> None:
    single = post(served, {"observation": by_hand(2.5)})
    double = post(served, {"encoded": json.dumps({"observation": by_hand(2.5)})})
    assert (single.status_code, single.content) == (200, double.content)
    raw = base64.b64encode(np.full((16, 5), 2.5, np.float32).tobytes()).decode()
    assert single.text == f'{{"action.arm":{{"__numpy__":"{raw}","dtype":"<f4","shape":[16,5]}}}}'
    assert single.headers["content-type"] == "application/json"


def test_timings_come_when_asked_for(served: Served) -> None:
    assert set(post(served, {"observation": by_hand(1.0), "timings": True}).json()) == {"action.arm", "timings"}


def test_health_status_and_metrics(served: Served) -> None:
    health = get(served, "/health")
    assert health.text.startswith('{"status":"healthy","model":"GR00T"')
    assert health.json()["submodules"] == {"dit_model": "eager fp32"}
    post(served, {"observation": by_hand(1.0)})
    status = get(served, "/status").json()
    assert status["modality_config"]["state"] == {"delta_indices": [0], "modality_keys": ["state.arm"]}
    assert status["timings_ms"]["think"]["count"] >= 1
    page = get(served, "/metrics")
    assert page.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert 'gr00t_stage_seconds_count{stage="queue"}' in page.text


def test_a_browser_is_told_where_to_go(served: Served) -> None:
    text = get(served, "/").text
    assert text.count("\n") == 1
    assert f"tcp://127.0.0.1:{served.port}, http://127.0.0.1:{served.http_port}" in text


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "Missing 'observation' field in payload"),
        ({"observation": [1]}, 400, "not a map"),
        ({"encoded": "{}", "observation": {}}, 400, "the only field"),
        ({"encoded": 3}, 400, "must be a JSON string"),
        ({"encoded": "["}, 422, "not JSON"),
        ([1], 422, "not a JSON object"),
        (b"\xff\x00", 422, "not JSON"),
        ({"observation": by_hand(1.0, "fail")}, 500, "Internal server error: told to fail"),
        ({"observation": by_hand(1.0, "nan")}, 500, "holds nan at [0, 0]"),
    ],
)
def test_errors_are_told_with_their_status(served: Served, body: Any, status: int, words: str) -> None:
    response = post(served, body)
    assert response.status_code == status
    assert words in response.json()["detail"]
    assert post(served, {"observation": by_hand(1.0)}).status_code == 200


def test_a_token_is_checked_here_too() -> None:
    with serving(api_token="sesame") as served:
        body = {"observation": by_hand(1.0)}
        assert post(served, body).status_code == 401
        assert post(served, {**body, "api_token": "sesame"}).json() == {"detail": "Unauthorized: Invalid API token"}
        assert post(served, body, headers={"Authorization": "Basic sesame"}).status_code == 401
        for path in ("/status", "/metrics"):
            assert get(served, path).status_code == 401
        assert get(served, "/health").status_code == 200
        for headers in ({"Authorization": "Bearer sesame"}, {"X-API-Token": "sesame"}):
            assert post(served, body, headers=headers).status_code == 200
            assert get(served, "/metrics", headers=headers).status_code == 200


def test_a_body_over_the_limit_is_refused_while_it_arrives(served: Served) -> None:
    sent = 0

    def endless():
        nonlocal sent
        while sent < 2**30:
            sent += 2**16
            yield b" " * 2**16

    with contextlib.suppress(httpx.TransportError):  # the server may hang up before we have read its answer
        url = f"http://127.0.0.1:{served.http_port}/act"
        assert CLIENT.post(url, content=endless()).status_code == 413
    assert sent < 2**28
    assert post(served, {"observation": by_hand(1.0)}).status_code == 200


def test_half_open_and_slow_connections_do_no_harm(served: Served) -> None:
    beginnings = (
        b"",
        b"POST /act HTTP/1.1\r\n",
        b"POST /act HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"\x00\xff" * 50,
    )
    sockets = [socket.create_connection(("127.0.0.1", served.http_port)) for _ in range(20)]
    try:
        for number, each in enumerate(sockets):
            each.sendall(beginnings[number % 4])
        assert post(served, {"observation": by_hand(1.0)}).status_code == 200
        sockets[2].settimeout(5)
        time.sleep(1.0)  # the time a body may take here
        assert b" 408 " in sockets[2].recv(1000)
    finally:
        for each in sockets:
            each.close()


def test_eight_clients_at_once_each_get_their_own_answer(served: Served) -> None:
    wrong: list[Any] = []

    def drive(number: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{served.http_port}", timeout=10, verify=False) as client:
            for step in range(8):
                value = number * 1000.0 + step
                reply = client.post("/act", json={"observation": by_hand(value)})
                if reply.status_code != 200 or not (array_of(reply.json()["action.arm"]) == value).all():
                    wrong.append((value, reply.text))

    at_once(drive, 8)
    assert not wrong


def test_hostile_bodies_never_get_an_answer(served: Served) -> None:
    for kind, raw in hostile.bodies(65, observation(), seed=4):
        reply = post(served, raw)
        if kind in hostile.REFUSED and kind != "unknown endpoint":  # HTTP has none
            assert reply.status_code in (400, 413, 422, 500), (kind, raw[:200])
            assert "detail" in reply.json()
    assert post(served, {"observation": by_hand(1.0)}).status_code == 200
