"""A plan resolved for one machine, once, at the door of every program; what comes out is handed down and asked.

`resolve` settles backends, precision, timer and gates and says in notes what it changed; `submodules` says what one
compile target gets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BackendError, PlanError, unknown
from .backends import AUTO, BACKENDS, Availability, get_backend
from .conflicts import plan_warnings
from .precisions import PRECISIONS, precision_names
from .schema import CALIBRATE, SUBMODULES, TIMERS, Plan, SubmodulePlan
from .submodules import ResolvedSubmodule, resolve_submodule, select

if TYPE_CHECKING:
    from ..common.products import Speed

Note = tuple[str, str]
"""What it is about, and what the user should know of it."""


def cpu_speed() -> Speed:
    """How fast this CPU multiplies in each number format, see `common.products`."""
    from ..common.products import speed

    return speed()


@dataclass(frozen=True)
class Machine:
    """What a plan is resolved for.

    Attributes:
        device: ``cpu``, ``cuda:0``.
        availability: Backend -> whether it can be used here.
        cpu_speed: As the function of that name; asked where a precision depends on it.
    """

    device: str
    availability: Callable[[str], Availability] = field(default=lambda name: get_backend(name).availability())
    cpu_speed: Callable[[], Speed] = cpu_speed


@dataclass(frozen=True)
class Resolved:
    """A plan with everything settled that can be known before anything is loaded.

    Attributes:
        plan: As it will be carried out on this machine.
        names: What is compiled, in the order of a request.
        candidates: Compile target -> the backends to try on it; a single one is settled. Empty where nothing is tried.
        unavailable: Backend that is to be tried and cannot be used here -> why.
        comparing: Backends are compared and none is chosen: the plan's own count for nothing.
        engine_dir: Where engines are written; None for nowhere.
        notes: What was changed, and what does less than it seems to.
    """

    plan: Plan
    names: tuple[str, ...]
    candidates: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unavailable: Mapping[str, str] = field(default_factory=dict)
    comparing: bool = False
    engine_dir: Path | None = None
    notes: tuple[Note, ...] = ()

    def __getitem__(self, name: str) -> ResolvedSubmodule:
        """What one submodule or stage gets."""
        return resolve_submodule(self.plan, name)

    def settled(self, name: str) -> bool:
        """Whether a target's backend was chosen by the user."""
        return len(self.candidates.get(name, ("",))) == 1

    def noted(self, *notes: Note) -> Resolved:
        """The same with further notes, in front of its own."""
        return replace(self, notes=(*notes, *self.notes))


def resolve(
    plan: Plan,
    machine: Machine,
    fn_name: str = "all",
    *,
    chosen: bool = True,
    precision_chosen: bool = True,
    compare: tuple[str, ...] = (),
    engine_dir: Path | None = None,
    timed: bool = True,
) -> Resolved:
    """Settle a plan for a machine.

    Args:
        fn_name: What is compiled, as in `select`.
        chosen: The user named the backend, on the command line or in a plan, and gets it or an error. Only the
            default gives way to eager, and says so.
        precision_chosen: The user named the precision, and gets it. Only a program's default gives way, where the CPU
            does the computing, to the one that is fastest on it, and says so: fp32 unless another is clearly faster.
        compare: Backends to compare, eager first; the plan's own then count for nothing.
        engine_dir: Where engines are to be written.
        timed: Latencies will be taken, so that another timer than the plan's is worth a note.
    Raises: PlanError for what cannot work; BackendError for a chosen backend that is not installed.
    """
    names = select(fn_name, plan)
    notes: list[Note] = []
    candidates = candidates_of(plan, names, compare)
    if candidates and plan.build.cpu_offload:
        raise PlanError(
            "build.cpu_offload: backends are compared with PyTorch, whose weights it would move away",
            fix="leave it out, and add it to the plan that wins",
        )
    if compare:
        own = {name: replace(settings, backend=None) for name, settings in plan.submodules.items()}
        plan = replace(plan, backend=AUTO, submodules=own)
        if plan.cuda_graph != "none":
            notes.append(("cuda_graph", "not used: a comparison calls each backend's submodules one by one"))
            plan = replace(plan, cuda_graph="none", cuda_graph_lengths=())
    plan = _settle_backends(plan, [n for n in names if len(candidates.get(n, ("",))) == 1], machine, chosen, notes)
    plan = _settle_carriers(plan, names, compare, machine, notes)
    plan = _settle_precision(plan, names, compare, machine, precision_chosen, notes)
    plan = _settle_quantization(plan, compare)
    tried = dict.fromkeys(backend for own in candidates.values() if len(own) > 1 for backend in own)
    found = {backend: machine.availability(backend) for backend in tried}
    notes += [(backend, caveat) for backend, seen in found.items() for caveat in seen.caveats]
    notes += [("plan", text) for text in plan_warnings(plan)]
    timer, why = resolve_timer(plan.benchmark.timer, machine.device)
    if why and timed:
        notes.append((f"--benchmark {plan.benchmark.timer}", why))
    plan = replace(plan, benchmark=replace(plan.benchmark, timer=timer))
    used = {b for name in names for b in candidates.get(name, (resolve_submodule(plan, name).backend,))}
    writers = [row.name for row in sorted(BACKENDS.values(), key=lambda row: -row.moving_parts) if row.writes]
    if engine_dir is not None and not used & set(writers):
        why_not = f"nothing is written: only the {', '.join(writers)} backends write files"
        notes.append((f"--engine_dir {engine_dir}", why_not))
        engine_dir = None
    unavailable = {backend: seen.reason for backend, seen in found.items() if not seen.installed}
    return Resolved(plan, names, candidates, unavailable, bool(compare), engine_dir, tuple(dict.fromkeys(notes)))


