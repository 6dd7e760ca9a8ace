"""The split of a request."""

import time

import fake_cuda
import pytest

from gr00t_trt.measure.stages import StageTimer


def named(timer, warmup=0):
    return {(row.stage, row.within): row for row in timer.rows(warmup)}


def test_originals_come_back_and_calls_pass_through():
    stages = {"a": lambda x, *, y: x + y}
    original = stages["a"]
    with StageTimer((stages,), "cpu") as timer:
        assert stages["a"] is not original
        assert stages["a"](1, y=2) == 3
    assert stages["a"] is original
    assert timer.rows() == []


def test_originals_come_back_after_an_error():
    stages = {"a": lambda: 1 / 0}
    original = stages["a"]
    with pytest.raises(ZeroDivisionError), StageTimer((stages,), "cpu") as timer, timer.request():
        stages["a"]()
    assert stages["a"] is original
    assert timer.rows() == []


def test_a_stage_swapped_meanwhile_stays():
    stages = {"a": lambda: 1}
    with StageTimer((stages,), "cpu"):
        stages["a"] = swapped = lambda: 2
    assert stages["a"] is swapped


def test_a_failed_request_is_dropped_and_the_next_one_counts():
    stages = {"a": lambda fail: 1 / 0 if fail else 1}
    with StageTimer((stages,), "cpu") as timer:
        with pytest.raises(ZeroDivisionError), timer.request():
            stages["a"](True)
        with timer.request():
            stages["a"](False)
    assert len(named(timer)["a", None].latency_ms.samples) == 1


def test_calls_add_up_within_a_request(monkeypatch):
    clock = fake_cuda.install(monkeypatch)

    def spend(ms):
        clock.now += ms

    stages = {"vision_model": spend, "dit_model": spend}
    with StageTimer((stages,), "cuda:0") as timer:
        for scale in (1, 2):
            with timer.request():
                stages["vision_model"](3 * scale)
                clock.now += 0.5
                for _ in range(4):
                    stages["dit_model"](2 * scale)
        stages["dit_model"](1000)
    assert clock.waits == 0
    rows = named(timer)
    assert list(rows) == [("vision_model", None), ("dit_model", None), ("between stages", None), ("request", None)]
    assert rows["vision_model", None].latency_ms.samples == (3.0, 6.0)
    assert rows["dit_model", None].latency_ms.samples == (8.0, 16.0)
    assert rows["dit_model", None].calls_per_request == 4
    assert rows["between stages", None].latency_ms.samples == (0.5, 0.5)
    assert rows["request", None].latency_ms.samples == (11.5, 22.5)
    assert rows["request", None].latency_ms.timer == "cuda_event"
    assert clock.waits == 1
    assert named(timer, warmup=1)["request", None].latency_ms.samples == (22.5,)


def test_a_stage_inside_another_is_not_counted_twice(monkeypatch):
    clock = fake_cuda.install(monkeypatch)
    stages = {}

    def inner():
        clock.now += 2

    def outer():
        clock.now += 1
        stages["inner"]()

    stages.update(outer=outer, inner=inner)
    with StageTimer((stages,), "cuda:0") as timer, timer.request():
        stages["outer"]()
    rows = named(timer)
    assert rows["outer", None].latency_ms.samples == (3.0,)
    assert rows["inner", "outer"].latency_ms.samples == (2.0,)
    assert rows["between stages", None].latency_ms.samples == (0.0,)


def test_stages_that_not_every_request_calls(monkeypatch):
    clock = fake_cuda.install(monkeypatch)

    def spend():
        clock.now += 1

    stages = {"a": spend}
    with StageTimer((stages,), "cuda:0") as timer:
        for calls in (0, 1):
            with timer.request():
                for _ in range(calls):
                    stages["a"]()
    row = named(timer)["a", None]
    assert row.calls_per_request == 0.5
    assert row.latency_ms.samples == (0, 1.0)


def test_the_cpu_clock():
    stages = {"a": lambda: time.sleep(0.003)}
    with StageTimer((stages,), "cpu") as timer, timer.request():
        stages["a"]()
    rows = named(timer)
    assert 2.9 < rows["a", None].latency_ms.p50 <= rows["request", None].latency_ms.p50
    assert rows["a", None].latency_ms.timer == "python_timer"


def test_requests_do_not_nest():
    nested = pytest.raises(RuntimeError, match="a request is already running")
    with StageTimer((), "cpu") as timer, timer.request(), nested, timer.request():
        pass


def test_the_last_request_can_be_taken_out_on_its_own(monkeypatch):
    clock = fake_cuda.install(monkeypatch)
    stages = {}

    def spend(ms):
        clock.now += ms

    stages.update(outer=lambda: stages["inner"](2), inner=spend, fail=lambda: 1 / 0)
    with StageTimer((stages,), "cuda:0") as timer:
        assert timer.pop() == {}
        for ms in (1, 3):
            with timer.request():
                stages["outer"]()
                stages["inner"](ms)
                clock.now += 0.5
        assert timer.pop() == {"inner": 5.0, "outer": 2.0, "between stages": 0.5}
        assert timer.rows() == []  # kept for nobody: a server answers for months
        with pytest.raises(ZeroDivisionError), timer.request():
            stages["fail"]()
        assert timer.pop() == {}
