"""A measuring run: rows by priority while the budget lasts, one record kept up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console

from ..backends.guarded import first_line
from ..common.devices import choose_device, side_stream
from ..common.progress import Steps, progress
from ..errors import PlanError
from ..plans.backends import get_backend
from ..plans.load import plan_to_mapping
from ..plans.schema import Plan
from ..plans.submodules import select
from ..policy.source import Source
from ..record.environment import ROOT
from ..record.files import prepare_record, write_record
from ..record.result import Workload
from ..record.schema import Inputs, ModelInfo, Record, new_record
from .budget import Budget, OutOfTime
from .calibrate import take_calibration
from .compile_cache import CompileCache
from .harness import Harness
from .memory import GpuMeter, MemoryMeter
from .reference import take_reference
from .rows import ALL, COMPILED, Row, planned
from .sweep import Sweep
from .timers import host_adds_us
from .variants import not_in
from .work import Counter, to_count
from .workloads import Requests

NOT_REACHED = "not reached: the run ended before"
EPISODE_ROWS = 8


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; `program.parser` explains each."""

    folder: Path
    budget_s: float
    source: Source
    device: str | None = None
    precision: str | None = None
    seed: int = 0
    command: str = ""
    cache: Path | None = None


def rows_for(kind: str) -> list[Row]:
    """The rows of a run on this machine for ``cuda`` or ``cpu``."""
    names = select("all", Plan(backend="inductor", optimizations=ALL, loop=COMPILED.loop))
    engines = kind == "cuda" and get_backend("torch_tensorrt").availability().installed
    return planned(kind, names, tensorrt=engines)


def run(wanted: Wanted, console: Console) -> tuple[Record, Path]:
    """Measure what there is time for.

    Returns: The record, and its path, to which it was written after every row.
    Raises: Gr00tError for what keeps every row from being measured; a row's own failure stands in its result.
    """
    budget = Budget(wanted.budget_s)
    device = choose_device(wanted.device)
    precision = wanted.precision or ("bf16" if device.type == "cuda" else "fp32")
    rows = rows_for(device.type)
    path = wanted.folder / _file_name(wanted.source.model_path, precision, device)
    prepare_record(path)
    record = _new_record(wanted, device, precision, rows)
    cache = CompileCache(wanted.cache, device) if wanted.cache is not None else None
    memory, gpu = MemoryMeter(device), GpuMeter(device)

    def save() -> str | None:
        return cache.save() if cache is not None else None

    def close(why: str) -> None:
        if (said := save()) is not None:
            record.skip("compile cache", said)
        record.peak_memory, record.telemetry, record.wall_s = memory.result(), gpu.result(), budget.spent
        record.exit_reason = why
        write_record(record, path)

    try:
        with memory, gpu, progress(console) as steps, side_stream(device):
            with budget.enforced():
                if cache is not None:
                    record.skip("compile cache", cache.load())
                harness, requests, counter = _prepare(wanted, device, precision, rows, record, steps)
                record.host_adds_us = host_adds_us(device)
                steps.step("timing one call of eager PyTorch")
                sweep = Sweep(harness, requests, counter, budget, meter=gpu, built=save)
            budget.check()  # a destructor may have swallowed what `enforced` raised
            failed = sweep.take_all(rows, record, path)
        ended = "a row failed" if failed else "done"
    except OutOfTime:
        ended = f"the budget of {budget.seconds:g} s ended before the first row"
    except BaseException as error:
        close("interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error))
        raise
    close(ended)
    return record, path


def _file_name(model_path: str, precision: str, device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = f"measured {Path(model_path).name} {precision} {where}"
    return "-".join("".join(c if c.isalnum() else " " for c in words).lower().split()) + ".json"


def _new_record(wanted: Wanted, device: torch.device, precision: str, rows: Sequence[Row]) -> Record:
    work, about = Workload(), f"{Path(str(wanted.source.dataset_path)).name}, episode 0"
    inputs = Inputs(work.views, work.batch, None, work.steps, wanted.seed, about)
    plan, model = plan_to_mapping(Plan(precision=precision)), ModelInfo(wanted.source.model_path)
    record = new_record(wanted.command, root=ROOT, device=str(device), plan=plan, model=model, inputs=inputs)
    empty = (row.result(precision) for row in rows)
    record.results = [result if result.why else replace(result, why=NOT_REACHED) for result in empty]
    if device.type == "cpu":
        record.skip(
            "GPU rows",
            "no GPU was used: one CUDA graph, torch.compile's CUDA graph modes, kernel counts and the share of the "
            "roofline are not measured; `gr00t-trt measure --list cuda` shows what a GPU would be asked",
        )
    return record


def _prepare(
    wanted: Wanted, device: torch.device, precision: str, rows: Sequence[Row], record: Record, steps: Steps
) -> tuple[Harness, Requests, Counter]:
    source, plan = wanted.source, Plan(precision=precision)
    steps.step(f"reading observations: {source.dataset_path}")
    dataset = source.dataset()
    length = dataset.episodes[0].length or EPISODE_ROWS
    frames = [(dataset.episodes[0].index, i) for i in range(min(length, EPISODE_ROWS))]
    observations = [dataset.step(*frame) for frame in frames]
    policy = replace(source, denoising_steps=Workload().steps).policy(device, steps)
    requests = Requests(policy, observations, wanted.seed)
    base = requests.get(Workload())
    if base.images != base.workload.views:
        raise PlanError(
            f"--data_config {source.data_config}: {base.images} views",
            known="data configs with one view; the rows add views by themselves",
        )
    record.model = ModelInfo(source.model_path, asdict(policy.model.config))
    record.inputs = replace(record.inputs, sequence_length=base.length)
    counter = Counter(policy.model.config, precision, requests.inputs)
    with counter.ahead(*to_count(rows)):
        # In fp32 the weights stay what they are, and what is needed is worked out when it is.
        known = precision == "fp32"
        further = [] if known else [requests.get(row.workload) for row in rows]
        sets = [] if known else [row.candidate.optimizations for row in rows if row.candidate.backend != "eager"]
        reference = take_reference(policy, base, sets, steps, further=further)
        quantized = any(row.candidate.precision and not_in(row.candidate, plan, device) is None for row in rows)
        calibration = take_calibration(policy, requests, source, dataset, frames, steps) if quantized else None
        harness = Harness(reference, plan, steps, calibration)
        steps.step("counting operators and FLOPs")
    return harness, requests, counter
