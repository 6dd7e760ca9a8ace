"""What a measuring run tries: its rows in the order in which they are shown, each with its priority.

Rows are taken by priority, so that a run that ends early has lost the least. On a GPU, which may be lent for minutes,
the order is: the fastest form with all that can be asked of it, what needs no further build, new forms, other sizes,
settings, and last what takes a whole search or an eager model. All of it fits into ten minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from ..plans.schema import OPTIMIZATIONS
from ..record.result import Candidate, Result, Status, Workload
from ..report.views import counted

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
        candidate: Its precision is the run's where it has none.
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
        candidate = replace(self.candidate, precision=self.candidate.precision or precision)
        subject = "replay" if self.of == "split" else self.of
        empty = Result(self.group, self.name, subject, candidate, self.workload)
        return empty if self.absent is None else replace(empty, status=Status.UNAVAILABLE, why=self.absent)


PLAIN = Candidate()
OURS = Candidate(optimizations=ALL)
COMPILED_PLAIN = Candidate(backend="inductor", mode="default")
COMPILED = Candidate(backend="inductor", mode="default", optimizations=ALL, loop="denoise_step")
BEST = replace(COMPILED, graph=True)
"""The fastest form so far: what new forms and settings are compared with, and eager PyTorch is timed in turn with."""
KERNELS = replace(BEST, backend="triton", stages=("denoise_step",))
"""`BEST` with the kernels that were written for the transformer of a step."""
VISION_KERNELS = replace(KERNELS, stages=(*KERNELS.stages, "vision_model"))
LANGUAGE_KERNELS = replace(KERNELS, stages=(*VISION_KERNELS.stages, "language_model"))
ALL_KERNELS = replace(KERNELS, stages=(*LANGUAGE_KERNELS.stages, "vl_components"))
"""One stage more in each: these three have kernels of attention, and torch.compile does the rest of them."""
VISION_CHAIN = replace(KERNELS, stages=(*ALL_KERNELS.stages, "vision_model:chain"))
CHAINS = replace(KERNELS, stages=(*VISION_CHAIN.stages, "language_model:chain"))
"""Of these two stages products and norms are kernels, too."""

FP8, FP8_KERNELS, FP8_ALL_KERNELS = (replace(form, precision="fp8") for form in (BEST, KERNELS, ALL_KERNELS))
"""In 8 bits: language model, vision tower, self-attention over both, and the transformer of a step."""


@dataclass(frozen=True)
class Setting:
    """Options of torch.compile that are tried together.

    Attributes:
        options: As `settings.unknown_setting` knows them.
        stages: What is compiled with them, so that a build takes seconds; the rest is the fastest form's.
        searches: Products are searched for, which takes as long as in a max-autotune mode.
    """

    options: tuple[str, ...]
    stages: tuple[str, ...]
    searches: bool = False


_SEARCH = ("max_autotune_gemm", "max_autotune_gemm_backends=ATEN,TRITON")
_TMA = ("triton.enable_persistent_tma_matmul", "triton.enable_template_tma_store")
_CUT = ("triton.decompose_k_threshold=2", "products.long_linear=false")
_SMALL = ("triton.multi_kernel=1", "triton.cooperative_reductions", "combo_kernels", "triton.skip_l1_cache")
SETTINGS = {
    "keys and values repeated": Setting(("products.grouped_attention=false",), ("language_model",)),
    "programmatic dependent launch": Setting(("triton.enable_pdl",), ("denoise_step",)),
    "tuned pointwise kernels": Setting(("coordinate_descent_tuning", "max_autotune_pointwise"), ("language_model",)),
    "several small ones": Setting(_SMALL, ("language_model",)),
    "searched products, TMA, cut along K": Setting((*_SEARCH, *_TMA, *_CUT), ("vl_components",), searches=True),
}
"""Row -> what it tries, on a stage that has what it is about. What is shipped has none of them switched on.

