"""What a measuring run tries: its rows in the order in which they are shown, each with its priority.

Rows are taken by priority, so that a run that ends early has lost the least. On a GPU, which may be lent for minutes,
the order is: the fastest form with all that can be asked of it, what needs no further build, new forms, other sizes,
settings, and last what takes a whole search or an eager model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..plans.schema import OPTIMIZATIONS
from ..record.result import Candidate, Result, Status, Workload

ALL = tuple(OPTIMIZATIONS)
CALLS_OF_PERCENTILES = 1000
REPLAYS = 100
"""Of a graph whose whole calls are timed: so many back to back, and so many with events right round them."""

BASE = Workload()
"""What the released demonstrations need."""


@dataclass(frozen=True)
class Row:
    """One result of a measuring run, before it is measured.

    Attributes:
        group, name: As in the record.
        of: What is timed: ``model`` (inputs resident on the device), ``request`` (`get_action`, from numpy to numpy),
            ``loop`` (the denoising steps alone, within the calls that were timed for another row of the candidate),
            ``replay`` (the candidate's graph against that of `beside`, A B A), ``split`` (its stages as graphs of their
            own), or the name of a submodule.
        priority: Lower ones are measured first.
        calls: Timed calls of each, if there is time for them.
        alone: Eager PyTorch is not timed in turn with it.
        beside: The candidate that it is compared with, or that eager PyTorch is timed in turn with.
        absent: Why there is nothing to measure yet; None for a row that can be taken.
    """

    group: str
    name: str
    candidate: Candidate
    priority: int = 0
    of: str = "model"
    workload: Workload = BASE
    calls: int = 50
    alone: bool = False
    beside: Candidate | None = None
    absent: str | None = None

    def result(self, precision: str) -> Result:
        """The result while nothing of it is known."""
        candidate = replace(self.candidate, precision=precision)
        subject = "replay" if self.of == "split" else self.of
        empty = Result(self.group, self.name, subject, candidate, self.workload)
        return empty if self.absent is None else replace(empty, status=Status.UNAVAILABLE, why=self.absent)


PLAIN = Candidate()
OURS = Candidate(optimizations=ALL)
COMPILED_PLAIN = Candidate(backend="inductor", mode="default")
COMPILED = Candidate(backend="inductor", mode="default", optimizations=ALL, loop="denoise_step")
BEST = replace(COMPILED, graph=True)
"""The fastest form so far: what new forms and settings are compared with, and eager PyTorch is timed in turn with."""
SEARCHED = replace(BEST, mode="max-autotune-no-cudagraphs")

KERNELS = replace(BEST, backend="triton")
"""`BEST` with the kernels that were written for the transformer of a step."""

SETTINGS = {
    "programmatic dependent launch": ("triton.enable_pdl",),
    "coordinate descent tuning": ("coordinate_descent_tuning",),
}
"""Row -> options of torch.compile, which are tried on `TUNED` alone."""

TUNED = ("vision_model", "denoise_step")
"""The stages that settings are tried on: they have most of the kernels, and take half of what a build of all takes."""

NOT_BUILT = "not built yet"

FORMS = (
    Row("forms", "the DiT on its own Triton kernels", KERNELS, calls=CALLS_OF_PERCENTILES, beside=BEST),
    Row("forms", "FP8 form", BEST, calls=CALLS_OF_PERCENTILES, beside=BEST, absent=NOT_BUILT),
)
"""New forms of the model: to measure one, name its candidate here and leave `absent` out. It is then compared A B A."""

_ON_GPU = ("waterfall", "split", "request", "forms", "settings", "compile", "steps", "views", "batch")
"""Groups of a GPU's rows, in the order of the record."""


def planned(device: str, submodules: tuple[str, ...], *, tensorrt: bool = False) -> list[Row]:
    """The rows for a kind of device, in the order of the record.

    Args:
        device: ``cuda`` or ``cpu``.
        submodules: Compile targets of the restructured model, from `submodules.select`; a CPU times them one by one.
        tensorrt: Torch-TensorRT is installed, and its engines run here.
    """
    return _on_gpu(tensorrt) if device == "cuda" else _on_cpu(submodules)


