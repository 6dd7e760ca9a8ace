"""Several backends on the same submodules and the same request: built, checked, timed in turn, and the best chosen."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..backends import get_backend
from ..backends.guarded import first_line
from ..compile.build import Compiled, build_submodule, set_precision
from ..engines.cache import EngineCache
from ..errors import Gr00tError
from ..plans.load import ResolvedSubmodule, plan_to_mapping, resolve
from ..record import records
from ..record.records import WHOLE_REQUEST
from .choose import beaten_by, leader, winner, with_choice
from .stages import PeakMemory
from .timers import Samples, verdict
from .trial import Rival, Trial, bound

BASELINE = "eager"
PLAIN, AUTO_PLAN = "plain", "auto"
"""What stands in a backend's place where a whole request is compared: see `records.COMPARISON_FIELDS`."""

Assignment = Mapping[str, str]
"""Compile target -> backend."""


@dataclass
class Tried:
    """What became of one backend on one subject.

    Attributes:
        entry: Its entry in the record.
        done: What was built; None where that failed, and for what cannot run here, whose memory is given back.
        latency: None unless it was timed.
    """

    entry: dict[str, Any]
    done: Compiled | None = None
    latency: Samples | None = None


class Comparison:
    """Tries backends on a trial's submodules and requests, and fills the record's `comparison`.

    One thing is built at a time, and what cannot run on this machine is dropped once it was checked. What runs is
    kept, for the whole request needs all of it at once: the most memory that is held is one copy of the weights for
    PyTorch and one for each backend that keeps its own.

    Args:
        trial: Past `reference`; its model is cast to the plan's precisions here.
        candidates: Compile target -> the backends to try on it. A single one is not up for comparison: it was chosen
            by the user, and its failure is an error.
        engine_dir: Engines go into a folder in it for each backend, as their file names are the same.
        cache: Where engines are kept; None builds every one, as a comparison of build times must.
        only_running: Once something built with a backend turned out not to run here, build no more of it.
    """

    def __init__(
        self,
        trial: Trial,
        candidates: Mapping[str, tuple[str, ...]],
        engine_dir: Path | None,
        *,
        cache: EngineCache | None,
        only_running: bool,
    ):
        self.trial, self.candidates, self.only_running = trial, candidates, only_running
        self.engine_dir, self.cache = engine_dir, cache
        self.backends = tuple(dict.fromkeys(b for own in candidates.values() if len(own) > 1 for b in own))
        self.tried: dict[str, dict[str, Tried]] = {}
        self.requests: dict[str, Tried] = {}
        self._unable: dict[str, str] = {}
        for backend in self.backends:
            found = get_backend(backend).availability()
            if not found.installed:
                self._unable[backend] = f"not available here: {found.reason}"
            for caveat in found.caveats:
                records.skip(trial.result, backend, caveat)

    def compare_submodules(self) -> None:
        """Build every submodule with each of its backends, hold it against eager fp32, and time those that run."""
        set_precision(self.trial.model, self.trial.plan)
        for number, (name, backends) in enumerate(self.candidates.items(), 1):
            place = f"{name} ({number} of {len(self.candidates)})"
            self.tried[name] = {backend: self._try(name, backend, place) for backend in backends}
            calls = {
                backend: bound(tried.done.built.call, tried.done.target.inputs)
                for backend, tried in self.tried[name].items()
                if tried.done is not None and tried.done.built.runs
            }
            if calls:
                self.trial.steps.step(f"{place}: timing {' against '.join(calls)}")
                self._finish(self.tried[name], self.trial.measure(calls))
            self._keep(self.tried[name])

    def _settled(self, name: str) -> bool:
        return len(self.candidates[name]) == 1

    def _try(self, name: str, backend: str, place: str) -> Tried:
        resolved = replace(resolve(self.trial.plan, name), backend=backend)
        tried = Tried(records.comparison_entry(name, backend, precision=resolved.precision))
        if backend in self._unable and not self._settled(name):
            tried.entry["why_not"] = self._unable[backend]
            return tried
        tried.entry["why_not"] = self._build(tried, name, resolved, place)
        if tried.entry["runs"] is False and not self._settled(name):
            tried.done = None
            if self.only_running:
                self._unable[backend] = f"not built: what was built for {name} cannot run on this machine"
        if tried.done is None:
            gc.collect()  # graphs and modules hold each other, and an engine is large
        return tried

    def _build(self, tried: Tried, name: str, resolved: ResolvedSubmodule, place: str) -> str | None:
        """Build and check one submodule with one backend; what went wrong, if something did."""
        trial, backend = self.trial, resolved.backend
        try:
            with PeakMemory(trial.device) as memory:
                done = build_submodule(
                    trial.model,
                    name,
                    resolved,
                    trial.recording,
                    trial.dims,
                    engine_dir=self.engine_dir / backend if self.engine_dir else None,
                    progress=lambda phase: trial.steps.step(f"{place}, {backend}: {phase}"),
                    cache=self.cache,
                )
        except Exception as error:  # a compiler may fail in any way, and the other backends are not to blame
            if self._settled(name):
                raise
            return str(error).splitlines()[0] if isinstance(error, Gr00tError) else first_line(error)
        tried.done = done
        built = records.built_fields(done.built)
        taken_over = ("runs", "build_s", "engine_bytes", "layers_before", "layers_after", "coverage_percent", "notes")
        tried.entry.update({field: built[field] for field in taken_over})
        tried.entry.update(
            peak_bytes=memory.added_bytes,
            accuracy=done.agreement.to_dict(),
            passed=not done.failures,
            failures=done.failures,
        )
        return None

    def compare_requests(self, assignments: Mapping[str, Assignment]) -> None:
        """The whole request, observation to actions, by each assignment that runs here and by the plain model.

        Args:
            assignments: Name to show -> compile target -> backend; ``eager`` is what the others are held against.
        """
        trial = self.trial
        rivals: dict[str, Rival] = {}
        before = dict(trial.model.stages)
        if trial.model is not trial.plain:
            rivals[PLAIN] = (trial.plain, trial.eager)
            self.requests[PLAIN] = Tried(self._request_entry(PLAIN))
        for label, assignment in assignments.items():
            self.requests[label] = Tried(self._request_entry(label))
            table = self._assemble(self.requests[label].entry, assignment)
            if table is not None:
                rivals[label] = (trial.model, {**before, **table})
        try:
            for label, (model, stages) in rivals.items():
                trial.steps.step(f"whole request, {label}: comparing the actions with eager fp32")
                self._check(self.requests[label].entry, model, stages)
        finally:
            trial.model.stages.update(before)
        if rivals:
            trial.steps.step(f"whole request: timing {' against '.join(rivals)}")
            self._finish(self.requests, trial.measure_requests(rivals)[0])
        self._keep(self.requests)

    def _request_entry(self, label: str) -> dict[str, Any]:
        return records.comparison_entry(WHOLE_REQUEST, label, precision=self.trial.plan.precision)

    def _assemble(self, entry: dict[str, Any], assignment: Assignment) -> dict[str, Any] | None:
        """The stages of an assignment, and its cost added up; None, and why, where it cannot run."""
        parts = {name: self.tried[name][backend] for name, backend in assignment.items()}
        for name, part in parts.items():
            if part.entry["why_not"]:
                entry["why_not"] = f"{name}: {part.entry['why_not']}"
                return None
        for field in ("build_s", "engine_bytes", "layers_before", "layers_after"):
            known = [part.entry[field] for part in parts.values() if part.entry[field] is not None]
            entry[field] = sum(known) if known else None
        entry["runs"] = all(part.entry["runs"] for part in parts.values())
        if not entry["runs"]:
            return None
        return {name: part.done.built.call for name, part in parts.items() if part.done is not None}

    def _check(self, entry: dict[str, Any], model: Any, stages: Mapping[str, Any]) -> None:
        with PeakMemory(self.trial.device) as memory:
            actions = self.trial.actions_of(model, stages)
        agreement, failures = self.trial.judge_actions(actions)
        entry.update(
            runs=True,
            peak_bytes=memory.added_bytes,
            accuracy=agreement.to_dict(),
            passed=not failures,
            failures=failures,
        )

    def _finish(self, rivals: Mapping[str, Tried], taken: Mapping[str, Samples]) -> None:
        """Latencies, verdicts and the best into the entries of one subject."""
        for label, samples in taken.items():
            tried = rivals[label]
            tried.latency = samples
            tried.entry["latency_ms"] = samples.to_dict()
            against = PLAIN if label == BASELINE else BASELINE
            if against in taken and label != PLAIN:
                tried.entry["verdict"] = verdict(taken[against], samples, names=(against, label)).to_dict()
        best = leader(eligible(rivals))
        for label in taken:
            rivals[label].entry["best"] = label == best

    def _keep(self, rivals: Mapping[str, Tried]) -> None:
        self.trial.result["comparison"] += [tried.entry for tried in rivals.values()]

    def choose(self) -> Assignment:
        """The fastest backend of each submodule, unless one backend for all makes a faster request.

        Comes after `compare_submodules`, and compares requests itself. A missed gate rules a backend out, and so does
        not running here; where latencies leave it open, the simplest wins.
        """
        mixed = {name: self._winner(name) for name in self.candidates}
        in_doubt = [name for name, own in self.tried.items() if len(eligible(own)) > 1 and not leader(eligible(own))]
        if in_doubt:
            why = f"nothing is the fastest at {', '.join(in_doubt)} beyond doubt: the simplest in question was taken"
            records.skip(self.trial.result, "backend auto", why)
        assignments: dict[str, Assignment] = {
            backend: {name: backend if backend in own else own[0] for name, own in self.candidates.items()}
            for backend in self.backends
        }
        label = next((b for b, single in assignments.items() if single == mixed), AUTO_PLAN)
        assignments[label] = mixed
        self.compare_requests(assignments)
        fit = {
            other: latency
            for other, latency in eligible(self.requests).items()
            if other != PLAIN and all(self.tried[n][b].entry["passed"] for n, b in assignments[other].items())
        }
        better = fit if label not in fit else {other: fit[other] for other in beaten_by(label, fit)}
        if not better:
            return mixed
        final = winner(better)
        records.skip(
            self.trial.result,
            "backend auto",
            f"the fastest backends of the submodules do not make the best request; {final} for all of them does",
        )
        return assignments[final]

    def _winner(self, name: str) -> str:
        if self._settled(name):
            return self.candidates[name][0]
        latencies = eligible(self.tried[name])
        return winner(latencies) if latencies else BASELINE

    def hand_over(self, chosen: Assignment) -> None:
        """Let the trial go on with what was chosen, already built and timed, and give back the memory of the rest."""
        trial = self.trial
        trial.plan = with_choice(trial.plan, chosen)
        trial.result["plan"] = plan_to_mapping(trial.plan)
        for name, backend in chosen.items():
            rivals = self.tried[name]
            done = rivals[backend].done
            assert done is not None  # what cannot run is never chosen, and what the user chose is kept
            latencies = {"eager": rivals.get(BASELINE), "compiled": None if backend == BASELINE else rivals[backend]}
            taken = {role: own.latency for role, own in latencies.items() if own is not None and own.latency}
            trial.adopt(name, done, taken)
        self.tried.clear()
        gc.collect()


def eligible(rivals: Mapping[str, Tried]) -> dict[str, Samples]:
    """Latencies of those that run here and pass their gates."""
    return {label: tried.latency for label, tried in rivals.items() if tried.latency and tried.entry["passed"]}
