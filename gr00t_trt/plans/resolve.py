"""A plan resolved for one machine, once, at the door of every program; what comes out is handed down and asked.

`resolve` settles backends, timer and gates and says in notes what it changed; `resolve_submodule` is what one compile
target gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from ..errors import BackendError, PlanError, unknown
from .backends import AUTO, BACKENDS, Availability, get_backend, honoring
from .precisions import PRECISIONS, Gate, least_exact
from .schema import ARCHITECTURE, GROUPS, LOOPS, SUBMODULES, TIMERS, BuildOptions, Plan, SubmodulePlan

Note = tuple[str, str]
"""What it is about, and what the user should know of it."""


@dataclass(frozen=True)
class ResolvedSubmodule:
    """The settings of one compile target, with nothing left to inherit.

    Attributes:
        backend: May be `auto`, which only a comparison decides.
        gate: Cosine and sqnr_db are always numbers; max_abs stays None unless the plan sets it.
    """

    backend: str
    precision: str
    build: BuildOptions
    gate: Gate


@dataclass(frozen=True)
class Machine:
    """What a plan is resolved for.

    Attributes:
        device: ``cpu``, ``cuda:0``.
        availability: Backend -> whether it can be used here.
    """

    device: str
    availability: Callable[[str], Availability] = field(default=lambda name: get_backend(name).availability())


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
        """The same, with what a program has to say besides, said first."""
        return replace(self, notes=(*notes, *self.notes))

    @property
    def action_gate(self) -> Gate:
        return resolve_action_gate(self.plan)


def resolve(
    plan: Plan,
    machine: Machine,
    fn_name: str = "all",
    *,
    chosen: bool = True,
    compare: tuple[str, ...] = (),
    engine_dir: Path | None = None,
) -> Resolved:
    """Settle a plan for a machine.

    Args:
        fn_name: What is compiled, as in `select`.
        chosen: The user named the backend, on the command line or in a plan, and gets it or an error. Only the
            default gives way to eager, and says so.
        compare: Backends to compare, eager first; the plan's own then count for nothing.
        engine_dir: Where engines are to be written.
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
    tried = dict.fromkeys(backend for own in candidates.values() if len(own) > 1 for backend in own)
    found = {backend: machine.availability(backend) for backend in tried}
    notes += [(backend, caveat) for backend, seen in found.items() for caveat in seen.caveats]
    notes += [("plan", text) for text in plan_warnings(plan)]
    timer, why = resolve_timer(plan.benchmark.timer, machine.device)
    if why:
        notes.append((f"--benchmark {plan.benchmark.timer}", why))
        plan = replace(plan, benchmark=replace(plan.benchmark, timer=timer))
    used = {b for name in names for b in candidates.get(name, (resolve_submodule(plan, name).backend,))}
    writers = [row.name for row in sorted(BACKENDS.values(), key=lambda row: -row.moving_parts) if row.writes]
    if engine_dir is not None and not used & set(writers):
        why_not = f"nothing is written: only the {', '.join(writers)} backends write files"
        notes.append((f"--engine_dir {engine_dir}", why_not))
        engine_dir = None
    return Resolved(
        plan,
        names,
        candidates,
        {backend: seen.reason for backend, seen in found.items() if not seen.installed},
        bool(compare),
        engine_dir,
        tuple(dict.fromkeys(notes)),
    )


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


def select(fn_name: str, plan: Plan) -> tuple[str, ...]:
    """Names of the compile targets that a `--fn_name` value stands for, in the order of a request.

    Args:
        fn_name: A submodule, one of the groups ``eagle_backbone``, ``action_head``, ``all``, or, of the restructured
            model, ``denoise_step`` and ``denoise_loop``.
        plan: Whether the backbone is one target, and which model and loop there are.
    Raises: PlanError for an unknown name, with the nearest valid one, and for a target that the plan rules out.
    """
    further, step = LOOPS[1:], ARCHITECTURE.step
    if fn_name not in (*GROUPS, *SUBMODULES, *further):
        raise unknown(PlanError, "--fn_name", fn_name, (*SUBMODULES, *GROUPS, *further))
    if fn_name in further and not plan.optimizations:
        raise PlanError(f"--fn_name {fn_name}: a part of the restructured model only", fix="use --optimizations all")
    if fn_name in LOOPS and fn_name != plan.loop:
        raise PlanError(f"--fn_name {fn_name}: the plan's loop is {plan.loop}", fix=f"add --loop {fn_name}")
    if fn_name in step and plan.loop != LOOPS[0]:
        raise PlanError(
            f"--fn_name {fn_name}: the plan's loop is {plan.loop}, which contains it", fix=f"use --loop {LOOPS[0]}"
        )
    names = list(GROUPS.get(fn_name, (fn_name,)))
    for joint, parts in ARCHITECTURE.joint.items() if plan.joint_backbone else ():
        if fn_name in parts:
            raise PlanError(
                f"--use_eagle_backbone_joint compiles {' and '.join(parts)} as one graph, so --fn_name {fn_name} "
                "alone has nothing to compile",
                fix=f"use --fn_name {joint}, or leave --use_eagle_backbone_joint out",
            )
        if parts[0] in names:
            names = [joint, *(n for n in names if n not in parts)]
    if plan.loop != LOOPS[0] and set(step) <= set(names):
        names = [*(n for n in names if n not in step), plan.loop]
    return tuple(names)


