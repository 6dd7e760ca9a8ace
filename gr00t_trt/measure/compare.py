"""Several backends on the same submodules and the same request: built, checked, timed, and the best chosen."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..backends.guarded import first_line
from ..engines.cache import EngineCache
from ..errors import Gr00tError
from ..plans.backends import AUTO
from ..plans.resolve import Resolved
from ..record.result import REQUEST, Against, Baseline, Build, Candidate, Result, Status
from ..record.samples import Samples
from .choose import beaten_by, leader, winner
from .harness import Harness
from .results import Part, Variant

ORIGINAL = "original"
"""The name of the model as it was published among the whole requests of a comparison."""

Assignment = Mapping[str, str]
"""Compile target -> backend."""


@dataclass(frozen=True, eq=False)
class Tried:
    """One backend on one subject.

    Attributes:
        part: What was built; None where that failed, and for what cannot run here, whose memory is given back.
    """

    result: Result
    part: Part | None = None


Rivals = dict[str, Tried]
"""Backend -> what became of it, on one subject."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A backend for each target, and what the whole requests of a comparison were."""

    assignment: Assignment
    requests: Rivals
    notes: tuple[tuple[str, str], ...]


class Comparison:
    """Tries backends on a harness's submodules and requests.

    One thing is built at a time, and what cannot run on this machine is dropped once it was checked. What runs is
    kept, for the whole request needs all of it at once: the most memory that is held is one copy of the weights for
    PyTorch and one for each backend that keeps its own.

    Args:
        resolved: Its candidates are tried. A single one is not up for comparison: it was chosen by the user, and its
            failure is an error.
        cache: Where engines are kept; None builds every one, as a comparison of build times must. Engines go into a
            folder in `resolved.engine_dir` for each backend, as their file names are the same.
        only_running: Once something built with a backend turned out not to run here, build no more of it.
    """

    def __init__(self, harness: Harness, resolved: Resolved, *, cache: EngineCache | None, only_running: bool):
        self.harness, self.resolved = harness, resolved
        self.cache, self.only_running = cache, only_running
        self.backends = tuple(dict.fromkeys(b for own in resolved.candidates.values() if len(own) > 1 for b in own))
        self._unable = {b: f"not available here: {why}" for b, why in resolved.unavailable.items()}

    def submodules(self) -> dict[str, Rivals]:
        """Build every submodule with each of its backends, hold it against eager fp32, and time those that run."""
        tried: dict[str, Rivals] = {}
        for number, (name, backends) in enumerate(self.resolved.candidates.items(), 1):
            place = f"{name} ({number} of {len(self.resolved.candidates)})"
            rivals = {backend: self._try(name, backend, place) for backend in backends}
            calls = {b: one.part.call for b, one in rivals.items() if one.part is not None and one.part.built.runs}
            if calls:
                self.harness.steps.step(f"{place}: timing {' against '.join(calls)}")
            latencies = self.harness.interleaved(calls, self.resolved.plan.benchmark) if calls else {}
            tried[name] = _finished(rivals, latencies, Baseline.STAGE, "eager")
        return tried

    def _try(self, name: str, backend: str, place: str) -> Tried:
        own = replace(self.resolved[name], backend=backend)
        plan = self.resolved.plan
        candidate = Candidate(backend, own.precision, plan.optimizations, plan.loop)
        untried = Result("comparison", backend, name, candidate, self.harness.reference.base.workload)
        if backend in self._unable and not self.resolved.settled(name):
            return Tried(replace(untried, status=Status.UNAVAILABLE, why=self._unable[backend]))
        folder, label = self.resolved.engine_dir, f"{place}, {backend}"
        folder = folder / backend if folder else None
        try:
            part = self.harness.build(name, own, plan.optimizations, engine_dir=folder, cache=self.cache, label=label)
        except Exception as error:  # a compiler may fail in any way, and the other backends are not to blame
            if self.resolved.settled(name):
                raise
            why = str(error).splitlines()[0] if isinstance(error, Gr00tError) else first_line(error)
            part = None
        if part is None:
            gc.collect()
            return Tried(replace(untried, status=Status.FAILED, why=why))
        result = self.harness.part_result(part, "comparison")
        if part.built.runs or self.resolved.settled(name):
            return Tried(result, part)
        if self.only_running:
            self._unable[backend] = f"not built: what was built for {name} cannot run on this machine"
        del part
        gc.collect()  # graphs and modules hold each other, and an engine is large
        return Tried(result)

    def requests(self, tried: Mapping[str, Rivals], assignments: Mapping[str, Assignment]) -> Rivals:
        """The whole request by each assignment that runs here, and by the original model.

        Args:
            assignments: Name to show -> compile target -> backend.
        """
        harness, base = self.harness, self.harness.reference.base
        plan = self.resolved.plan
        rivals: Rivals = {}
        variants: dict[str, Variant] = {}
        if plan.optimizations:
            variants[ORIGINAL] = harness.original
            rivals[ORIGINAL] = Tried(harness.request_result(ORIGINAL, harness.original, None, "comparison"))
        for label, assignment in assignments.items():
            candidate = Candidate(label, plan.precision, plan.optimizations, plan.loop)
            rivals[label], variant = self._assembled(candidate, {n: tried[n][b] for n, b in assignment.items()})
            if variant is not None:
                variants[label] = variant
        try:
            for label, variant in variants.items():
                harness.steps.step(f"whole request, {label}: comparing the actions with eager fp32")
                checked = harness.check(variant, base)
                result = harness.request_result(label, variant, checked, "comparison")
                # A backend that builds nothing took no time for that.
                rivals[label] = Tried(replace(result, build=rivals[label].result.build, first_call_ms=None))
        finally:
            harness.restore()
        latencies: Mapping[str, Samples] = {}
        if variants:
            harness.steps.step(f"whole request: timing {' against '.join(variants)}")
            latencies = harness.time(variants, base, plan.benchmark, split=False).latencies
        return _finished(rivals, latencies, Baseline.ORIGINAL, ORIGINAL if ORIGINAL in variants else "eager")

    def _assembled(self, candidate: Candidate, own: Rivals) -> tuple[Tried, Variant | None]:
        """A whole request of these parts with their cost added up, and how to call it where it can run."""
        work = self.harness.reference.base.workload
        result = Result("comparison", candidate.backend, REQUEST, candidate, work)
        for name, one in own.items():
            if one.result.status in (Status.UNAVAILABLE, Status.FAILED):
                return Tried(replace(result, status=one.result.status, why=f"{name}: {one.result.why}")), None
        builds = [one.result.build for one in own.values() if one.result.build is not None]
        result = replace(result, build=Build.total(builds), status=Status.BUILT_NOT_RUN)
        parts = {name: one.part for name, one in own.items() if one.part is not None and one.part.built.runs}
        if len(parts) < len(own):
            return Tried(result), None
        return Tried(replace(result, status=Status.CHECKED)), self.harness.variant(candidate, parts)

    def choose(self, tried: Mapping[str, Rivals]) -> Choice:
        """The fastest backend of each submodule, unless one backend for all makes a faster request.

        A missed gate rules a backend out, and so does not running here; where latencies leave it open, the simplest
        wins.
        """
        candidates = self.resolved.candidates
        # What the user chose stays; what no backend can run stays in eager PyTorch.
        fastest = {name: winner(fit) if (fit := eligible(rivals)) else "eager" for name, rivals in tried.items()}
        mixed = {name: candidates[name][0] if self.resolved.settled(name) else fastest[name] for name in tried}
        notes = []
        in_doubt = [name for name, own in tried.items() if len(eligible(own)) > 1 and not leader(eligible(own))]
        if in_doubt:
            why = f"nothing is the fastest at {', '.join(in_doubt)} beyond doubt: the simplest in question was taken"
            notes.append(("backend auto", why))
        assignments: dict[str, Assignment] = {
            backend: {name: backend if backend in own else own[0] for name, own in candidates.items()}
            for backend in self.backends
        }
        label = next((b for b, single in assignments.items() if single == mixed), AUTO)
        assignments[label] = mixed
        requests = self.requests(tried, assignments)
        fit = {
            other: latency
            for other, latency in eligible(requests).items()
            if other != ORIGINAL and all(tried[n][b].result.passed for n, b in assignments[other].items())
        }
        better = fit if label not in fit else {other: fit[other] for other in beaten_by(label, fit)}
        if not better:
            return Choice(mixed, requests, tuple(notes))
        final = winner(better)
        why = f"the fastest backends of the submodules do not make the best request; {final} for all of them does"
        return Choice(assignments[final], requests, (*notes, ("backend auto", why)))


def eligible(rivals: Rivals) -> dict[str, Samples]:
    """Latencies of those that run here and pass their gates."""
    timed = {label: one.result for label, one in rivals.items() if one.result.passed}
    return {label: result.latency_ms for label, result in timed.items() if result.latency_ms}


def _finished(rivals: Rivals, latencies: Mapping[str, Samples], baseline: Baseline, reference: str) -> Rivals:
    """The same with latencies, verdicts against the baseline and the best of the subject."""
    out, base = dict(rivals), latencies.get(reference)
    for label, own in latencies.items():
        against = Against.of(baseline, base, own, label) if base and label != reference else None
        result = replace(out[label].result, latency_ms=own, status=Status.MEASURED, against=against)
        out[label] = replace(out[label], result=result)
    best = leader(eligible(out))
    for label in latencies:
        out[label] = replace(out[label], result=replace(out[label].result, best=label == best))
    return out