def _settle_backends(plan: Plan, names: list[str], machine: Machine, chosen: bool, notes: list[Note]) -> Plan:
    """The plan with the backends that this machine has."""
    if plan.build.trt_engine_path is not None and not Path(plan.build.trt_engine_path).is_dir():
        raise PlanError(
            f"trt_engine_path: {plan.build.trt_engine_path}: no such folder",
            fix="name the folder that build_engine.sh wrote to, gr00t_engine by default",
        )
    wanted = {name: resolve_submodule(plan, name).backend for name in names}
    for backend in dict.fromkeys(wanted.values()):
        found = machine.availability(backend)
        if found.installed:
            notes += [(backend, caveat) for caveat in found.caveats]
        elif backend == plan.backend and not chosen:
            plan = replace(plan, backend="eager", build=replace(plan.build, cpu_offload=False))
            notes.append((backend, f"not available here, so nothing was compiled with it: {found.reason}"))
        else:
            users = ", ".join(name for name, used in wanted.items() if used == backend)
            raise BackendError(f"backend {backend} ({users}) is not available here: {found.reason}")
    return plan


def _settle_precision(
    plan: Plan, names: tuple[str, ...], compare: tuple[str, ...], machine: Machine, chosen: bool, notes: list[Note]
) -> Plan:
    """The plan with the default precision of what computes here: engines built on a CPU are meant for a GPU."""
    used = compare or tuple(resolve_submodule(plan, name).backend for name in names)
    engines = any(b != AUTO and BACKENDS[b].makes_engines and machine.availability(b).installed for b in used)
    if machine.device != "cpu" or engines:
        return plan
    used_names = {resolve_submodule(plan, name).precision for name in names}
    if chosen and used_names <= {"fp32"}:
        return plan
    speed = machine.cpu_speed()
    plain = [name for name in precision_names() if not PRECISIONS[name].quantized]
    ms = {name: speed.ms.get(PRECISIONS[name].dtype, math.inf) for name in plain}
    fast = [name for name in ms if speed.fast_in(PRECISIONS[name].dtype)]
    if not chosen and (fastest := min(fast, key=ms.__getitem__)) != plan.precision:
        why = f"{fastest} on this CPU, where it is faster than {plan.precision}"
        if fastest == "fp32":
            why = f"fp32 on this CPU: {plan.precision} is not clearly faster here and less exact"
        notes.append(("precision", f"{why}; --precision chooses another; {_measured(speed)}"))
        return replace(plan, precision=fastest)
    for name in sorted(used_names - set(fast)):
        if PRECISIONS[name].quantized:
            own = (resolve_submodule(plan, each) for each in names)
            if any(each.precision == name and each.backend in ("eager", "inductor") for each in own):
                text = "computed by its reference in PyTorch: its accuracy counts, not its speed"
                text = f"products in 8 bits by oneDNN; {_measured(speed)}" if name == "int8" and speed.int8 else text
                notes.append((f"precision {name}", text))
            continue
        why = f"not clearly faster than fp32 on this CPU, and less exact; fast here: {', '.join(fast)}"
        notes.append((f"precision {name}", f"{why}; {_measured(speed)}"))
    return plan


