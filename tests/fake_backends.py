"""Backends whose cost, error and failures a test decides, on a clock of their own: no compiler, no luck, no waiting."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gr00t_trt.backends.base import BuildContext, Built
from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.manifest import Coverage
from gr00t_trt.errors import BackendError
from gr00t_trt.measure import harness
from gr00t_trt.model import Gr00tN1d5
from gr00t_trt.model.targets import Target
from gr00t_trt.plans.backends import BACKENDS, Availability, BackendRow
from gr00t_trt.plans.schema import BuildOptions
from gr00t_trt.record.samples import Samples


class Clock:
    """Milliseconds that pass only where a fake backend says so, and whenever one takes over from another."""

    def __init__(self, switching_ms: float = 0.0):
        self.ms = 0.0
        self.switching_ms = switching_ms
        self._last: str | None = None

    def spend(self, ms: float, who: str) -> None:
        self.ms += ms + (self.switching_ms if who != self._last else 0.0)
        self._last = who

    def measure(self, fns: Mapping[str, Callable[[], object]], **_: Any) -> dict[str, Samples]:
        """In the place of `measure_alternating`: five samples a hair apart."""
        taken = {}
        for name, fn in fns.items():
            if self.switching_ms:
                fn()  # whoever ran before is not this one's fault
            start = self.ms
            fn()
            taken[name] = Samples(tuple(self.ms - start + i * 1e-6 for i in range(5)))
        return taken


class Fake:
    """A backend that calls the module.

    Args:
        costs: Milliseconds of a call, by submodule, and under "" of all others.
        error: Added to each output.
        runs: False for a backend whose engines this machine can build and not run.
        breaks: Raised by a build, by submodule.
        absent: Why it is not installed.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        costs: Mapping[str, float],
        *,
        error: float = 0.0,
        runs: bool = True,
        breaks: Mapping[str, BaseException] | None = None,
        absent: str = "",
    ):
        self.name, self.clock, self.costs = name, clock, costs
        self.error, self.runs, self.breaks, self.absent = error, runs, breaks or {}, absent
        self.built: list[str] = []
        self.folders: list[Path | None] = []
        self.caches: list[EngineCache | None] = []
        self.alive_at_next_build: list[bool] = []
        self._last: weakref.ref[Any] | None = None

    def availability(self) -> Availability:
        return Availability(not self.absent, self.absent)

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        if self._last is not None:
            self.alive_at_next_build.append(self._last() is not None)
        context.progress("building")
        if target.name in self.breaks:
            raise self.breaks[target.name]
        self.built.append(target.name)
        self.folders.append(context.engine_dir)
        self.caches.append(context.cache)
        call = _Call(self, target)
        self._last = weakref.ref(call)
        if self.name == "eager":
            return Built(call=call, runs=True, build_s=0.0)
        return Built(
            call=call,
            runs=self.runs,
            build_s=2.0,
            engine_bytes=None if self.runs else 1_000_000,
            coverage=None if self.runs else Coverage(10, 10, 1),
            notes=(f"made by {self.name}",),
        )


class _Call:
    def __init__(self, backend: Fake, target: Target):
        self.backend, self.target = backend, target

    def __call__(self, *args: torch.Tensor) -> torch.Tensor:
        costs = self.backend.costs
        self.backend.clock.spend(costs.get(self.target.name, costs.get("", 0.0)), self.backend.name)
        return self.target.module(*args) + self.backend.error


PLAIN_MS = 500.0
"""What a request costs with the plain model, besides what its stages cost."""


def row_of(fake: Fake) -> BackendRow:
    """A row like the real one of this name, whose backend is the fake."""
    real = BACKENDS.get(fake.name)
    row = replace(real) if real else BackendRow(fake.name, fake.name, "nowhere:Nothing", "#123456", moving_parts=9)
    row.__dict__["backend"] = fake
    return row


def install(monkeypatch: pytest.MonkeyPatch, clock: Clock, *fakes: Fake) -> tuple[str, ...]:
    """Put the fakes into the registry, and the clock under the harness; returns the fakes' names."""
    original = Gr00tN1d5.get_action

    def costly(self: Gr00tN1d5, *args: Any, **kwargs: Any) -> Any:
        clock.spend(PLAIN_MS, "plain")
        return original(self, *args, **kwargs)

    for fake in fakes:
        monkeypatch.setitem(BACKENDS, fake.name, row_of(fake))
    monkeypatch.setattr(harness, "measure_alternating", clock.measure)
    monkeypatch.setattr(Gr00tN1d5, "get_action", costly)
    return tuple(fake.name for fake in fakes)


def failure(name: str) -> BackendError:
    return BackendError(f"{name}: no kernel for this", known="other kernels", fix="try another backend")
