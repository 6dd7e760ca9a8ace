"""What operators read: one line per request, slow ones, and the sum of it all."""

from __future__ import annotations

import logging

import pytest
from puppet import observation, serving, wait_until

from gr00t_trt.errors import ServiceError
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.metrics import RECENT, Metrics
from gr00t_trt.serve.request_log import RequestLog, one_line


def test_one_line_per_request_when_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gr00t_trt.serve")
    with serving(log=RequestLog(every=True), api_token="sesame") as served:
        with RobotInferenceClient("127.0.0.1", served.port, api_token="sesame") as client:
            client.get_action(observation(1.0))
            with pytest.raises(ServiceError):
                client.get_action(observation(1.0, "fail"))
            wait_until(lambda: len(caplog.messages) == 2)  # written by another thread, once the answer is on its way
            client.ping()
        wait_until(lambda: len(caplog.messages) == 3)
    first, second, third = caplog.messages
    assert first.startswith("get_action from 127.0.0.1:")
    assert first.endswith(" ms: ok")
    assert "1 samples" in first
    assert "ZeroDivisionError: told to fail" in second
    assert third.startswith("ping from 127.0.0.1:")
    assert "sesame" not in caplog.text


def test_slow_requests_are_warned_of_but_not_each(caplog: pytest.LogCaptureFixture) -> None:
    log = RequestLog(slow_ms=100)
    log("get_action", client="a", samples=1, took_ms=99)
    for _ in range(5):
        log("get_action", client="a", samples=2, took_ms=250, timings_ms={"queue": 200.0, "dit_model": 50.0, "x": 0.1})
    (message,) = caplog.messages
    assert message.startswith("slow: get_action from a took 250 ms with 2 samples (queue 200, dit_model 50); 1 slow")
    log._said -= 60
    log("get_action", client="a", took_ms=250)
    assert "5 slow since the last warning" in caplog.messages[-1]


def test_text_of_strangers_stays_on_its_line() -> None:
    assert one_line("first\nsecond") == "first"
    assert one_line("\x1b[31mred\x07") == "\ufffd[31mred\ufffd"
    assert len(one_line("x" * 1000)) == 200


def test_at_the_end_stands_how_many_and_how_fast() -> None:
    metrics = Metrics()
    assert metrics.summary() == "0 requests answered, 0 refused or failed"
    for ms in range(1, RECENT + 2):
        metrics.timings({"total": float(ms)})
        metrics.request("get_action", "ok")
    metrics.request("get_action", "Refusal")
    metrics.request("ping", "ok")
    assert metrics.summary() == (
        "1001 requests answered, 1 refused or failed; p50 501.5 ms, p99 991.0 ms of the latest 1000"
    )
