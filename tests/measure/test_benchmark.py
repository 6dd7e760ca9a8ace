"""Latency: percentiles, timers, alternation, and when there is no winner."""

import itertools
import json
import time
from types import SimpleNamespace

import fake_cuda
import numpy as np
import pytest

from gr00t_trt.errors import PlanError
from gr00t_trt.measure import timers
from gr00t_trt.measure.timers import FEWEST, MOST, measure_alternating
from gr00t_trt.plans.resolve import resolve_timer
from gr00t_trt.plans.schema import BenchmarkOptions
from gr00t_trt.record.files import dumps
from gr00t_trt.record.samples import Samples, percentile, verdict


def measure(call, **settings):
    """One callable alone."""
    return measure_alternating({"it": call}, **settings)["it"]


def samples(*values, **extra):
    return Samples(tuple(float(v) for v in values), **extra)


@pytest.mark.parametrize("count", [1, 2, 5, 100, 101, 1000])
def test_percentiles_against_numpy(count):
    values = np.random.default_rng(count).gamma(2.0, size=count)
    got = Samples(tuple(values))
    assert got.p50 == pytest.approx(np.percentile(values, 50))
    assert got.p90 == pytest.approx(np.percentile(values, 90))
    assert got.p99 == pytest.approx(np.percentile(values, 99) if count >= 100 else values.max())
    assert got.p99_is_max is (count < 100)
    assert (got.min, got.max, got.mean) == pytest.approx((values.min(), values.max(), values.mean()))
    if count > 1:
        assert got.std == pytest.approx(values.std(ddof=1))


def test_one_sample_has_no_deviation_and_none_no_percentile():
    assert samples(2).std is None
    with pytest.raises(ValueError, match="no samples"):
        percentile((), 50)


def test_hz_is_calls_per_second():
    assert samples(5, 5, 5).hz == pytest.approx(200.0)
    assert samples(0).hz is None


def test_to_dict_keeps_every_sample_in_order():
    out = samples(3, 1, 2, timer="cuda_event", warmup=7, device="cuda:0").to_dict()
    assert out["samples"] == [3.0, 1.0, 2.0]
    assert (out["timer"], out["warmup"], out["iterations"], out["p50"]) == ("cuda_event", 7, 3, 2.0)
    assert (out["p99"], out["p99_is_max"]) == (3.0, True)
    assert json.loads(json.dumps(out)) == out


# --- timers


def test_resolve_timer():
    assert resolve_timer("cuda_event", "cuda:0") == ("cuda_event", None)
    assert resolve_timer("python_timer", "cpu") == ("python_timer", None)
    assert resolve_timer("cuda_event", "cpu") == (
        "python_timer",
        "cuda_event needs a CUDA device; cpu was timed with python_timer",
    )
    with pytest.raises(PlanError, match=r"benchmark\.timer: unknown value 'cuda_evnt'\n.*\n  did you mean cuda_event"):
        resolve_timer("cuda_evnt", "cpu")


def test_measure_on_a_cpu_counts_and_times():
    calls = []

    def work():
        calls.append(1)
        time.sleep(0.002)

    got = measure(work, timer="cuda_event", warmup=2, iterations=3, device="cpu")
    assert len(calls) == 5
    assert len(got.samples) == 3
    assert 1.9 < got.min < 50
    assert (got.timer, got.warmup, got.device) == ("python_timer", 2, "cpu")
    assert "python_timer" in got.note


def test_rivals_alternate():
    order = []
    got = measure_alternating(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")}, warmup=1, iterations=2, device="cpu"
    )
    assert "".join(order) == "ababab"
    assert list(got) == ["a", "b"]
    assert all(len(own.samples) == 2 for own in got.values())