def _on_gpu(tensorrt: bool) -> list[Row]:
    dynamic = replace(BEST, dynamic=True)
    taken = [
        Row("waterfall", "+ one CUDA graph", BEST, calls=CALLS_OF_PERCENTILES),
        Row("split", "every stage a graph of its own", BEST, of="split", calls=200),
        Row("request", "get_action, numpy to numpy", BEST, of="request", calls=200),
        Row("waterfall", "eager PyTorch", PLAIN, calls=20, beside=BEST),
        *(Row("steps", _counted(n, "denoising step"), BEST, workload=Workload(steps=n), calls=200) for n in (1, 2, 8)),
        *FORMS,
        *(Row("views", _counted(n, "view"), dynamic, workload=Workload(views=n), calls=300) for n in (1, 2, 3)),
        *(Row("batch", f"batch {n}", dynamic, workload=Workload(batch=n), calls=100) for n in (1, 2, 4, 8)),
        *(_compared(form.name, form.candidate) for form in FORMS if form.absent is None),
        *(_compared(name, replace(BEST, settings=options)) for name, options in SETTINGS.items()),
        Row("compile", "max-autotune, one CUDA graph", SEARCHED, calls=300),
        _compared("max-autotune", SEARCHED),
        *(_engines() if tensorrt else ()),
        *(Row("waterfall", f"+ {name}", Candidate(optimizations=ALL[:n]), calls=15) for n, name in enumerate(ALL, 1)),
        Row("waterfall", "+ torch.compile", COMPILED, calls=15),
    ]
    numbered = [replace(row, priority=place, alone=True) for place, row in enumerate(taken)]
    return sorted(numbered, key=_shown)


def _compared(name: str, candidate: Candidate) -> Row:
    """A B A against the fastest form."""
    return Row("settings", name, candidate, of="replay", calls=200, beside=BEST)


def _engines() -> tuple[Row, ...]:
    engines = Candidate("torch_tensorrt", optimizations=ALL, loop="denoise_step")
    graphed = Row("compile", "Torch-TensorRT, one CUDA graph", replace(engines, graph=True), calls=300)
    return Row("compile", "Torch-TensorRT", engines, calls=15), graphed


def _shown(row: Row) -> tuple[int, int, bool, bool]:
    """Where a row stands in the record: steps of the waterfall after those that they stand on."""
    made = row.candidate
    return _ON_GPU.index(row.group), len(made.optimizations), made.backend != "eager", made.graph


def _waterfall(of: str, calls: int, priority: int) -> list[Row]:
    """Eager, then one optimization more in each row; the last row is the restructured model in eager PyTorch."""
    # Timed in turn with the last row, and so taken after it for nothing.
    rows = [Row("waterfall", "eager PyTorch", PLAIN, 1, of, calls=calls)]
    for count, name in enumerate(ALL, 1):
        candidate, first = Candidate(optimizations=ALL[:count]), count == len(ALL)
        rows.append(Row("waterfall", f"+ {name}", candidate, 0 if first else priority, of, calls=calls))
    return rows


def _on_cpu(submodules: tuple[str, ...]) -> list[Row]:
    rows = _waterfall("request", 10, 6)
    rows += [
        Row("waterfall", "+ torch.compile", COMPILED, 2, "request", calls=10),
        Row("loop", "denoising loop, restructured", OURS, 1, "loop"),
        Row("loop", "denoising loop, restructured, torch.compile", COMPILED, 2, "loop"),
        Row("loop", "denoising loop, plain, torch.compile", COMPILED_PLAIN, 4, "loop"),
        Row("compile", "plain, torch.compile default", COMPILED_PLAIN, 3, "request", calls=10),
    ]
    rows += [Row("submodules", f"{name}, torch.compile", COMPILED, 4, name, calls=10) for name in submodules]
    rows += [
        Row("steps", _counted(n, "denoising step"), OURS, 7, workload=Workload(steps=n), calls=10) for n in (1, 2, 8)
    ]
    rows += [Row("views", _counted(n, "view"), OURS, 7, workload=Workload(views=n), calls=10) for n in (2, 3)]
    rows += [Row("batch", "batch 8", OURS, 8, workload=Workload(batch=8), calls=10)]
    rows += [Row("percentiles", "1,000 calls", OURS, 9, "request", calls=CALLS_OF_PERCENTILES, alone=True)]
    return rows


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
