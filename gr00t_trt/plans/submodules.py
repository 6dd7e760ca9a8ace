"""What one compile target gets of a plan, and which targets a run has. Never imports torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import PlanError, unknown
from .precisions import PRECISIONS, Gate, least_exact
from .schema import ARCHITECTURE, CALIBRATE, GROUPS, LOOPS, SUBMODULES, BuildOptions, Plan, SubmodulePlan


@dataclass(frozen=True)
class Quantization:
    """What a plan says of a quantised submodule besides its precision.

    Attributes:
        keep: As `Plan.keep`.
        own: The patterns are the submodule's own, so that each must match one of its layers.
    """

    calibration: str | None
    keep: tuple[str, ...]
    own: bool

    def file(self) -> str:
        """The calibration's path. Raises: PlanError for a plan without one."""
        if self.calibration is None:
            raise PlanError(
                "a quantised precision needs a calibration: how large each layer's input gets in real requests",
                known="--calibration FILE, or `calibration: FILE` in the plan",
                fix=f"make one: {CALIBRATE}",
            )
        return self.calibration


@dataclass(frozen=True)
class ResolvedSubmodule:
    """The settings of one compile target, with nothing left to inherit.

    Attributes:
        backend: May be `auto`, which only a comparison decides.
        gate: Cosine and sqnr_db are always numbers; max_abs stays None unless the plan sets it.
        quantization: None for a precision that is not quantised.
    """

    backend: str
    precision: str
    build: BuildOptions
    gate: Gate
    quantization: Quantization | None = None


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
    precision = own.precision or _inherited(plan, submodule)
    least = least_exact((precision, *(resolve_submodule(plan, name).precision for name in further)))
    build = plan.build
    if own.decompose_attention is not None:
        build = replace(build, decompose_attention=own.decompose_attention)
    gate = _first_set(own.gate or Gate(), plan.gate, least.gate)
    quantization = None
    if PRECISIONS[precision].quantized:
        keep = plan.keep if own.keep is None else own.keep
        quantization = Quantization(plan.calibration, keep, own.keep is not None)
    return ResolvedSubmodule(own.backend or plan.backend, precision, build, gate, quantization)


def _inherited(plan: Plan, submodule: str) -> str:
    """The plan's precision; of a quantised one its carrier where a submodule has no large products."""
    row = PRECISIONS[plan.precision]
    return row.name if submodule in ARCHITECTURE.attention else row.carrier


def resolve_action_gate(plan: Plan) -> Gate:
    """What the normalised actions of a whole request must reach: the plan's `action_gate`, else the default."""
    least = least_exact(resolve_submodule(plan, name).precision for name in SUBMODULES)
    return _first_set(plan.action_gate, least.action_gate)


def graph_tolerance(plan: Plan) -> float:
    """How far a replayed CUDA graph may be from the uncaptured call: that of the plan's least exact precision."""
    names = (plan.precision, *(resolve_submodule(plan, name).precision for name in SUBMODULES))
    return max(PRECISIONS[name].graph_tolerance for name in names)


def _first_set(*gates: Gate) -> Gate:
    def first(name: str) -> float | None:
        return next((v for v in (getattr(gate, name) for gate in gates) if v is not None), None)

    return Gate(cosine=first("cosine"), max_abs=first("max_abs"), sqnr_db=first("sqnr_db"))
