"""What a measuring run tries: its rows in the order in which they are shown, each with its priority.

Rows are taken by priority, so that a run that ends early has lost the least.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..plans.schema import OPTIMIZATIONS
from ..record.result import Candidate, Result, Workload

ALL = tuple(OPTIMIZATIONS)
CALLS_OF_PERCENTILES = 1000

BASE = Workload()
"""What the released demonstrations need."""


@dataclass(frozen=True)
class Row:
    """One result of a measuring run, before it is measured.

    Attributes:
        group, name: As in the record.
        of: What is timed: ``model`` (inputs resident on the device), ``request`` (`get_action`, from numpy to numpy),
            ``loop`` (the denoising steps alone, within the calls that were timed for another row of the candidate), or
            the name of a submodule.
        priority: Lower ones are measured first.
        calls: Timed calls of each, if there is time for them.
        alone: Eager PyTorch is not timed in turn with it: of a thousand calls, its own would take nearly all the time.
    """

    group: str
    name: str
    candidate: Candidate
    priority: int
    of: str = "model"
    workload: Workload = BASE
    calls: int = 50
    alone: bool = False

    def result(self, precision: str) -> Result:
        """The result while nothing of it is known."""
        candidate = replace(self.candidate, precision=precision)
        return Result(self.group, self.name, self.of, candidate, self.workload)


PLAIN = Candidate()
OURS = Candidate(optimizations=ALL)
COMPILED_PLAIN = Candidate(backend="inductor", mode="default")
COMPILED = Candidate(backend="inductor", mode="default", optimizations=ALL, loop="denoise_step")


def planned(device: str, submodules: tuple[str, ...], *, tensorrt: bool = False) -> list[Row]:
    """The rows for a kind of device, in the order of the record.

    Args:
        device: ``cuda`` or ``cpu``.
        submodules: Compile targets of the restructured model, from `submodules.select`.
        tensorrt: Torch-TensorRT is installed, and its engines run here.
    """
    return _on_gpu(submodules, tensorrt) if device == "cuda" else _on_cpu(submodules)


def _waterfall(of: str, calls: int, priority: int) -> list[Row]:
    """Eager, then one optimization more in each row; the last row is the restructured model in eager PyTorch."""
    # Timed in turn with the last row, and so taken after it for nothing.
    rows = [Row("waterfall", "eager PyTorch", PLAIN, 1, of, calls=calls)]
    for count, name in enumerate(ALL, 1):
        candidate, first = Candidate(optimizations=ALL[:count]), count == len(ALL)
        rows.append(Row("waterfall", f"+ {name}", candidate, 0 if first else priority, of, calls=calls))
    return rows


def _on_gpu(submodules: tuple[str, ...], tensorrt: bool) -> list[Row]:
    best = replace(COMPILED, graph=True)
    tuned = replace(best, mode="max-autotune-no-cudagraphs")
    dynamic = replace(best, dynamic=True)
    rows = _waterfall("model", 50, 5)
    rows += [
        Row("waterfall", "+ torch.compile", COMPILED, 2, calls=200),
        Row("waterfall", "+ one CUDA graph", best, 2, calls=200),
        Row("percentiles", "1,000 calls", best, 3, calls=CALLS_OF_PERCENTILES, alone=True),
        Row("request", "get_action, numpy to numpy", best, 3, "request", calls=200),
        Row("loop", "denoising loop, restructured", OURS, 4, "loop"),
        Row("loop", "denoising loop, restructured, torch.compile", COMPILED, 4, "loop"),
        Row("compile", "restructured, one CUDA graph, not compiled", Candidate(optimizations=ALL, graph=True), 4),
        Row("compile", "plain, torch.compile default", COMPILED_PLAIN, 7),
        Row("compile", "plain, torch.compile reduce-overhead", replace(COMPILED_PLAIN, mode="reduce-overhead"), 8),
        Row("compile", "plain, torch.compile max-autotune", replace(COMPILED_PLAIN, mode="max-autotune"), 11),
        Row("compile", "restructured, max-autotune, one CUDA graph", tuned, 10),
    ]
    if tensorrt:
        engines = Candidate("torch_tensorrt", optimizations=ALL, loop="denoise_step")
        rows += [
            Row("compile", "restructured, Torch-TensorRT", engines, 7),
            Row("compile", "restructured, Torch-TensorRT, one CUDA graph", replace(engines, graph=True), 7),
        ]
    rows += [Row("submodules", f"{name}, torch.compile", COMPILED, 6, name) for name in submodules]
    rows += [Row("steps", _counted(n, "denoising step"), best, 6, workload=Workload(steps=n)) for n in (1, 2, 8)]
    rows += [Row("views", _counted(n, "view"), dynamic, 9, workload=Workload(views=n)) for n in (1, 2, 3)]
    rows += [Row("batch", "batch 8", dynamic, 9, workload=Workload(batch=8), calls=20)]
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
