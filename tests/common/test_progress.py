"""Progress: plain lines in a log, a live line on a terminal."""

import contextlib
import io
import os
import signal

import pytest
from rich.console import Console

from gr00t_trt.common import progress as module
from gr00t_trt.common.progress import interruptible, progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def log():
    out = io.StringIO()
    return Console(file=out, width=40), out


def test_a_log_gets_one_line_per_step(clock):
    console, out = log()
    with progress(console) as steps:
        steps.step("loading [model]")
        clock[0] += 1
        steps.step("exporting " + "x" * 60)
    assert out.getvalue() == "loading [model]\nexporting " + "x" * 60 + "\n"


def test_slow_steps_say_how_long_they_took(clock):
    console, out = log()
    with progress(console) as steps:
        steps.step("building engine")
        clock[0] += 19.23
        steps.step("timing")
    assert out.getvalue() == "building engine\nbuilding engine: 19.2 s\ntiming\n"


def test_a_log_hears_of_parts_now_and_then(clock):
    console, out = log()
    with progress(console) as steps:
        steps.step("timing")
        for done in range(1, 7):
            clock[0] += 0.9
            steps.advance(done, 6)
    assert out.getvalue() == "timing\ntiming: 3 of 6\ntiming: 6 of 6\ntiming: 5.4 s\n"


def test_a_terminal_gets_the_live_line_and_survives_errors():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True)

    def fail():
        with progress(console) as steps:
            steps.step("building [engine]")
            steps.advance(1, 2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "building [engine]" in out.getvalue()
    assert "\x1b[?25h" in out.getvalue()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_that_was_swallowed_comes_back_at_the_next_step(number):
    before = signal.getsignal(number)
    console, out = log()

    def run():
        with interruptible(), progress(console) as steps:
            steps.step("exporting")
            with contextlib.suppress(KeyboardInterrupt):  # as a compiler's callback does
                os.kill(os.getpid(), number)
            steps.step("building")

    with pytest.raises(KeyboardInterrupt):
        run()
    assert out.getvalue() == "exporting\n"
    assert signal.getsignal(number) is before
    with progress(console) as steps:
        steps.step("the next run")