def test_events_give_each_call_its_own_time_and_wait_once_at_the_end(monkeypatch):
    clock = fake_cuda.install(monkeypatch)
    costs = iter([9, 9, 1, 10, 2, 20, 3, 30])
    waits = []

    def work():
        waits.append(clock.waits)
        clock.now += next(costs)

    got = measure_alternating({"a": work, "b": work}, timer="cuda_event", warmup=1, iterations=3, device="cuda:0")
    assert got["a"].samples == (1.0, 2.0, 3.0)
    assert got["b"].samples == (10.0, 20.0, 30.0)
    assert got["a"].timer == "cuda_event"
    assert waits == [0, 0, 1, 1, 1, 1, 1, 1]
    assert clock.waits == 2


def test_the_python_timer_drains_the_gpu_round_each_call(monkeypatch):
    clock = fake_cuda.install(monkeypatch)
    got = measure(lambda: None, timer="python_timer", warmup=0, iterations=4, device="cuda:0")
    assert clock.waits == 8
    assert got.timer == "python_timer"


@pytest.mark.parametrize(("warmup", "iterations"), [(0, 0), (-1, 1)])
def test_impossible_counts_are_refused(warmup, iterations):
    with pytest.raises(PlanError, match=f"benchmark: {iterations} iterations after {warmup} warm-ups"):
        measure(lambda: None, warmup=warmup, iterations=iterations, device="cpu")


def test_what_the_callable_raises_passes_through():
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 / 0, device="cpu")


# --- how many samples


@pytest.fixture
def clock(monkeypatch):
    """A GPU whose milliseconds are numbers, and the host's clock that goes with it."""
    made = fake_cuda.install(monkeypatch)
    monkeypatch.setattr(timers, "time", SimpleNamespace(perf_counter=lambda: made.now / 1e3))
    return made


def until(clock, *costs, then=(5.0,), **settings):
    """One callable that costs `costs` and after them `then` in turn, timed after no warm-up."""
    coming = itertools.chain(costs, itertools.cycle(then))

    def work():
        clock.now += next(coming)

    return measure(work, **{"warmup": 0, "device": "cuda:0", **settings})


def test_steady_samples_stop_at_the_fewest(clock):
    assert BenchmarkOptions().iterations is None
    got = until(clock)
    assert (len(got.samples), got.note) == (FEWEST, None) == (10, None)
    assert got.median_uncertainty == 0


def test_noisy_samples_go_on_until_the_median_is_known(clock):
    got = until(clock, *[4.0, 6.0] * 5)
    # Of 20 samples the interval still reaches from 5 to 6 ms, of 40 it has no width any more.
    assert len(got.samples) == 40
    assert Samples(got.samples[:10]).median_uncertainty > Samples(got.samples[:20]).median_uncertainty > 0.02
    assert got.median_uncertainty <= 0.02
    assert got.note is None


def test_a_spread_that_leaves_the_median_known_takes_no_further_samples(clock):
    got = until(clock, then=(4.95, 5.0, 5.0, 5.05))
    assert len(got.samples) == FEWEST
    assert 0 < got.median_uncertainty <= 0.02


def test_what_stays_noisy_ends_at_the_most(clock):
    got = until(clock, then=(4.0, 6.0))
    assert (len(got.samples), got.note) == (MOST, None) == (100, None)
    assert got.median_uncertainty > 0.02


def test_rivals_go_on_together_until_the_last_median_is_known(clock):
    noisy = itertools.chain([4.0, 6.0] * 5, itertools.repeat(5.0))

    def cost(ms):
        clock.now += ms

    taken = measure_alternating(
        {"steady": lambda: cost(1.0), "noisy": lambda: cost(next(noisy))}, warmup=0, device="cuda:0"
    )
    assert {name: len(own.samples) for name, own in taken.items()} == {"steady": 40, "noisy": 40}


@pytest.mark.parametrize("count", [1, 3, 37, 250])
@pytest.mark.parametrize("costs", [(5.0,), (4.0, 6.0)], ids=["steady", "noisy"])
def test_a_fixed_count_is_exact(clock, count, costs):
    got = until(clock, then=costs, iterations=count)
    assert (len(got.samples), got.note) == (count, None)


