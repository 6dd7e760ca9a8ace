"""What a result is called, and what it is held against, wherever it is shown. Never imports torch."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ..plans.backends import BACKENDS
from ..plans.precisions import PRECISIONS
from ..plans.schema import OPTIMIZATIONS, SUBMODULES
from ..record.files import read_record
from ..record.result import REQUEST, Baseline, Result, Status
from ..record.samples import Samples
from ..record.schema import Record

WHOLE = "whole request"

GROUPS = {
    "waterfall": "step by step, each with all before it",
    "split": "the graph of a request, back to back",
    "loop": "the denoising steps alone",
    "request": "`get_action`, from numpy to numpy",
    "percentiles": "a thousand calls",
    "forms": "new forms",
    "settings": "settings of torch.compile, A B A",
    "compile": "ways to compile",
    "submodules": "submodule by submodule, against the same one in PyTorch",
    "steps": "denoising steps",
    "views": "views",
    "batch": "batch",
}
"""Group of a measuring run -> its heading, in the order of the tables."""

SAME_WORK = ("waterfall", "forms", "compile")
"""Groups whose results all do the same work, so that their latencies may be held against each other."""

ALL = "all optimizations"

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

NOT_RUN = "built, not run: its engine cannot run on this machine"


@dataclass(frozen=True)
class Loaded:
    """A record among those that are shown together.

    Attributes:
        name: Short, and different from the others'.
        path: As it was given.
        place: From 0.
        tag: What to call it beside others: ``#2``, or its name where it is alone.
    """

    name: str
    path: str
    record: Record
    place: int = 0
    tag: str = ""

    @property
    def machine(self) -> str:
        """What the model ran on: the GPU, or the CPU and its cores."""
        known = self.record.environment
        if self.record.on_gpu:
            return known.gpu or known.board or "GPU"
        return f"{known.cpu or 'CPU'}, {known.cpu_cores or '?'} cores"

    @property
    def views(self) -> list[View]:
        """Every result of the record as it is shown."""
        return [View(self, result) for result in self.record.results]


def load(paths: Sequence[str]) -> list[Loaded]:
    """Read records, in the order given; the same file twice counts once.

    Raises: RecordError naming the file, and the field where one is at fault.
    """
    return together([(path, read_record(path)) for path in dict.fromkeys(paths)])


def together(given: Iterable[tuple[str, Record]]) -> list[Loaded]:
    """Records that are shown together, each with a name of its own."""
    taken: dict[str, int] = {}
    named = []
    for path, record in given:
        stem = Path(path).stem
        taken[stem] = taken.get(stem, 0) + 1
        named.append((stem if taken[stem] == 1 else f"{stem} ({taken[stem]})", path, record))
    tags = [f"#{place + 1}" for place in range(len(named))] if len(named) > 1 else [name for name, _, _ in named]
    return [Loaded(*own, place, tag) for place, (own, tag) in enumerate(zip(named, tags, strict=True))]


@dataclass(frozen=True)
class View:
    """A result of a record."""

    one: Loaded
    result: Result

    @property
    def latency(self) -> Samples | None:
        return self.result.latency_ms

    @property
    def p50(self) -> float | None:
        return None if self.latency is None else self.latency.p50

    @property
    def share(self) -> float | None:
        """Of the roofline, in percent."""
        return self.result.roofline.percent if self.result.roofline else None

    @property
    def measured(self) -> bool:
        """Whether it is of a measuring run."""
        return self.result.group not in ("run", "comparison")

    @property
    def whole(self) -> bool:
        """Whether it is a whole request of a run or a comparison."""
        return self.result.subject == REQUEST and not self.measured

    @property
    def what(self) -> str:
        """The subject, or for a measuring run its group."""
        return self.result.group if self.measured else WHOLE if self.whole else self.result.subject

    @property
    def form(self) -> str | None:
        """How the model was made; None for the plain model in eager PyTorch."""
        made = self.result.candidate
        done = len(made.optimizations)
        if not done:
            return None
        # Records of the first schema counted in ten smaller steps.
        every = max(len(OPTIMIZATIONS), *(len(r.candidate.optimizations) for r in self.one.record.results))
        parts = [ALL if done == every else f"{done} of {every} optimizations"]
        quantized = made.precision in PRECISIONS and PRECISIONS[made.precision].quantized
        parts += [made.precision if quantized and made.precision else ""]
        parts += [title(made.backend) if made.backend != "eager" else "", "one CUDA graph" if made.graph else ""]
        return ", ".join(part for part in parts if part)

    @property
    def step(self) -> str:
        """Its name beside those before it: a step of the waterfall stands on them, the last one on all."""
        return f"{self.result.name} ({ALL})" if self._adds_optimization and self.form == ALL else self.result.name

    @property
    def between(self) -> bool:
        """Whether it is a step of the waterfall on the way to all optimizations."""
        return self._adds_optimization and self.form not in (None, ALL)

    @property
    def _adds_optimization(self) -> bool:
        made = self.result.candidate
        eager = made.backend == "eager" and not made.graph and bool(made.optimizations)
        return self.result.group == "waterfall" and eager and self.result.name.startswith("+ ")

    @property
    def label(self) -> str:
        """Its name where it is read alone: backend and precision, or what was measured and not what was added last."""
        name, made, group = self.result.name, self.result.candidate, self.result.group
        if not self.measured:
            restructured = (
                self.whole and made.optimizations and group == "run" and name not in ("restructured", "original")
            )
            text = " ".join(part for part in (name, made.precision) if part) or "unnamed"
            return f"{text}, restructured" if restructured else text
        if self.form is None:
            return name
        if group == "waterfall":
            return self.form
        return f"{name} ({self.form})" if group in ("request", "percentiles") else name

    @property
    def tagged(self) -> str:
        """The label, and of several records which one."""
        return self.label if self.one.tag == self.one.name else f"{self.label} {self.one.tag}"

    @property
    def why(self) -> str | None:
        """Why there is no latency; None where there is one."""
        if self.latency is not None:
            return None
        return NOT_RUN if self.result.status is Status.BUILT_NOT_RUN else self.result.why or "not measured"

    @property
    def reason(self) -> str | None:
        """`why`, in the same words for all that there was no time for: how much was left differs from row to row."""
        late = self.latency is None and self.result.status is Status.NO_TIME
        return "there was no time left for it" if late else self.why

    @property
    def baseline(self) -> Samples | None:
        """What its latency is held against: of whole calls the one baseline of their table, the original as it was
        timed for the result that is it; else what was timed interleaved with the result.
        """
        against = self.result.against
        if against is not None and against.baseline is not Baseline.ORIGINAL:
            return against.latency_ms
        original = self._original if against is not None or self.measured else None
        return original or (against.latency_ms if against else None)

    @property
    def _original(self) -> Samples | None:
        """The original model on the same work, as another result of the record."""
        for other in self.one.record.results:
            made = other.candidate
            plain = made.backend == "eager" and not made.optimizations and not made.graph and other.against is None
            same = (other.subject, other.workload) == (self.result.subject, self.result.workload)
            if other is self.result or not plain or not same or other.latency_ms is None:
                continue
            if self.measured or other.group == self.result.group:
                return other.latency_ms
        return None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as its baseline: above 1, faster."""
        base = self.baseline
        return None if self.p50 is None or base is None or self.p50 <= 0 else base.p50 / self.p50

    @property
    def doubtful(self) -> bool:
        """Whether interleaved timing named no winner; of what was timed alone, whether the spreads overlap."""
        if self.ratio is None or self.result.won:
            return False
        base, own = self.baseline, self.latency
        return self.result.against is not None or base is None or own is None or own.meets(base)


