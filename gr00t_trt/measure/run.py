"""A measuring run: model and requests made ready, rows taken by importance, one record kept up to date."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from ..backends import get_backend
from ..backends.guarded import first_line
from ..common.devices import choose_device, side_stream
from ..common.progress import Steps, progress
from ..compile.submodules import select
from ..errors import PlanError
from ..model.n1_5.inputs import IDS, PIXELS
from ..plans.load import plan_to_mapping, resolve_action_gate
from ..plans.schema import Plan
from ..policy.policy import load_policy
from ..record import records
from ..report.names import OUTSIDE
from ..run.job import ROOT, Job, open_dataset
from .bench import Bench, to_count
from .budget import Budget, OutOfTime
from .forms import Forms
from .rows import ALL, COMPILED, PLAIN, Row, Workload, planned
from .stages import PeakMemory
from .work import Counter
from .workloads import Requests

NOT_REACHED = "not reached: the run ended before"
EPISODE_ROWS = 8


@dataclass(frozen=True)
class Request:
    """What the command line asks for; `program.parser` explains each."""

    folder: Path
    budget_s: float
    model_path: str = "synthetic:full"
    dataset_path: str = "synthetic"
    data_config: str = "fourier_gr1_arms_only"
    embodiment_tag: str = "gr1"
    device: str | None = None
    precision: str | None = None
    seed: int = 0
    command: str = ""


def rows_for(kind: str) -> list[Row]:
    """The rows of a run on this machine for ``cuda`` or ``cpu``."""
    names = select("all", Plan(backend="inductor", optimisations=ALL, loop=COMPILED.loop))
    engines = kind == "cuda" and get_backend("torch_tensorrt").availability().installed
    return planned(kind, names, tensorrt=engines)


def run(request: Request, console: Console) -> tuple[dict[str, Any], Path]:
    """Measure what there is time for.

    Returns: The record, and its path, to which it was written after every row.
    Raises: Gr00tError for what keeps every row from being measured; a row's own failure stands in its entry.
    """
    budget = Budget(request.budget_s)
    device = choose_device(request.device)
    precision = request.precision or ("bf16" if device.type == "cuda" else "fp32")
    rows = rows_for(device.type)
    path = request.folder / _file_name(request.model_path, precision, device)
    records.prepare_record(path)
    result = _new_record(request, device, precision, rows)
    memory = PeakMemory(device)
    try:
        with memory, progress(console) as steps, side_stream(device):
            with budget.enforced():
                bench, forms = _prepare(request, device, precision, rows, result, budget, steps)
            failed = _take_all(rows, bench, forms, budget, result, path, steps)
        ended = "a row failed" if failed else "done"
    except OutOfTime:
        ended = f"the budget of {budget.seconds:g} s ended before the first row"
    except BaseException as error:
        _close(
            result, path, budget, memory, "interrupted" if isinstance(error, KeyboardInterrupt) else first_line(error)
        )
        raise
    _close(result, path, budget, memory, ended)
    return result, path


def _close(result: dict[str, Any], path: Path, budget: Budget, memory: PeakMemory, why: str) -> None:
    result["peak_memory"] = memory.to_dict()
    result["wall_s"] = budget.spent
    result["exit_reason"] = why
    records.write_record(result, path)


def _file_name(model_path: str, precision: str, device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    words = f"measured {Path(model_path).name} {precision} {where}"
    return "-".join("".join(c if c.isalnum() else " " for c in words).lower().split()) + ".json"


def _new_record(request: Request, device: torch.device, precision: str, rows: Sequence[Row]) -> dict[str, Any]:
    result = records.new_record(
        request.command,
        root=ROOT,
        device=str(device),
        plan=plan_to_mapping(Plan(precision=precision)),
        model={"path": request.model_path},
        workload={"dataset": f"{Path(request.dataset_path).name}, episode 0", "seed": request.seed, **_base()},
    )
    result["measurements"] = [
        records.measurement_entry(row.group, row.name, settings=row.settings(), why_not=NOT_REACHED) for row in rows
    ]
    result["accuracy"]["gate"] = asdict(resolve_action_gate(Plan(precision=precision)))
    if device.type == "cpu":
        records.skip(
            result,
            "GPU rows",
            "no GPU was used: one CUDA graph, torch.compile's CUDA graph modes, kernel counts and the share of the "
            "roofline are not measured; `gr00t-trt measure --list cuda` shows what a GPU would be asked",
        )
    return result


def _base() -> dict[str, int]:
    work = asdict(Workload())
    return {"views": work["views"], "batch_size": work["batch"], "denoising_steps": work["steps"]}


def _prepare(
    request: Request,
    device: torch.device,
    precision: str,
    rows: Sequence[Row],
    result: dict[str, Any],
    budget: Budget,
    steps: Steps,
) -> tuple[Bench, Forms]:
    steps.step(f"reading observations: {request.dataset_path}")
    job = Job(dataset_path=request.dataset_path, data_config=request.data_config)
    dataset = open_dataset(job)
    length = dataset.episodes[0].length or EPISODE_ROWS
    observations = [dataset.step(dataset.episodes[0].index, i) for i in range(min(length, EPISODE_ROWS))]
    steps.step(f"loading the model: {request.model_path}")
    policy = load_policy(
        request.model_path,
        data_config=request.data_config,
        embodiment_tag=request.embodiment_tag,
        denoising_steps=Workload().steps,
        device=device,
    )
    requests = Requests(policy, observations, request.seed)
    inputs = requests.inputs(Workload())
    if len(inputs[PIXELS]) != Workload().views:
        raise PlanError(
            f"--data_config {request.data_config}: {len(inputs[PIXELS])} views",
            known="data configs with one view; the rows add views by themselves",
        )
    result["model"]["config"] = asdict(policy.model.config)
    result["workload"]["sequence_length"] = inputs[IDS].shape[1]
    workloads = list(dict.fromkeys(row.workload for row in rows))
    counter = Counter(policy.model.config, precision, requests.inputs)
    with counter.ahead(*to_count(rows)):
        forms = Forms(policy, requests, precision, workloads, steps.step)
        steps.step("counting operators and FLOPs")
    steps.step("timing one call of eager PyTorch")
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return Bench(forms, counter, gpu, budget), forms


def _take_all(
    rows: Sequence[Row],
    bench: Bench,
    forms: Forms,
    budget: Budget,
    result: dict[str, Any],
    path: Path,
    steps: Steps,
) -> bool:
    """Fill in the entries of all rows, in order of importance; returns whether one of them failed."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].importance)
    failed = False
    for done, i in enumerate(order):
        row, entry = rows[i], result["measurements"][i]
        entry["why_not"] = bench.why_not(row)
        if entry["why_not"] is None:
            steps.step(f"{row.group}: {row.name} ({done + 1} of {len(rows)}, {budget.left:.0f} s left)")
            try:
                with budget.enforced():
                    found = bench.take(row)
            except OutOfTime:
                entry["why_not"] = f"no time: it was begun, and the budget of {budget.seconds:.0f} s ended"
            except Exception as error:  # whatever one form does must not cost the others
                entry["why_not"] = f"failed: {first_line(error)}"
                failed = True
            else:
                entry.update(found.fields)
                entry["notes"] += [f"{OUTSIDE}: {text}" for text in found.failures]
                failed = failed or bool(found.failures)
        forms.keep_only({PLAIN, *(rows[j].candidate for j in order[done + 1 :])})
        records.write_record(result, path)
    return failed
