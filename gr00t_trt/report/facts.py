"""What a record says of its run, beside its results: machine, versions, commit, plan, memory, telemetry. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..record.numbers import digits
from ..record.schema import Record
from .columns import (
    DASH,
    Cell,
    Table,
)
from .views import Loaded, counted


def facts_table(loaded: Sequence[Loaded]) -> Table:
    """The machine, the versions and the work of each record, one column a record."""
    rows = []
    for name, value_of in FACTS.items():
        values = [value_of(one) for one in loaded]
        if any(values):
            cells = [value if isinstance(value, Cell) else Cell(str(value or DASH)) for value in values]
            rows.append((Cell(name, mark="strong"), *cells))
    heads = ("", *(one.tag for one in loaded))
    return Table("What the figures were taken with", heads, tuple(rows), texts=len(heads))


def work_of(record: Record) -> str:
    """The inputs of a run in words."""
    given = record.inputs
    parts = [
        counted(given.views, "view") if given.views is not None else "",
        f"batch {given.batch_size}" if given.batch_size is not None else "",
        counted(given.sequence_length, "token") if given.sequence_length is not None else "",
        counted(given.denoising_steps, "step") if given.denoising_steps is not None else "",
        f"seed {given.seed}" if given.seed is not None else "",
    ]
    return ", ".join(part for part in parts if part)


def versions_of(record: Record, *names: str) -> str:
    """The packages that were used, with their versions; of these names alone where there are any."""
    known = record.environment.distributions
    return ", ".join(f"{n} {v}" for n, v in known.items() if v and (not names or n in names))


def _unit(value: float | None, unit: str, scale: float = 1.0) -> str | None:
    return None if value is None else f"{digits(value * scale)} {unit}".strip()


def _form(one: Loaded) -> str:
    record = one.record
    if record.measured:
        return "many: each row of the measuring run says its own"
    names = record.setting("optimizations")
    return f"restructured: {', '.join(names)}; loop as {record.setting('loop') or DASH}" if names else "plain"


def _plan(one: Loaded) -> str:
    record = one.record
    parts = (record.plan_path, record.setting("backend"), record.setting("precision"))
    return str(record.setting("precision")) if record.measured else " ".join(str(part) for part in parts if part)


def _commit(one: Loaded) -> Cell | None:
    git = one.record.git
    if git.commit is None:
        return None
    return Cell(
        f"{git.commit[:12]} {'with uncommitted changes' if git.dirty else 'clean'}", mark="dirty" * bool(git.dirty)
    )


def _peak(one: Loaded) -> str | None:
    peak = one.record.peak_memory
    return (
        None if peak is None or peak.peak_bytes is None else f"{digits(peak.peak_bytes / 1e9)} GB ({peak.kind or DASH})"
    )


def _during(one: Loaded) -> str | None:
    seen = one.record.telemetry
    if seen is None:
        return None
    reasons = seen.throttle_reasons
    held = "not told by the driver" if reasons is None else f"held down by {', '.join(reasons) or 'nothing'}"
    clock = f"{digits(seen.sm_clock_mhz_p50)} MHz (lowest {digits(seen.sm_clock_mhz_min)})"
    return f"{clock}, {digits(seen.power_w_p50)} W, {digits(seen.energy_j)} J in all; clocks {held}"


FACTS: Mapping[str, Callable[[Loaded], Any]] = {
    "model": lambda one: one.record.model.path,
    "form": _form,
    "work": lambda one: work_of(one.record),
    "data": lambda one: one.record.inputs.dataset,
    "instruction": lambda one: one.record.inputs.instruction,
    "plan": _plan,
    "ran on": lambda one: one.record.device,
    "GPU": lambda one: one.record.environment.gpu,
    "compute capability": lambda one: _unit(one.record.environment.sm, "", 0.1),
    "driver": lambda one: one.record.environment.driver,
    "SM clock, highest": lambda one: _unit(one.record.environment.max_sm_clock_mhz, "MHz"),
    "SM clock at start": lambda one: _unit(one.record.environment.sm_clock_mhz, "MHz"),
    "GPU during the run": _during,
    "memory clock": lambda one: _unit(one.record.environment.memory_clock_mhz, "MHz"),
    "power limit": lambda one: _unit(one.record.environment.power_limit_w, "W"),
    "GPU memory": lambda one: _unit(one.record.environment.gpu_memory_bytes, "GB", 1e-9),
    "board": lambda one: one.record.environment.board,
    "CPU": lambda one: one.record.environment.cpu,
    "CPU cores used": lambda one: _unit(one.record.environment.cpu_cores, ""),
    "memory": lambda one: _unit(one.record.environment.memory_bytes, "GB", 1e-9),
    "system": lambda one: one.record.environment.platform,
    "Python": lambda one: one.record.environment.python,
    "versions": lambda one: versions_of(one.record),
    "commit": _commit,
    "taken": lambda one: one.record.created_utc,
    "took": lambda one: _unit(one.record.wall_s, "s"),
    "peak memory": _peak,
    "ended": lambda one: one.record.exit_reason,
}
"""What `facts_table` shows: name -> the value in a record, None where it is unknown."""