def title(backend: str) -> str:
    """What people call a backend."""
    return BACKENDS[backend].title if backend in BACKENDS else backend


def color(backend: str) -> str:
    """Of a backend in charts, as ``#rrggbb``."""
    return BACKENDS[backend].color if backend in BACKENDS else {"original": "#5c6670"}.get(backend, "#56B4E9")


def listed(loaded: Iterable[Loaded]) -> list[View]:
    """Whole requests of all records, then submodules in the order in which a request passes through them; what a choice
    took over from its comparison is listed once.
    """
    out = []
    for one in loaded:
        own = [view for view in one.views if not view.measured]
        seen = {(v.what, v.result.name, v.result.candidate.precision) for v in own if v.result.group == "comparison"}
        for view in own:
            key = (view.what, view.result.name, view.result.candidate.precision)
            if view.result.group == "comparison" or key not in seen:
                out += [*_baseline_of(view), view]
    rank = {subject: i for i, subject in enumerate((WHOLE, *SUBMODULES))}
    return sorted(out, key=lambda view: rank.get(view.what, len(rank)))


def _baseline_of(view: View) -> list[View]:
    """The baseline of a run's result as a result of its own, which it is where backends are compared."""
    result = view.result
    if result.group != "run" or result.against is None:
        return []
    made = result.candidate
    name = "original" if result.against.baseline is Baseline.ORIGINAL else "eager"
    plain = type(made)("eager", made.precision, () if name == "original" else made.optimizations, made.loop)
    latency = result.against.latency_ms
    timed = Result("run", name, result.subject, plain, result.workload, Status.MEASURED, latency_ms=latency)
    return [View(view.one, timed)]


def rows_of(loaded: Iterable[Loaded], *groups: str) -> list[View]:
    """The results of measuring runs, of these groups or all, in the order of the records."""
    views = (view for one in loaded for view in one.views if view.measured)
    return [view for view in views if not groups or view.result.group in groups]


def rivals(one: Loaded) -> list[View]:
    """The timed results of a record that did the same work: its whole requests, or where it has none, the rows of a
    measuring run in `SAME_WORK`, without the steps between no optimization and all of them.
    """
    whole = [view for view in listed([one]) if view.whole and view.latency]
    return whole or [view for view in rows_of([one], *SAME_WORK) if view.latency and not view.between]


def in_short(loaded: Iterable[Loaded]) -> list[View]:
    """The rows that sum a measuring run up: eager, all optimizations and what came on top, and the whole request."""
    rows = rows_of(loaded, "waterfall", "percentiles", "request")
    return [view for view in rows if view.latency and not view.between]


def fastest(views: Iterable[View]) -> list[View]:
    """Sorted by p50; for views with a latency."""
    return sorted(views, key=lambda view: view.p50 or 0.0)


def grouped(pairs: Iterable[tuple[Key, Value]]) -> dict[Key, list[Value]]:
    """The values of each key, in the order of the first ones."""
    out: dict[Key, list[Value]] = {}
    for key, value in pairs:
        out.setdefault(key, []).append(value)
    return out


def several(texts: Sequence[str], most: int = 8) -> str:
    rest = len(texts) - most
    return ", ".join(texts[:most]) + (f" and {rest} more" if rest > 0 else "")


def told(form: str, value: object) -> str:
    """`form` filled in; an empty text for None."""
    return "" if value is None else form.format(value)


def counted(number: int | None, one: str) -> str:
    return told("{} " + (one if number == 1 else one + "s"), number)
