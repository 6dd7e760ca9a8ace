"""The candidates of a measuring run: each is built once, on first use, and kept while later rows need it."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import replace

import torch

from ..backends.base import Backend
from ..backends.guarded import first_line
from ..backends.inductor.backend import InductorBackend
from ..errors import BackendError
from ..plans.backends import BACKENDS, get_backend
from ..plans.schema import Plan, Ranges
from ..plans.submodules import resolve_submodule, select
from ..record.result import Candidate
from .harness import Harness
from .results import Part, Variant
from .rows import PLAIN, TUNED
from .settings import TunedInductor


class Variants:
    """Variants of one model by candidate.

    Args:
        harness: Builds them.
    """

    def __init__(self, harness: Harness):
        self._harness = harness
        self._made: dict[Candidate, Variant] = {PLAIN: harness.original}
        self._failed: dict[Candidate, str] = {}

    @property
    def made(self) -> Collection[Candidate]:
        """What is there, and need not be built."""
        return self._made.keys()

    def get(self, candidate: Candidate) -> Variant:
        """The candidate, built on first use. Raises: BackendError when it cannot be, or could not before."""
        if candidate in self._failed:
            raise BackendError(f"could not be built: {self._failed[candidate]}")
        if candidate not in self._made:
            try:
                self._made[candidate] = self._make(candidate)
            except Exception as error:
                self._failed[candidate] = first_line(error)
                raise
        return self._made[candidate]

    def keep_only(self, candidates: set[Candidate]) -> None:
        """Let go of every variant that no row needs any more, and of the GPU memory that failed builds hold."""
        kept = {PLAIN, *candidates, *(replace(candidate, graph=False) for candidate in candidates)}
        self._made = {candidate: variant for candidate, variant in self._made.items() if candidate in kept}
        self._harness.keep_only(candidate.optimizations for candidate in kept)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _make(self, candidate: Candidate) -> Variant:
        harness = self._harness
        if candidate.graph:
            return harness.graphed(self.get(replace(candidate, graph=False)))
        made = replace(candidate, precision=str(harness.plan.precision))
        if candidate.backend == "eager":
            return harness.variant(made)
        if candidate.settings:
            others = self.get(replace(candidate, settings=())).parts
            return harness.variant(made, {**others, **self._parts(candidate, TUNED)})
        other = BACKENDS[candidate.backend].falls_back
        if other is not None:  # what it has nothing for is there already
            parts = self.get(replace(candidate, backend=other)).parts
            return harness.variant(made, {**parts, **self._parts(candidate, (candidate.loop,))})
        return harness.variant(made, self._parts(candidate, select("all", self._plan(candidate))))

    def _plan(self, candidate: Candidate) -> Plan:
        precision = str(self._harness.plan.precision)
        return Plan(candidate.backend, precision, optimizations=candidate.optimizations, loop=candidate.loop)

    def _parts(self, candidate: Candidate, names: Collection[str]) -> dict[str, Part]:
        harness, plan, backend = self._harness, self._plan(candidate), _backend(candidate)
        length = harness.reference.base.length
        ranges = Ranges() if candidate.dynamic else Ranges((1, 1), (1, 1), (length, length))
        parts = {}
        for name in names:
            own, label = resolve_submodule(plan, name), f"{candidate.backend} {candidate.mode or ''}: building {name}"
            parts[name] = part = harness.build(
                name, own, candidate.optimizations, ranges=ranges, backend=backend, label=label
            )
            if not part.built.runs:
                raise BackendError(f"{name}: {candidate.backend} engines cannot run on this machine")
        return parts


def not_here(backend: str) -> str | None:
    """Why a backend cannot be used on this machine; None where it can."""
    found = get_backend(backend).availability()
    return None if found.installed else f"{backend}: {found.reason}"


def _backend(candidate: Candidate) -> Backend:
    """Raises: BackendError for one that is not installed."""
    mode = candidate.mode or "default"
    if candidate.backend != "inductor":
        backend = get_backend(candidate.backend)
    else:
        backend = TunedInductor(mode, candidate.settings) if candidate.settings else InductorBackend(mode)
    found = backend.availability()
    if not found.installed:
        raise BackendError(f"{candidate.backend}: {found.reason}")
    return backend
