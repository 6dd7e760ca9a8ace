"""The control loop, held to an invariant: a policy that counts must see its numbers arrive without a gap."""

from __future__ import annotations

import time

import numpy as np
import pytest

from gr00t_trt.errors import AccuracyError
from gr00t_trt.rollout.loop import Clock, Loop, Trace
from gr00t_trt.rollout.timing import live, summarise, timing_table


class CountingRobot:
    """Shows how many actions it has taken, and keeps them."""

    cameras, parts = (), ("part",)

    def __init__(self) -> None:
        self.taken: list[float] = []

    def observe(self):
        return {"state.part": len(self.taken)}

    def act(self, action) -> None:
        self.taken.append(float(action["action.part"][0]))


class FrozenClock(Clock):
    """Time that passes only when somebody sleeps or `pass_time` is called."""

    def __init__(self) -> None:
        self.time = 100.0

    def now(self) -> float:
        return self.time

    def sleep_until(self, when: float) -> None:
        self.time = max(self.time, when)


def counts_from(observation, rows: int = 16):
    return {"action.part": observation["state.part"] + np.arange(rows, dtype=np.float64)[:, None]}


def test_asking_and_acting_in_turn_takes_exactly_the_sum_of_both() -> None:
    clock, robot = FrozenClock(), CountingRobot()

    def ask(observation):
        clock.time += 0.100
        return counts_from(observation)

    trace = Loop(robot, ask, horizon=8, control_hz=50, clock=clock).synchronous(20)
    assert robot.taken == list(range(20))
    found = summarise(trace, control_hz=50, device="cpu")
    assert (found.actions, found.queries, found.stalls) == (20, 3, 2)
    # Two waits of 100 ms between three chunks, and 19 periods of 20 ms.
    assert found.seconds == pytest.approx(2 * 0.100 + 19 * 0.020)
    assert found.stalled_s == pytest.approx(0.200)
    assert found.actions_per_s == pytest.approx(19 / 0.580)
    assert found.jitter_ms.p50 == pytest.approx(0.0, abs=1e-6)
    assert found.jitter_ms.max == pytest.approx(100.0)
    assert found.inference_ms.p50 == pytest.approx(100.0)


def overlapped(latency_s: float, actions: int, *, horizon: int = 8, hz: float = 100.0, rows: int = 16):
    robot = CountingRobot()

    def ask(observation):
        time.sleep(latency_s)
        return counts_from(observation, rows)

    trace = Loop(robot, ask, horizon=horizon, control_hz=hz).overlapped(actions)
    return robot, trace, summarise(trace, control_hz=hz, device="cpu")


def test_stale_rows_are_skipped_by_as_many_as_were_sent_meanwhile() -> None:
    robot, trace, found = overlapped(0.030, 60)
    assert robot.taken == list(range(60))
    assert trace.skipped_rows > 0
    assert found.actions == 60


def test_overlapping_keeps_the_robot_moving() -> None:
    robot = CountingRobot()

    def ask(observation):
        time.sleep(0.05)
        return counts_from(observation)

    loop = Loop(robot, ask, horizon=8, control_hz=100.0)
    waiting = summarise(loop.synchronous(40), control_hz=100.0, device="cpu")
    _, _, moving = overlapped(0.05, 40)
    assert waiting.stalls >= 4
    assert moving.actions_per_s > waiting.actions_per_s
    assert moving.stalled_s < waiting.stalled_s


@pytest.mark.parametrize(("rows", "horizon"), [(16, 8), (16, 16), (4, 4), (1, 1)])
def test_answers_slower_than_a_chunk_make_the_robot_wait_and_lose_nothing(rows: int, horizon: int) -> None:
    robot, _, found = overlapped(0.06, 3 * rows, horizon=horizon, hz=400.0, rows=rows)
    assert robot.taken == list(range(3 * rows))
    assert found.stalls >= 1


@pytest.mark.parametrize("mode", ["synchronous", "overlapped"])
def test_no_robot_sees_a_nan(mode: str) -> None:
    robot, answers = CountingRobot(), []

    def ask(observation):
        answers.append(observation)
        chunk = counts_from(observation)
        if len(answers) == 2:
            chunk["action.part"][3] = np.nan
        return chunk

    with pytest.raises(AccuracyError, match=r"the policy: action.part holds nan at \[3, 0\]"):
        getattr(Loop(robot, ask, horizon=8, control_hz=500.0), mode)(100)
    assert robot.taken == list(range(len(robot.taken)))
    assert len(robot.taken) <= 16


def test_an_error_in_the_thread_of_the_policy_ends_the_rollout() -> None:
    def ask(observation):
        if observation["state.part"]:
            raise ConnectionError("gone")
        return counts_from(observation)

    with pytest.raises(ConnectionError, match="gone"):
        Loop(CountingRobot(), ask, horizon=8, control_hz=500.0).overlapped(50)


def test_a_trace_without_a_period_has_no_numbers_made_up() -> None:
    found = summarise(Trace(sent=[1.0], observe_ms=[1.0], inference_ms=[2.0]), control_hz=50, device="cpu")
    assert (found.actions_per_s, found.stalls, found.jitter_ms) == (None, None, None)
    assert "inference 2 ms" in live(Trace(sent=[1.0], observe_ms=[1.0], inference_ms=[2.0]))
    assert timing_table({"synchronous": found}, 50.0).row_count == 8
