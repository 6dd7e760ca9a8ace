"""Time: estimates are weighed against what is left, and a block that outlasts it is ended."""

from __future__ import annotations

import signal
import time

import pytest

from gr00t_trt.measure.budget import Budget, OutOfTime


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_what_fits_and_what_does_not() -> None:
    clock = Clock()
    budget = Budget(520, clock)
    assert budget.why_not(520) is None
    clock.now += 500
    assert (budget.spent, budget.left) == (500, 20)
    assert budget.why_not(19.9) is None
    assert budget.why_not(75.2) == "no time: about 75 s, and 20 s of 520 s were left"
    budget.check()
    clock.now += 100
    with pytest.raises(OutOfTime):
        budget.check()
    assert budget.why_not(0.1) == "no time: about 0 s, and 0 s of 520 s were left"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_block_is_ended_even_where_an_error_cannot_pass() -> None:
    budget, began = Budget(0.05), time.monotonic()

    class Swallows:
        def __del__(self):
            time.sleep(0.2)  # the first alarm goes off in here, and Python drops what it raises

    def work() -> None:
        with budget.enforced():
            thing = Swallows()
            del thing
            time.sleep(5)

    with pytest.raises(OutOfTime):
        work()
    assert time.monotonic() - began < 3


def test_nothing_is_left_behind() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with Budget(60).enforced():
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 50
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


def test_out_of_time_is_no_exception_that_a_compiler_could_take_for_its_own() -> None:
    assert not issubclass(OutOfTime, Exception)