def resolve_submodule(plan: Plan, submodule: str) -> ResolvedSubmodule:
    """What one submodule gets: its own settings, else the plan's, else the precision's default gate.

    Args:
        submodule: A name of `SUBMODULES`; ``eagle_backbone`` too for a plan that builds the backbone as one, and the
            further stages of the restructured model for a plan with optimizations.
    Raises: PlanError for another name.
    """
    parts: tuple[str, ...] = (submodule,)
    if plan.joint_backbone:
        # A joint plan gives both halves the same settings.
        parts = ARCHITECTURE.joint.get(submodule, parts)[:1]
    if plan.optimizations:
        needs, borrowed = ARCHITECTURE.borrows.get(submodule, ("", ()))
        parts = ARCHITECTURE.covers.get(submodule, parts) + (borrowed if needs in plan.optimizations else ())
    submodule, *further = parts
    if submodule not in SUBMODULES:
        raise unknown(PlanError, "submodule", submodule, SUBMODULES)
    own = plan.submodules.get(submodule, SubmodulePlan())
    precision = own.precision or plan.precision
    least = least_exact((precision, *(resolve_submodule(plan, name).precision for name in further)))
    build = plan.build
    if own.decompose_attention is not None:
        build = replace(build, decompose_attention=own.decompose_attention)
    return ResolvedSubmodule(
        backend=own.backend or plan.backend,
        precision=precision,
        build=build,
        gate=_first_set(own.gate or Gate(), plan.gate, least.gate),
    )


def resolve_action_gate(plan: Plan) -> Gate:
    """What the normalised actions of a whole request must reach: the plan's `action_gate`, else the default."""
    least = least_exact(resolve_submodule(plan, name).precision for name in SUBMODULES)
    return _first_set(plan.action_gate, least.action_gate)


def graph_tolerance(plan: Plan) -> float:
    """How far a replayed CUDA graph may be from the uncaptured call: that of the plan's least exact precision."""
    names = (plan.precision, *(resolve_submodule(plan, name).precision for name in SUBMODULES))
    return max(PRECISIONS[name].graph_tolerance for name in names)


def resolve_timer(name: str, device: str) -> tuple[str, str | None]:
    """The timer to use on a device, and a sentence when it is not the one asked for.

    Raises: PlanError for an unknown name.
    """
    if name not in TIMERS:
        raise unknown(PlanError, "benchmark.timer", name, TIMERS)
    if name == "cuda_event" and not str(device).startswith("cuda"):
        return "python_timer", f"cuda_event needs a CUDA device; {device} was timed with python_timer"
    return name, None


def _first_set(*gates: Gate) -> Gate:
    def first(name: str) -> float | None:
        return next((v for v in (getattr(gate, name) for gate in gates) if v is not None), None)

    return Gate(cosine=first("cosine"), max_abs=first("max_abs"), sqnr_db=first("sqnr_db"))


def plain_only(plan: Plan) -> list[str]:
    """The settings of a plan that need the plain model, from `Architecture.plain_only`."""
    asked = {
        "joint_backbone": plan.joint_backbone,
        "build.cpu_offload": plan.build.cpu_offload,
        "build.trt_engine_path": plan.build.trt_engine_path,
    }
    return [key for key in ARCHITECTURE.plain_only if asked[key]]


