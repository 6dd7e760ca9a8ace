"""Replays by a clock made of numbers: what lies right round them, back to back, and before their launch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import fake_cuda
import pytest
import torch

from gr00t_trt.backends.base import BuildContext
from gr00t_trt.backends.inductor.backend import InductorBackend
from gr00t_trt.errors import BackendError
from gr00t_trt.measure.replays import WatchedCapturer, launching, recorded, split_graphs
from gr00t_trt.measure.settings import TunedInductor, unknown_setting
from gr00t_trt.measure.timers import back_to_back, host_adds_us, measure_alternating
from gr00t_trt.plans.schema import BuildOptions

GPU = torch.device("cuda:0")


@pytest.fixture
def clock(monkeypatch) -> fake_cuda.Clock:
    return fake_cuda.install(monkeypatch)


class Capturer:
    """Graphs of 5 ms."""

    def __init__(self, clock: fake_cuda.Clock):
        self._clock = clock
        self.inside = 0

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.inside += 1
        yield
        self.inside -= 1

    def capture(self, call):
        def replay() -> None:
            assert self.inside
            self._clock.now += 5.0

        return SimpleNamespace(output=call(), replay=replay)


@pytest.fixture
def watched(clock) -> WatchedCapturer:
    return WatchedCapturer(Capturer(clock), GPU)


def answering(watched: WatchedCapturer, clock: fake_cuda.Clock, before: float):
    """A call of 5 ms in a graph, after `before` ms and with 1 ms after it."""
    graph = watched.capture(lambda: torch.ones(1))

    def call() -> torch.Tensor:
        clock.now += before
        with watched.scope():
            graph.replay()
        clock.now += 1.0
        return graph.output

    return call


def test_the_time_right_round_a_replay_and_back_to_back_leave_the_host_out(clock, watched) -> None:
    call = answering(watched, clock, before=2.0)
    taken = measure_alternating({"it": call}, warmup=1, iterations=3, from_idle=True)["it"]
    assert taken.samples == (8.0, 8.0, 8.0)
    around = watched.around_replay(call, 3, GPU)
    assert (around.samples, around.timer, around.device) == ((5.0, 5.0, 5.0), "cuda_event", "cuda:0")
    replays = watched.back_to_back(call, 4, GPU)
    assert (replays.samples, replays.warmup) == ((5.0,) * 4, 1)


def test_from_idle_means_that_the_host_waits_before_every_call(clock) -> None:
    waits = []
    measure_alternating({"it": lambda: waits.append(clock.waits)}, warmup=0, iterations=4, from_idle=True)
    assert waits == [2, 3, 4, 5]


def test_a_call_that_is_not_answered_by_its_graph_has_no_replay(watched) -> None:
    with pytest.raises(BackendError, match="answered without its graph"):
        watched.back_to_back(lambda: None, 3, GPU)


def test_host_time_ends_with_the_launch(clock, watched) -> None:
    call = answering(watched, clock, before=0.0)

    def with_copies_after() -> None:
        call()
        time.sleep(0.02)

    with_graph: list[float] = []
    without: list[float] = []
    launching(with_copies_after, watched, with_graph)()
    launching(with_copies_after, None, without)()
    assert 0 < with_graph[0] < 10_000 < 20_000 <= without[0]


def test_every_stage_is_captured_with_all_its_calls(monkeypatch) -> None:
    from gr00t_trt.compile import capture

    seen: list[float] = []

    def step(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
        seen.append(float(x))
        return x + by

    table, calls = recorded({"once": lambda x: x * 2, "step": step})
    x = table["once"](torch.tensor(1.0))
    for _ in range(3):
        x = table["step"](x, torch.tensor(10.0))
    assert seen == [2.0, 12.0, 22.0]
    ran = SimpleNamespace(now=0.0)
    monkeypatch.setattr(capture, "capturer_for", lambda device: Capturer(ran))
    parts = split_graphs({"once": lambda x: x * 2, "step": step}, calls, 4, torch.device("cpu"))
    assert [(part.stage, part.calls, len(part.latency_ms.samples)) for part in parts] == [
        ("once", 1, 4),
        ("step", 3, 4),
    ]
    assert seen[3:] == [2.0, 12.0, 22.0] * 4  # three to warm up, and the one that is captured
    assert ran.now == 2 * 5 * 5.0  # each graph once to warm up, and four times


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_no_stage_is_a_graph() -> None:
    with pytest.raises(BackendError, match="the model is not on a GPU"):
        split_graphs({"a": torch.sin}, {"a": [(torch.ones(1),)]}, 3, torch.device("cpu"))


def test_the_hosts_clock_serves_where_there_is_no_gpu() -> None:
    taken = back_to_back(lambda: time.sleep(0.002), 3, torch.device("cpu"))
    assert len(taken.samples) == 3
    assert 1.9 < taken.min < 50
    assert 0 < host_adds_us(torch.device("cpu"), 10) < 1e6


def test_an_option_is_switched_on_while_compiling_alone(monkeypatch) -> None:
    import torch._inductor.config as config

    seen = []

    def build(self, target, options, context):
        from gr00t_trt.backends.base import Built

        seen.append(config.coordinate_descent_tuning)
        return Built(print, True, 1.0, settings={"mode": self.mode})

    monkeypatch.setattr(InductorBackend, "build", build)
    nothing = SimpleNamespace(name="vision_model")
    built = TunedInductor("default", ["coordinate_descent_tuning"]).build(nothing, BuildOptions(), BuildContext())
    assert seen == [True]
    assert config.coordinate_descent_tuning is False
    assert built.settings == {"mode": "default", "coordinate_descent_tuning": True}


def test_options_that_this_torch_does_not_have_are_named() -> None:
    assert unknown_setting(("triton.enable_pdl", "coordinate_descent_tuning")) is None
    assert unknown_setting(("triton.no_such", "coordinate_descent_tuning")) == (
        f"unsupported: torch {torch.__version__} has no torch.compile option triton.no_such"
    )
    assert "max_autotune_gemm_backends" in str(unknown_setting(("max_autotune_gemm_backends",)))  # not true or false