def test_the_time_limit_ends_it_and_is_told_where_the_fewest_were_not_reached(clock):
    got = until(clock, then=(4.0, 6.0), max_seconds=0.12)
    assert (len(got.samples), got.note) == (24, None)
    cut = until(clock, then=(4.0, 6.0), max_seconds=0.02)
    assert len(cut.samples) == 4
    assert cut.note == "4 of at least 10 iterations after 0 of 0 warm-ups: 0.02 s had passed"


# --- verdicts


def test_a_winner_where_the_spreads_are_apart():
    slow, fast = samples(2.7, 2.8, 2.9, 2.8, 2.7), samples(1.2, 1.4, 1.3, 1.4, 1.5)
    got = verdict(slow, fast)
    assert (got.winner, got.ratio) == ("compiled", pytest.approx(2.0))
    assert got.text == "compiled is 2.00x faster than eager (p50 1.40 ms against 2.80 ms)"
    back = verdict(fast, slow)
    assert (back.winner, back.ratio) == ("eager", pytest.approx(0.5))
    assert back.text.startswith("eager is 2.00x faster than compiled")
    assert verdict(slow, fast, names=("torch", "trt")).winner == "trt"


def test_no_winner_where_the_spreads_overlap():
    got = verdict(samples(1.0, 1.2, 1.4, 1.6, 1.8), samples(0.9, 1.0, 1.1, 1.2, 1.3))
    assert got.winner is None
    assert got.ratio == pytest.approx(1.4 / 1.1)
    assert got.text == "no winner: the spreads overlap (eager 1.08 to 1.72 ms, compiled 0.940 to 1.26 ms)"
    same = samples(1, 1, 1, 1, 1)
    assert verdict(same, same).winner is None


def test_one_outlier_does_not_hide_a_winner():
    fast = samples(*([1.0] * 19), 50.0)
    assert verdict(samples(*([2.0] * 20)), fast).winner == "compiled"


def test_too_few_samples_give_no_verdict():
    got = verdict(samples(9, 9, 9, 9), samples(1, 1, 1, 1, 1))
    assert (got.winner, got.ratio) == (None, pytest.approx(9.0))
    assert got.text == "no verdict: 4 samples of eager, 5 are needed"


def test_unlike_clocks_give_no_verdict():
    got = verdict(samples(*[9] * 5), samples(*[1] * 5, timer="cuda_event", device="cuda:0"))
    assert (got.winner, got.ratio) == (None, None)
    assert got.text.startswith(
        "no verdict: eager was timed with python_timer on cpu, compiled with cuda_event on cuda:0"
    )


def test_times_too_short_for_the_clock():
    got = verdict(samples(*[1] * 5), samples(*[0] * 5))
    assert (got.winner, got.ratio) == ("compiled", None)
    assert json.loads(dumps(got))["ratio"] is None


def test_slow_calls_stop_at_the_time_limit_and_the_note_says_what_was_left_out() -> None:
    calls = []

    def slow() -> None:
        calls.append(1)
        time.sleep(0.02)

    samples = measure(slow, timer="python_timer", warmup=50, iterations=50, max_seconds=0.1, device="cpu")
    assert 1 <= len(samples.samples) < 50
    assert 1 <= samples.warmup < 50
    assert len(calls) == samples.warmup + len(samples.samples)
    assert samples.note is not None
    assert f"{len(samples.samples)} of 50 iterations after {samples.warmup} of 50 warm-ups" in samples.note


def test_one_round_is_timed_however_little_time_there_is() -> None:
    taken = measure_alternating(
        {"a": lambda: None, "b": lambda: None},
        timer="python_timer",
        warmup=3,
        iterations=9,
        max_seconds=0,
        device="cpu",
    )
    assert [(len(s.samples), s.warmup) for s in taken.values()] == [(1, 0), (1, 0)]