def _settle_quantization(plan: Plan, compare: tuple[str, ...]) -> Plan:
    """The plan with a gate for each quantised submodule, so that each is held against fp32 by itself at every start.

    Raises: PlanError for a comparison with a backend that cannot build it, and where the calibration is missing.
    """
    quantized = {name: own for name in SUBMODULES if (own := resolve_submodule(plan, name)).quantization is not None}
    for name, own in quantized.items():
        able = PRECISIONS[own.precision].backends
        unable = [backend for backend in compare if able and backend not in able]
        if unable:
            raise PlanError(
                f"precision {own.precision} of {name}: the backend {unable[0]} cannot build it",
                known=able,
                fix="leave it out of --compare, or compare in fp8 or int8",
            )
        need_calibration(own)
    own_plans = {name: plan.submodules.get(name, SubmodulePlan()) for name in quantized}
    gated = {name: replace(own, gate=quantized[name].gate) for name, own in own_plans.items()}
    return replace(plan, submodules={**plan.submodules, **gated})


def need_calibration(own: ResolvedSubmodule) -> None:
    """Raises: PlanError where a precision needs a calibration and the plan has none, or the file is missing."""
    if own.quantization is not None and not Path(file := own.quantization.file()).is_file():
        raise PlanError(f"calibration: {file}: no such file", fix=f"make one: {CALIBRATE}")


def _settle_carriers(
    plan: Plan, names: tuple[str, ...], compare: tuple[str, ...], machine: Machine, notes: list[Note]
) -> Plan:
    """The plan with fp32 where a CPU computes and a backend has no products for what carries a quantised precision.

    Beside quantised stages only: whoever asks for that precision alone gets it or an error.
    """
    resolved = {name: resolve_submodule(plan, name) for name in names}
    carriers = {PRECISIONS[own.precision].carrier for own in resolved.values() if own.quantization is not None}
    changed: dict[str, str] = {}
    for name, own in resolved.items() if machine.device == "cpu" else ():
        tried = compare or (() if own.backend == AUTO else (own.backend,))
        unable = [backend for backend in tried if own.precision in BACKENDS[backend].not_on_cpu]
        if own.quantization is None and own.precision in carriers and unable:
            changed[name] = f"{unable[0]} has no {own.precision} products on a CPU"
    notes += [
        (", ".join(n for n in changed if changed[n] == why), f"fp32: {why}") for why in dict.fromkeys(changed.values())
    ]
    own_plans = {name: replace(plan.submodules.get(name, SubmodulePlan()), precision="fp32") for name in changed}
    return replace(plan, submodules={**plan.submodules, **own_plans})


def _measured(speed: Speed) -> str:
    return f"one product of the model on one thread, in ms: {speed.said()}"


def decided(resolved: Resolved) -> Resolved:
    """The same, for a program that starts with it. Raises: PlanError where a backend has to be measured first."""
    undecided = [name for name in resolved.names if resolved[name].backend == AUTO]
    if undecided:
        raise PlanError(
            f"backend: {AUTO} ({', '.join(undecided)}) is decided by measuring, which takes too long at every start",
            fix="run run_groot_torchtrt.py --backend auto once, and use the plan that it writes",
        )
    return resolved


def candidates_of(plan: Plan, names: tuple[str, ...], compare: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Compile target -> the backends to try on it; empty where there is nothing to compare.

    Without `compare`, `auto` in the plan asks for all, and a submodule that has a backend of its own gets that one
    alone.
    """
    if compare:
        return dict.fromkeys(names, compare)
    own = {name: resolve_submodule(plan, name).backend for name in names}
    if AUTO not in own.values():
        return {}
    return {name: tuple(BACKENDS) if backend == AUTO else (backend,) for name, backend in own.items()}


def resolve_timer(name: str, device: str) -> tuple[str, str | None]:
    """The timer to use on a device, and a sentence when it is not the one asked for.

    Raises: PlanError for an unknown name.
    """
    if name not in TIMERS:
        raise unknown(PlanError, "benchmark.timer", name, TIMERS)
    if name == "cuda_event" and not str(device).startswith("cuda"):
        return "python_timer", f"cuda_event needs a CUDA device; {device} was timed with python_timer"
    return name, None
