"""What a record says of its run, beside its results: machine, versions, commit, plan, memory, telemetry. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..record.numbers import digits
from ..record.schema import Record
from .columns import DASH, Cell, Table
from .views import Loaded, counted, told


def facts_table(loaded: Sequence[Loaded]) -> Table:
    """The machine, the versions and the work of each record, one column a record."""
    rows = []
    for name, value_of in FACTS.items():
        values = [value_of(one.record) for one in loaded]
        if any(values):
            cells = [value if isinstance(value, Cell) else Cell(str(value or DASH)) for value in values]
            rows.append((Cell(name, mark="strong"), *cells))
    heads = ("", *(one.tag for one in loaded))
    return Table("What the figures were taken with", heads, tuple(rows), texts=len(heads))


def versions_of(record: Record, *names: str) -> str:
    """The packages that were used, with their versions; of these names alone where there are any."""
    known = record.environment.distributions
    return ", ".join(f"{n} {v}" for n, v in known.items() if v and (not names or n in names))


def _unit(value: float | None, unit: str, scale: float = 1.0) -> str:
    return told(f"{{}} {unit}".strip(), None if value is None else digits(value * scale))


def _work(record: Record) -> str:
    given = record.inputs
    parts = (
        counted(given.views, "view"),
        told("batch {}", given.batch_size),
        counted(given.sequence_length, "token"),
        counted(given.denoising_steps, "step"),
        told("seed {}", given.seed),
    )
    return ", ".join(part for part in parts if part)


def _form(record: Record) -> str:
    if record.measured:
        return "many: each row of the measuring run says its own"
    names = record.setting("optimizations")
    return f"restructured: {', '.join(names)}; loop as {record.setting('loop') or DASH}" if names else "plain"


def _plan(record: Record) -> str:
    parts = (record.plan_path, record.setting("backend"), record.setting("precision"))
    return str(record.setting("precision")) if record.measured else " ".join(str(part) for part in parts if part)


def _commit(record: Record) -> Cell | None:
    commit, dirty = record.git.commit, bool(record.git.dirty)
    state = "with uncommitted changes" if dirty else "clean"
    return None if commit is None else Cell(f"{commit[:12]} {state}", mark="dirty" if dirty else "")


def _simulator(record: Record) -> str:
    known = record.simulation.simulator if record.simulation else {}
    return ", ".join(f"{name} {version}" for name, version in known.items() if version)


def _peak(record: Record) -> str:
    peak = record.peak_memory
    if peak is None or peak.peak_bytes is None:
        return ""
    return f"{digits(peak.peak_bytes / 1e9)} GB ({peak.kind or DASH})"


def _during(record: Record) -> str | None:
    seen = record.telemetry
    if seen is None:
        return None
    reasons = seen.throttle_reasons
    held = "not told by the driver" if reasons is None else f"held down by {', '.join(reasons) or 'nothing'}"
    clock = f"{digits(seen.sm_clock_mhz_p50)} MHz (lowest {digits(seen.sm_clock_mhz_min)})"
    return f"{clock}, {digits(seen.power_w_p50)} W, {digits(seen.energy_j)} J in all; clocks {held}"


FACTS: Mapping[str, Callable[[Record], Any]] = {
    "model": lambda record: record.model.path,
    "form": _form,
    "work": _work,
    "data": lambda record: record.inputs.dataset,
    "instruction": lambda record: record.inputs.instruction,
    "plan": _plan,
    "ran on": lambda record: record.device,
    "GPU": lambda record: record.environment.gpu,
    "compute capability": lambda record: _unit(record.environment.sm, "", 0.1),
    "driver": lambda record: record.environment.driver,
    "SM clock, highest": lambda record: _unit(record.environment.max_sm_clock_mhz, "MHz"),
    "SM clock at start": lambda record: _unit(record.environment.sm_clock_mhz, "MHz"),
    "GPU during the run": _during,
    "memory clock": lambda record: _unit(record.environment.memory_clock_mhz, "MHz"),
    "power limit": lambda record: _unit(record.environment.power_limit_w, "W"),
    "GPU memory": lambda record: _unit(record.environment.gpu_memory_bytes, "GB", 1e-9),
    "board": lambda record: record.environment.board,
    "CPU": lambda record: record.environment.cpu,
    "CPU cores used": lambda record: _unit(record.environment.cpu_cores, ""),
    "memory": lambda record: _unit(record.environment.memory_bytes, "GB", 1e-9),
    "system": lambda record: record.environment.platform,
    "Python": lambda record: record.environment.python,
    "versions": versions_of,
    "simulator": _simulator,
    "commit": _commit,
    "1,000 additions": lambda record: _unit(record.host_adds_us, "µs to launch"),
    "taken": lambda record: record.created_utc,
    "took": lambda record: _unit(record.wall_s, "s"),
    "peak memory": _peak,
    "ended": lambda record: record.exit_reason,
}
"""What `facts_table` shows: name -> the value in a record, None where it is unknown."""