def refuse_impossible(plan: Plan, where: str) -> None:
    """Raises: PlanError, naming the file and the keys, for settings that exclude each other."""
    resolved = {name: resolve_submodule(plan, name) for name in SUBMODULES}
    if plan.joint_backbone:
        vision, language = resolved["vision_model"], resolved["language_model"]
        for field in ("backend", "precision", "gate"):
            ours, theirs = getattr(vision, field), getattr(language, field)
            if ours != theirs:
                raise PlanError(
                    f"{where}: joint_backbone: one build cannot have {field} {_brief(ours)} for vision_model "
                    f"and {_brief(theirs)} for language_model",
                    fix=f"give both the same {field}, or set `joint_backbone: false`",
                )
        if vision.build.decompose_attention != language.build.decompose_attention:
            raise PlanError(
                f"{where}: joint_backbone: decompose_attention differs between vision_model and language_model",
                fix="give both the same value, or set `joint_backbone: false`",
            )
    for key in plain_only(plan) if plan.optimizations else ():
        raise PlanError(
            f"{where}: {key}: {ARCHITECTURE.plain_only[key]}",
            fix=f"leave `optimizations` out or set it to none, or leave {key.rpartition('.')[2]} out",
        )
    if plan.loop != LOOPS[0]:
        if not plan.optimizations:
            raise PlanError(
                f"{where}: loop: {plan.loop} exists in the restructured model only, and this plan has the plain one",
                fix="set `optimizations: all`, or `loop: submodules`",
            )
        parts = ARCHITECTURE.step
        if len({resolved[part].backend for part in parts}) > 1:
            backends = ", ".join(f"{part} {resolved[part].backend}" for part in parts)
            raise PlanError(
                f"{where}: loop: {plan.loop} is one build, but the plan gives {backends}",
                fix="give the three the same backend, or set `loop: submodules`",
            )
    if plan.cuda_graph != "none" and ARCHITECTURE.replay_needs not in plan.optimizations:
        raise PlanError(
            f"{where}: cuda_graph: a graph is given the image positions that prompt_cache looks up on the host, and "
            "this plan is without it",
            fix="set `optimizations: all`, or `cuda_graph: none`",
        )
    low, high = plan.ranges.length or (1, ARCHITECTURE.longest_prompt)
    for length in plan.cuda_graph_lengths:
        if not low <= length <= high:
            raise PlanError(
                f"{where}: cuda_graph_lengths: {length} tokens lie outside ranges.length, {low} to {high}",
                fix="leave it out, or widen the range",
            )
    if plan.build.cpu_offload and not any(r.backend in (*honoring("cpu_offload"), AUTO) for r in resolved.values()):
        raise PlanError(
            f"{where}: build.cpu_offload: no submodule uses torch_tensorrt, so no engine could take the weights' place",
            fix="use `backend: torch_tensorrt`, or drop cpu_offload",
        )


def _brief(value: object) -> str:
    if isinstance(value, Gate):
        parts = (("cosine", value.cosine), ("sqnr_db", value.sqnr_db), ("max_abs", value.max_abs))
        return "(" + ", ".join(f"{key} {number:g}" for key, number in parts if number is not None) + ")"
    return str(value)


def plan_warnings(plan: Plan) -> list[str]:
    """Settings that are allowed but do nothing, or less than they seem to: one plain sentence each."""
    resolved = {name: resolve_submodule(plan, name) for name in SUBMODULES}
    needs_plain = [] if plan.optimizations else plain_only(plan)
    backends = {r.backend for r in resolved.values()}
    engines = [r for r in resolved.values() if r.backend in (*honoring("use_explicit_typing"), AUTO)]
    precisions = {r.precision for r in engines}
    out = [f"{key}: {ARCHITECTURE.plain_only[key]}: the plain model is used instead" for key in needs_plain]
    default = BuildOptions()
    for key in (option.name for option in fields(BuildOptions)):
        users = honoring(key)
        if getattr(plan.build, key) != getattr(default, key) and not backends & {*users, AUTO}:
            out.append(f"build.{key} has no effect: no submodule uses {' or '.join(users)}")
    if engines:
        if plan.build.use_fp32_acc and "fp16" not in precisions:
            out.append(
                "build.use_fp32_acc is meant for fp16: fp32 needs none, and bf16 loses it from Torch-TensorRT 2.14"
            )
        if plan.build.disable_tf32 and "fp32" not in precisions:
            out.append("build.disable_tf32 has no effect: no engine of this plan computes in fp32")
        if not plan.build.use_explicit_typing:
            out.append(
                "build.use_explicit_typing: false needs Torch-TensorRT 2.9; later releases always type explicitly"
            )
    for name, own in plan.submodules.items():
        if own.decompose_attention is None:
            continue
        if name not in ARCHITECTURE.attention:
            out.append(f"submodules.{name}.decompose_attention has no effect: it has no attention")
        elif resolved[name].backend not in (*honoring("decompose_attention"), AUTO):
            out.append(f"submodules.{name}.decompose_attention has no effect on the {resolved[name].backend} backend")
    if plan.joint_backbone and resolved["vision_model"].backend == "eager":
        out.append("joint_backbone has no effect: the backbone stays in eager PyTorch")
    if plan.cuda_graph_lengths and plan.cuda_graph == "none":
        out.append("cuda_graph_lengths has no effect: cuda_graph is none")
    if plan.ranges.length and plan.ranges.length[1] <= ARCHITECTURE.image_tokens * plan.ranges.views[1]:
        needed = ARCHITECTURE.image_tokens * plan.ranges.views[1]
        out.append(
            f"ranges.length ends at {plan.ranges.length[1]} tokens, but {plan.ranges.views[1]} views of 224 x 224 "
            f"take {needed} alone: requests with that many views will be refused"
        )
    return out
