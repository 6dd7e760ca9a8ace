"""Environments side by side, each in a process of its own, where one that fails costs its episode only. No torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..errors import Gr00tError, PlanError
from .defaults import OURS
from .environments import Settings, facts, make
from .multistep import MultiStep
from .step import Lost, Started, Step
from .video import steps_per_second, unfinished

CLOSING_S = 5.0
"""Seconds that a process has to end by itself."""


class About(NamedTuple):
    """What `Vector` tells of its environments."""

    parts: dict[str, int]
    control_hz: float
    has_expert: bool


class Environment:
    """One environment, made when it is first asked, in whichever process that is."""

    def __init__(self, settings: Settings):
        self._settings = settings

    @cached_property
    def _env(self) -> MultiStep:
        return make(self._settings)

    def about(self) -> About:
        return About(self._env.parts, steps_per_second(self._env), self._env.has_expert())

    def begin(self, episode: int, seed: int) -> Started:
        options: dict[str, float] = {"jolts": self._settings.jolts} if self._settings.jolts else {}
        if self._settings.video_dir is not None:
            options["episode"] = episode
        return Started(*self._env.begin(seed, options or None))

    def act(self, action: Mapping[str, np.ndarray] | None) -> Step:
        return self._env.act(action)

    def facts(self) -> dict[str, str]:
        return facts(self._settings.env_id)

    def answer(self, method: str, args: tuple[Any, ...]) -> Any:
        """What one of the methods above returns. Raises: Gr00tError as it is; anything else as `Broken`."""
        try:
            return getattr(self, method)(*args)
        except Gr00tError:
            raise
        except Exception as error:  # a simulator's own: physics that explode, an assertion, a full disk
            what = next(iter(str(error).splitlines()), "")
            raise Broken(f"the simulator failed: {type(error).__name__}: {what}") from error

    def close(self) -> None:
        if "_env" in vars(self):
            with contextlib.suppress(Exception):  # what is broken may not close either
                self._env.close()


class Here:
    """An environment in this process."""

    process = None

    def __init__(self, settings: Settings):
        self._environment = Environment(settings)

    def ask(self, method: str, *args: Any) -> None:
        self._asked = (method, args)

    def answer(self) -> Any:
        """Raises: as `Environment.answer`."""
        return self._environment.answer(*self._asked)

    def let_go(self) -> None:
        pass

    def close(self) -> None:
        self._environment.close()


class Elsewhere:
    """An environment in a process of its own."""

    def __init__(self, settings: Settings):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(settings, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, *args: Any) -> None:
        with contextlib.suppress(OSError):  # the process is gone: the answer says so
            self._pipe.send((method, args))

    def answer(self) -> Any:
        """Raises: as `Environment.answer`, and `Broken` for the end of the process."""
        try:
            fine, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self.process.join(CLOSING_S)
            raise Broken(f"the simulator's process ended, {_ending(self.process.exitcode)}") from error
        if fine:
            return value
        raise value

    def let_go(self) -> None:
        """Nothing is asked any more, which lets the process end."""
        self._pipe.close()

    def close(self) -> None:
        self.let_go()
        self.process.join(CLOSING_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join(CLOSING_S)


class Broken(Exception):
    """A simulator that failed in a way of its own; the message is one line."""


class Vector:
    """Environments side by side.

    One runs in this process, several run in processes of their own. What goes wrong before any of them has begun an
    episode is raised; afterwards it costs the episode, and the next `reset` makes the environment anew.

    Args:
        count: How many environments.
    Raises: PlanError, ObservationError: an environment that cannot be made, lacks what is to be seen, or cannot be
        pushed.

    Attributes:
        parts: What a row of an action holds: ``action.<part>`` -> its width.
        control_hz: Low-level steps per second of the environments' time.
        has_expert: Whether `step` takes None.
        facts: After the first `reset`: what simulates and draws, with versions.
    """

    def __init__(self, settings: Settings, count: int):
        if settings.jolts and settings.env_id not in OURS:
            raise PlanError(f"{settings.env_id} knows no jolts of the arm", known=OURS)
        self.settings, self.count = settings, count
        self.facts: dict[str, str] = {}
        self._open: dict[int, Here | Elsewhere] = {}
        self._begun = False
        try:
            for i in range(count):
                self._open[i] = self._made()
            abouts = [self._first(self._open[i]) for i in range(count)]
        except BaseException:
            self.close()
            raise
        self.parts, self.control_hz, self.has_expert = abouts[0]

    def reset(self, episodes: Mapping[int, tuple[int, int]]) -> dict[int, Started | Lost]:
        """Begin episodes.

        Args:
            episodes: Environment -> the episode's number, which its video is named by, and its seed, which decides
                the whole scene, whichever environment plays it.
        """
        out: dict[int, Started | Lost] = {}
        for i in episodes:
            if i not in self._open:
                try:
                    self._open[i] = self._made()
                    self._first(self._open[i])
                except (Gr00tError, Broken) as error:
                    out[i] = self._lose(i, error)
        out |= self._together({i: ("begin", *episode) for i, episode in episodes.items() if i not in out})
        if not self.facts:
            started = [i for i, answer in out.items() if isinstance(answer, Started)][:1]
            told = self._together(dict.fromkeys(started, ("facts",)))
            out |= {i: own for i, own in told.items() if isinstance(own, Lost)}
            self.facts = next((own for own in told.values() if not isinstance(own, Lost)), {})
        return out

    def step(self, actions: Mapping[int, Mapping[str, np.ndarray] | None]) -> dict[int, Step | Lost]:
        """Carry out actions, in the environments that are named and not in others.

        Args:
            actions: Environment -> ``action.<part>`` [n_action_steps, D]; None lets the environment's expert act.
        """
        return self._together({i: ("act", action) for i, action in actions.items()})

    def close(self) -> None:
        """Let all processes end; by force, if they do not of themselves."""
        for each in self._open.values():
            each.let_go()
        for each in self._open.values():
            self._end(each)
        self._open.clear()

    def __enter__(self) -> Vector:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _made(self) -> Here | Elsewhere:
        return Here(self.settings) if self.count == 1 else Elsewhere(self.settings)

    def _first(self, environment: Here | Elsewhere) -> About:
        environment.ask("about")
        try:
            return environment.answer()
        except Broken as error:
            raise PlanError(f"environment {self.settings.env_id} cannot be made: {error}") from error

    def _together(self, asked: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Ask several environments at once. Returns: environment -> its answer, or `Lost`."""
        for i, (method, *args) in asked.items():
            self._open[i].ask(method, *args)
        out: dict[int, Any] = {}
        for i in asked:
            try:
                out[i] = self._open[i].answer()
                self._begun = True
            except Broken as error:
                out[i] = self._lose(i, error)
        if asked and not self._begun:
            reason = next(iter(out.values())).reason
            raise PlanError(f"environment {self.settings.env_id} cannot begin an episode: {reason}")
        return out

    def _lose(self, i: int, error: Exception) -> Lost:
        broken = self._open.pop(i, None)
        if broken is not None:
            self._end(broken)
        return Lost(str(error).splitlines()[0])

    def _end(self, environment: Here | Elsewhere) -> None:
        """Close an environment, and remove the video that its process left unfinished."""
        environment.close()
        if self.settings.video_dir is not None and environment.process is not None:
            for path in self.settings.video_dir.glob(f"episode*{unfinished(environment.process.pid or 0)}"):
                path.unlink(missing_ok=True)


def _serve(settings: Settings, pipe: Any) -> None:
    """What an environment's process does: answer until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal; the first process closes the rest
    os.dup2(2, 1)  # simulators print, and what reads our stdout expects something else there
    environment = Environment(settings)
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, args = pipe.recv()
            try:
                reply = True, environment.answer(method, args)
            except (Gr00tError, Broken) as error:
                reply = False, error
            pipe.send(reply)
    environment.close()


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"with exit status {code}"
