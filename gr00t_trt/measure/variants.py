"""The candidates of a measuring run: each is built once, on first use, and kept while later rows need it."""

from __future__ import annotations

import gc
from collections.abc import Collection
from dataclasses import replace

import torch

from ..backends.base import Backend
from ..backends.guarded import first_line
from ..backends.inductor.backend import InductorBackend
from ..common.products import speed
from ..errors import BackendError
from ..plans.backends import BACKENDS, get_backend
from ..plans.precisions import PRECISIONS
from ..plans.schema import Plan, Ranges
from ..plans.submodules import resolve_submodule, select
from ..record.result import Candidate
from .harness import Harness
from .results import Part, Variant
from .rows import PLAIN, setting_of
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
        """The candidates that are built already."""
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
        kept = {PLAIN}
        for candidate in candidates:
            kept.add(candidate)
            before: Candidate | None = replace(candidate, graph=False)
            while before is not None and before not in kept:
                kept.add(before)
                before = self._upon(before)[0]
        self._made = {candidate: variant for candidate, variant in self._made.items() if candidate in kept}
        self._harness.keep_only(candidate.optimizations for candidate in kept)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _make(self, candidate: Candidate) -> Variant:
        harness = self._harness
        if candidate.graph:
            return harness.graphed(self.get(replace(candidate, graph=False)))
        before, names = self._upon(candidate)
        parts = {} if before is None else self.get(before).parts
        made = replace(candidate, precision=self._precision(candidate))
        return harness.variant(made, {**parts, **self._parts(candidate, names)})

    def _upon(self, candidate: Candidate) -> tuple[Candidate | None, Collection[str]]:
        """The candidate that one without a graph is built upon, None for none; and the stages in which it differs."""
        if candidate.backend == "eager" and candidate.precision is None:
            return None, ()
        if candidate.settings:
            tried = setting_of(candidate)
            return replace(candidate, settings=()), tried.stages if tried else ()
        if candidate.stages:
            return upon_stages(candidate)
        plan = self._plan(candidate)
        names = select("all", plan)
        if candidate.precision is None:
            return None, names
        own = [name for name in names if resolve_submodule(plan, name).quantization is not None]
        return replace(candidate, precision=None), own  # what it does not quantise is there already

    def _precision(self, candidate: Candidate) -> str:
        return candidate.precision or str(self._harness.plan.precision)

    def _plan(self, candidate: Candidate) -> Plan:
        made = candidate.optimizations
        return Plan(candidate.backend, self._precision(candidate), optimizations=made, loop=candidate.loop)

    def _parts(self, candidate: Candidate, names: Collection[str]) -> dict[str, Part]:
        harness, plan = self._harness, self._plan(candidate)
        length = harness.reference.base.length
        ranges = Ranges() if candidate.dynamic else Ranges((1, 1), (1, 1), (length, length))
        parts = {}
        for stage in names:
            name, _, mode = stage.partition(":")
            own, label = resolve_submodule(plan, name), f"{_called(candidate)}: building {stage}"
            backend = _backend(candidate, mode)
            parts[name] = part = harness.build(
                name, own, candidate.optimizations, ranges=ranges, backend=backend, label=label
            )
            if not part.built.runs:
                raise BackendError(f"{name}: {candidate.backend} engines cannot run on this machine")
        return parts


def upon_stages(candidate: Candidate) -> tuple[Candidate, tuple[str, ...]]:
    """Of a candidate with only some stages on its backend: the one with a stage less, and that stage."""
    *fewer, last = candidate.stages
    other = candidate.backend if fewer else BACKENDS[candidate.backend].falls_back or "eager"
    return replace(candidate, backend=other, stages=tuple(fewer)), (last,)


def _called(candidate: Candidate) -> str:
    """A candidate in a progress message."""
    return " ".join(part for part in (candidate.backend, candidate.mode, candidate.precision) if part)


def not_here(backend: str) -> str | None:
    """Why a backend cannot be used on this machine; None where it can."""
    found = get_backend(backend).availability()
    return None if found.installed else f"{backend}: {found.reason}"


def not_in(candidate: Candidate, plan: Plan, device: torch.device) -> str | None:
    """Why a candidate's own precision cannot be measured in a run of this plan; None where it can, or it has none."""
    if candidate.precision is None:
        return None
    row = PRECISIONS[candidate.precision]
    if plan.precision != row.carrier and (device.type != "cpu" or plan.precision != "fp32"):
        return f"{row.name}: what is not quantised stays in {row.carrier}, and this run is in {plan.precision}"
    if device.type != "cuda":
        if row.name != "int8" or speed().int8:
            return None
        return f"int8: not exact on this CPU, or not clearly faster than fp32; one product in ms: {speed().said()}"
    capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
    if row.computes_on(capability):
        return None
    return f"{row.name}: its products need compute capability {row.least_capability}, and this GPU has {capability}"


def about_quantized(variant: Variant) -> tuple[str, ...]:
    """What was done to a variant in a quantised precision, in a sentence; nothing for another."""
    done = [part.quantized for part in variant.parts.values() if part.quantized is not None]
    if not done:
        return ()
    layers, kept = sum(one.layers or 0 for one in done), sum(len(one.kept) for one in done)
    share = sum(one.weight_bytes or 0 for one in done) / max(sum(one.half_bytes or 0 for one in done), 1)
    told = f"{done[0].format}: {layers} of {layers + kept} linear layers of {len(done)} submodules, which take "
    return (f"{told}{100 * share:.0f} % of their 16-bit bytes; calibrated on {done[0].frames} requests of this run",)


def _backend(candidate: Candidate, stage_mode: str) -> Backend:
    """For one stage, in a mode of its own where it names one. Raises: BackendError for one that is not installed."""
    mode = candidate.mode or "default"
    if candidate.backend != "inductor":
        backend = get_backend(candidate.backend)
        backend = type(backend)(stage_mode) if stage_mode else backend
    else:
        backend = TunedInductor(mode, candidate.settings) if candidate.settings else InductorBackend(mode)
    found = backend.availability()
    if not found.installed:
        raise BackendError(f"{candidate.backend}: {found.reason}")
    return backend
