"""How long rows take: before they are taken, from what was timed so far; and before a run, on the GPU known best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..record.result import REQUEST, Candidate, Workload
from ..record.samples import MINIMUM_FOR_VERDICT
from .rows import CALLS_OF_PERCENTILES, PLAIN, REPLAYS, Row, setting_of
from .variants import upon_stages

SEARCH_MODE = "max-autotune-no-cudagraphs"
BUILD_S_PER_LAYER = {"cuda": {"default": 0.6, SEARCH_MODE: 2.5}, "cpu": {"default": 1.5}}
"""Seconds of compiling per transformer layer by mode, until the first build shows what they are here."""
BUILD_S_OF_KERNELS = {"denoise_step": 32.0, "vision_model:chain": 14.0, "language_model:chain": 16.0}
"""Of stages that are all kernels: these are compiled once for all layers."""

ROW_S = {"cuda": 12.0, "cpu": 30.0}
"""How long the calls of one row may take, unless the fewest take longer."""

AROUND_S = {"cuda": 2.0, "cpu": 0.0}
"""What a row takes besides its calls: its capture, check and kernel table."""

PREPARE_S = 38.0
"""Importing, making weights, running references and calibrating, on the GPU that `expected` is about."""


@dataclass
class Estimates:
    """What rows take on one machine.

    Attributes:
        kind: ``cuda`` or ``cpu``.
        layers: Transformer layers by the stage that they are compiled with.
        original_s: One call of the original model at the base workload.
        fastest_s: One call of the fastest graph so far at the base workload; None until one was timed.
        timed_s: What calls of (what is timed, candidate, workload) took, without what was timed in turn with them.
        correction: How much longer builds take than the table says.
    """

    kind: str
    layers: Mapping[str, int]
    original_s: float
    fastest_s: float | None = None
    timed_s: dict[tuple[str, Candidate, Workload], float] = field(default_factory=dict)
    correction: float = 1.0

    def learn(self, row: Row, seconds: float) -> None:
        """A call of the row's candidate took so long."""
        self.timed_s[row.of, row.candidate, row.workload] = seconds
        if row.candidate.graph and row.of == "model" and row.workload == Workload():
            self.fastest_s = min(seconds, self.fastest_s or seconds)

    def learn_build(self, expected_s: float, seconds: float) -> None:
        """A build took so long; code from a cache takes next to nothing, and what is not in it does not."""
        self.correction = max(0.25, self.correction * seconds / expected_s)

    def build_s(self, candidate: Candidate, made: Iterable[Candidate] = ()) -> float:
        """Seconds until a candidate can be called.

        Args:
            made: What is there already; a graph replays what was built without one.
        """
        bare = replace(candidate, graph=False)
        if (candidate.backend == "eager" and candidate.precision is None) or {candidate, bare} & set(made):
            return 0.0
        tried, names = setting_of(candidate), tuple(self.layers)
        if tried is not None:
            names = tried.stages
        elif candidate.stages:
            before, names = upon_stages(candidate)
            if before not in made and before.stages:
                return self.build_s(before, made) + self._compiling_s(candidate, names)
        return self._compiling_s(candidate, names)

    def _compiling_s(self, candidate: Candidate, names: Iterable[str]) -> float:
        table, tried = BUILD_S_PER_LAYER[self.kind], setting_of(candidate)
        mode = SEARCH_MODE if tried is not None and tried.searches else candidate.mode or "default"
        seconds = 0.0
        for name in names:
            # In other stages the kernels are of attention alone, and torch.compile does the rest.
            if candidate.stages and name in BUILD_S_OF_KERNELS:
                seconds += BUILD_S_OF_KERNELS[name]
            else:
                seconds += table.get(mode, table["default"]) * self.layers[name]
        # Ranges that begin at one take two graphs.
        return self.correction * seconds * (2 if candidate.dynamic else 1)

    def round_s(self, row: Row) -> float:
        """Seconds of one call of each candidate that the row times in turn."""
        if row.of not in ("model", REQUEST, "loop", "replay", "split"):
            return self.original_s / 2
        own = self.timed_s.get(("model", row.candidate, row.workload)) or self._call_s(row.candidate, row.workload)
        if row.of == "replay":
            return 3 * own
        if row.beside is not None and row.candidate == PLAIN:
            return own + self._call_s(row.beside, row.workload)
        return own if row.alone else self._call_s(PLAIN, row.workload) + own

    def _call_s(self, candidate: Candidate, work: Workload) -> float:
        if candidate.graph and self.fastest_s is not None:
            return self.fastest_s * (0.7 + 0.3 * work.batch) * (0.75 + 0.25 * work.views) * (0.6 + 0.1 * work.steps)
        return self.original_s * work.batch * (1 + 0.75 * (work.views - 1)) * (0.65 + 0.35 * work.steps / 4)

    def rounds(self, row: Row, left_s: float) -> tuple[int, int]:
        """Timed calls of each, and untimed ones before.

        Args:
            left_s: What is left of the budget.
        """
        each = self.round_s(row)
        if row.calls == CALLS_OF_PERCENTILES and self.kind == "cpu":
            return row.calls, 5
        fitting = (ROW_S[self.kind] - AROUND_S[self.kind]) / max(each, 1e-9)
        calls = max(MINIMUM_FOR_VERDICT, int(fitting) - replays_of(row))
        if row.priority == 0:
            # The first row is worth having with fewer calls: it says so itself, and gives no verdict.
            calls = max(1, min(calls, int(left_s / 2 / max(each, 1e-9))))
        return min(row.calls, calls), 1 if each > 2 else 5

    def row_s(self, row: Row, left_s: float) -> float:
        """Seconds of a row beside its build."""
        if row.absent is not None:
            return 0.0
        calls, warmup = self.rounds(row, left_s)
        return AROUND_S[self.kind] + self.round_s(row) * (calls + warmup + 1 + replays_of(row))


def replays_of(row: Row) -> int:
    """Replays of a row's graph besides its calls: back to back, and with events right round them."""
    if row.of == "split":
        return CALLS_OF_PERCENTILES
    return 2 * REPLAYS if row.of == "model" and row.candidate.graph else 0


@dataclass(frozen=True)
class Expected:
    """One row of a budget: when it begins, and what its build and the rest of it take, in seconds."""

    row: Row
    at_s: float
    build_s: float
    row_s: float


def expected(rows: Sequence[Row]) -> list[Expected]:
    """The rows of a GPU in the order in which they are taken, with the seconds that they should take on an H200."""
    layers = {"vision_model": 27, "language_model": 12, "vl_components": 4, "denoise_step": 16}
    known = Estimates("cuda", layers, original_s=0.055, fastest_s=0.0072)
    out, at, made = [], PREPARE_S, set[Candidate]()
    for row in sorted(rows, key=lambda row: row.priority):
        build = 0.0 if row.absent else known.build_s(row.candidate, made)
        out.append(Expected(row, at, build, known.row_s(row, 1e9)))
        at += build + out[-1].row_s
        made |= set() if row.absent else {row.candidate, replace(row.candidate, graph=False)}
    return out