The products of a step are not searched for: its transformer has kernels of its own. A search takes minutes where there
are many layers, so it is tried on four.
"""


def setting_of(candidate: Candidate) -> Setting | None:
    """What a candidate tries besides its mode; None for one that tries nothing."""
    return next((one for one in SETTINGS.values() if one.options == candidate.settings), None)


FORMS = {
    "the DiT on its own Triton kernels": KERNELS,
    "DiT and ViT attention kernels": VISION_KERNELS,
    "DiT, ViT and LLM attention kernels": LANGUAGE_KERNELS,
    "DiT and all attention kernels": ALL_KERNELS,
    "FP8": FP8,
    "FP8, the DiT on its own Triton kernels": FP8_KERNELS,
    "FP8, DiT and all attention kernels": FP8_ALL_KERNELS,
    "all attention kernels, ViT in a chain": VISION_CHAIN,
    "ViT and LLM in a chain": CHAINS,
}
"""New forms of the model, each built upon one before it. Each is compared with the fastest so far A B A."""
WHOLE_CALLS = (KERNELS, ALL_KERNELS, FP8_ALL_KERNELS)
"""Those of which a thousand whole calls are timed, too."""

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
    late = {name: form for name, form in FORMS.items() if form in (VISION_CHAIN, CHAINS)}
    taken = [
        Row("waterfall", "+ one CUDA graph", BEST, calls=CALLS_OF_PERCENTILES),
        Row("split", "every stage a graph of its own", BEST, of="split", calls=200),
        Row("request", "get_action, numpy to numpy", BEST, of="request", calls=200),
        Row("waterfall", "eager PyTorch", PLAIN, calls=20, beside=BEST),
        *(Row("steps", counted(n, "denoising step"), BEST, workload=Workload(steps=n), calls=200) for n in (1, 2, 8)),
        *(row for name, form in FORMS.items() if name not in late for row in _of_form(name, form)),
        *(Row("views", counted(n, "view"), dynamic, workload=Workload(views=n), calls=100) for n in (1, 2, 3)),
        *(Row("batch", f"batch {n}", dynamic, workload=Workload(batch=n), calls=100) for n in (2, 4, 8)),
        *(row for name, form in late.items() for row in _of_form(name, form)),
        *(_compared(name, replace(BEST, settings=setting.options), 40) for name, setting in SETTINGS.items()),
        *(_engines() if tensorrt else ()),
        *(Row("waterfall", f"+ {name}", Candidate(optimizations=ALL[:n]), calls=8) for n, name in enumerate(ALL, 1)),
        Row("waterfall", "+ torch.compile", COMPILED, calls=8),
    ]
    numbered = [replace(row, priority=place, alone=True) for place, row in enumerate(taken)]
    return sorted(numbered, key=_shown)


def _of_form(name: str, candidate: Candidate) -> tuple[Row, ...]:
    whole = (Row("forms", name, candidate, calls=CALLS_OF_PERCENTILES),) if candidate in WHOLE_CALLS else ()
    return (*whole, _compared(name, candidate, 100))


def _compared(name: str, candidate: Candidate, calls: int) -> Row:
    """A B A against the fastest form."""
    return Row("settings", name, candidate, of="replay", calls=calls, beside=BEST)


def _engines() -> tuple[Row, ...]:
    engines = Candidate("torch_tensorrt", optimizations=ALL, loop="denoise_step")
    graphed = Row("compile", "Torch-TensorRT, one CUDA graph", replace(engines, graph=True), calls=300)
    return Row("compile", "Torch-TensorRT", engines, calls=15), graphed


def _shown(row: Row) -> tuple[int, int, bool, bool]:
    """Where a row stands in the record: steps of the waterfall after those that they stand on."""
    made = row.candidate
    return _ON_GPU.index(row.group), len(made.optimizations), made.backend != "eager", made.graph


def _on_cpu(submodules: tuple[str, ...]) -> list[Row]:
    request = partial(Row, of="request", calls=10)
    sized = partial(Row, candidate=OURS, calls=10)
    before = [(f"+ {name}", Candidate(optimizations=ALL[:count])) for count, name in enumerate(ALL[:-1], 1)]
    return [
        # Timed in turn with the restructured model, the first row that is taken, and so taken after it for nothing.
        request("waterfall", "eager PyTorch", PLAIN, 1),
        *(request("waterfall", name, candidate, 6) for name, candidate in before),
        request("waterfall", f"+ {ALL[-1]}", OURS, 0),
        request("waterfall", "+ torch.compile", COMPILED, 2),
        Row("loop", "denoising loop, restructured", OURS, 1, "loop"),
        Row("loop", "denoising loop, restructured, torch.compile", COMPILED, 2, "loop"),
        Row("loop", "denoising loop, plain, torch.compile", COMPILED_PLAIN, 4, "loop"),
        request("compile", "plain, torch.compile default", COMPILED_PLAIN, 3),
        request("forms", "int8", replace(OURS, precision="int8"), 3),
        *(Row("submodules", f"{name}, torch.compile", COMPILED, 4, name, calls=10) for name in submodules),
        *(sized("steps", counted(n, "denoising step"), priority=7, workload=Workload(steps=n)) for n in (1, 2, 8)),
        *(sized("views", counted(n, "view"), priority=7, workload=Workload(views=n)) for n in (2, 3)),
        sized("batch", "batch 8", priority=8, workload=Workload(batch=8)),
        Row("percentiles", "1,000 calls", OURS, 9, "request", calls=CALLS_OF_PERCENTILES, alone=True),
    ]
