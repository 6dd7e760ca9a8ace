"""Compile plans: YAML files and command-line flags in, the frozen settings out, and what each submodule gets of them.

Every problem is a PlanError that names the file, the dotted key and the value; nothing is ignored silently. What is
useless but harmless is told by `plan_warnings` instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import PlanError, unknown
from .checks import LONGEST, PLAN, section, shown
from .schema import AUTO, SUBMODULES, BuildOptions, Gate, Plan, SubmodulePlan

DEFAULT_GATES: Mapping[str, Gate] = {
    "fp32": Gate(cosine=0.99999, sqnr_db=45.0),
    "fp16": Gate(cosine=0.9995, sqnr_db=28.0),
    "bf16": Gate(cosine=0.995, sqnr_db=18.0),
}
"""Per precision: what one submodule must reach against eager fp32 on the same inputs.

Cosine does not see a wrong scale, so each row also bounds the signal-to-noise ratio. For an error without a
preferred direction the two say the same, cosine = 1 - 10^(-dB/10) / 2; the decibels are two looser, so that cosine
decides unless the scale is off. Healthy builds lie well above: 27 random transformer layers lose about 2e-6 of cosine
to fp16 rounding and 1e-4 to bf16. Trained weights with outliers lose more, and fp32 leaves room for TF32 products."""

DEFAULT_ACTION_GATES: Mapping[str, Gate] = {
    "fp32": Gate(cosine=0.9999, sqnr_db=36.0),
    "fp16": Gate(cosine=0.999, sqnr_db=25.0),
    "bf16": Gate(cosine=0.995, sqnr_db=18.0),
}
"""Per precision: what the normalised actions of a whole request must reach, with the same noise on both sides.

Errors of seven submodules add up over the denoising steps, hence looser than one submodule in fp32 and fp16. Both
sides start from the same noise, which helps them agree: bf16 gets no such discount. The plan's least exact
precision picks the row."""

PART_OF: Mapping[str, str] = {
    "denoise_step": "dit_model",
    "denoise_loop": "dit_model",
    "language_model_padded": "language_model",
}
"""Stage of the restructured model -> the submodule whose settings it gets."""

ALSO_IN: Mapping[str, tuple[str, ...]] = {
    "vl_components": ("dit_model",),
    "denoise_step": ("action_encoder", "action_decoder"),
    "denoise_loop": ("action_encoder", "action_decoder"),
}
"""Stage of the restructured model -> further submodules whose weights compute in it, in their own precisions."""

PLAIN_ONLY: Mapping[str, str] = {
    "joint_backbone": "the restructured model keeps its two towers apart",
    "build.cpu_offload": "stages of the restructured model share weights, so that none can be moved away",
    "build.trt_engine_path": "ready-made engines are cut as the plain model is",
}
"""Setting that needs the plain model -> why."""

MAY_BE_ENGINES = ("torch_tensorrt", AUTO)
EXACTNESS = ("bf16", "fp16", "fp32")
ATTENTION = ("vision_model", "language_model", "vl_components", "dit_model")
IMAGE_TOKENS = 256

HONOURED: Mapping[str, tuple[str, ...]] = {
    "use_fp32_acc": ("torch_tensorrt", "tensorrt", "onnxruntime"),
    "disable_tf32": ("torch_tensorrt", "tensorrt", "onnxruntime"),
    "use_explicit_typing": ("torch_tensorrt", "tensorrt"),
    "use_cpp_runtime": ("torch_tensorrt",),
    "cpu_offload": ("torch_tensorrt",),
    "debug": ("torch_tensorrt", "tensorrt", "onnxruntime"),
    "optimization_level": ("torch_tensorrt", "tensorrt", "onnxruntime"),
    "decompose_attention": ("torch_tensorrt",),
    "require_full_compilation": ("torch_tensorrt",),
    "compute_capabilities": ("torch_tensorrt", "tensorrt"),
    "trt_engine_path": ("tensorrt",),
}
"""Build option -> the backends that it means something to. Exported to ONNX, attention is always decomposed, and a file
becomes one engine or none."""


@dataclass(frozen=True)
class ResolvedSubmodule:
    """What a plan comes to for one submodule; nothing is left to inherit.

    Attributes:
        backend: May be `auto`, which only a comparison decides.
        gate: Cosine and sqnr_db are always numbers; max_abs stays None unless the plan sets it.
    """

    backend: str
    precision: str
    build: BuildOptions
    gate: Gate


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_plan(path: str | Path) -> Plan:
    """Read a YAML plan.

    Raises: PlanError for a file that is missing, unreadable, empty or not YAML, and for any value that cannot work.
    """
    where = str(path)
    try:
        # utf-8-sig: editors on Windows like to start files with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in Path(path).parent.glob("*.yaml"))
        raise PlanError(f"{where}: no such plan file", known=near or None, fix="pass the path of a YAML plan") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise PlanError(f"{where}: the plan cannot be read: {error}") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise PlanError(f"{where}:{line} {what}", known="YAML: `key: value` lines") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"{where}: not YAML: {error}", known="YAML: `key: value` lines") from error
    if raw is None:
        raise PlanError(f"{where}: the plan is empty", known=PLAN, fix="start with `precision: fp16`")
    return plan_from_mapping(raw, where)


def plan_from_mapping(mapping: object, where: str) -> Plan:
    """A plan from nested dictionaries, such as `plan_to_mapping` gives; keys left out keep their defaults.

    Args:
        where: Where the mapping comes from, for the messages: a file name, or ``"command line"``.
    Raises: PlanError.
    """
    if not isinstance(mapping, Mapping):
        raise PlanError(f"{where}: a plan must be a mapping, not {shown(mapping)}", known=PLAN)
    plan = Plan(**section(mapping, where, PLAN))
    if "optimisations" not in mapping and _plain_only(plan):
        plan = replace(plan, optimisations=())
    _refuse_impossible(plan, where)
    return plan


def _plain_only(plan: Plan) -> list[str]:
    """The settings of a plan that need the plain model, from `PLAIN_ONLY`."""
    asked = {
        "joint_backbone": plan.joint_backbone,
        "build.cpu_offload": plan.build.cpu_offload,
        "build.trt_engine_path": plan.build.trt_engine_path,
    }
    return [key for key in PLAIN_ONLY if asked[key]]


def plan_to_mapping(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain dictionaries, lists and scalars, for YAML, JSON and records; defaults are spelled out.

    `plan_from_mapping(plan_to_mapping(plan), where)` equals `plan`.
    """
    out: dict[str, Any] = _plain(asdict(replace(plan, submodules={})))
    out["submodules"] = {
        name: {key: value for key, value in _plain(asdict(own)).items() if value is not None}
        for name, own in plan.submodules.items()
    }
    return out


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def merge(plan: Plan, overrides: Mapping[str, object], where: str = "command line") -> Plan:
    """The plan with some settings replaced.

    Args:
        overrides: Dotted key -> value, such as ``{"build.use_fp32_acc": True, "precision": "bf16"}``. A value of None
            means that the flag was not given. A submodule's own setting keeps precedence over the plan-wide one.
            One that needs the plain model takes back all optimisations, unless these are overridden as well.
    Raises: PlanError, as for a plan file.
    """
    mapping = plan_to_mapping(plan)
    for dotted, value in overrides.items():
        if value is None:
            continue
        *parents, last = dotted.split(".")
        target = mapping
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise PlanError(f"{where}: {dotted}: {parent} has no keys of its own")
        target[last] = value
    needs_plain = any(overrides.get(key) for key in PLAIN_ONLY)
    if needs_plain and overrides.get("optimisations") is None and plan.optimisations == Plan.optimisations:
        del mapping["optimisations"]
    return plan_from_mapping(mapping, where)


def resolve(plan: Plan, submodule: str) -> ResolvedSubmodule:
    """What one submodule gets: its own settings, else the plan's, else the precision's default gate.

    Args:
        submodule: A name of `SUBMODULES`; ``eagle_backbone`` too for a plan that builds the backbone as one, and the
            further stages of the restructured model for a plan with optimisations.
    Raises: PlanError for another name.
    """
    if submodule == "eagle_backbone" and plan.joint_backbone:
        submodule = "vision_model"  # a joint plan gives both halves the same settings
    further: tuple[str, ...] = ()
    if plan.optimisations:
        further = ALSO_IN.get(submodule, ())
        if submodule == "vl_components" and "cross_attention_kv" not in plan.optimisations:
            further = ()
        submodule = PART_OF.get(submodule, submodule)
    if submodule not in SUBMODULES:
        raise unknown(PlanError, "submodule", submodule, SUBMODULES)
    own = plan.submodules.get(submodule, SubmodulePlan())
    precision = own.precision or plan.precision
    least = min((precision, *(resolve(plan, name).precision for name in further)), key=EXACTNESS.index)
    build = plan.build
    if own.decompose_attention is not None:
        build = replace(build, decompose_attention=own.decompose_attention)
    return ResolvedSubmodule(
        backend=own.backend or plan.backend,
        precision=precision,
        build=build,
        gate=_first_set(own.gate or Gate(), plan.gate, DEFAULT_GATES[least]),
    )


def resolve_action_gate(plan: Plan) -> Gate:
    """What the normalised actions of a whole request must reach: the plan's `action_gate`, else the default."""
    least = min((resolve(plan, name).precision for name in SUBMODULES), key=EXACTNESS.index)
    return _first_set(plan.action_gate, DEFAULT_ACTION_GATES[least])


def _first_set(*gates: Gate) -> Gate:
    def first(field: str) -> float | None:
        return next((v for v in (getattr(gate, field) for gate in gates) if v is not None), None)

    return Gate(cosine=first("cosine"), max_abs=first("max_abs"), sqnr_db=first("sqnr_db"))


def _refuse_impossible(plan: Plan, where: str) -> None:
    resolved = {name: resolve(plan, name) for name in SUBMODULES}
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
    for key in _plain_only(plan) if plan.optimisations else ():
        raise PlanError(
            f"{where}: {key}: {PLAIN_ONLY[key]}",
            fix=f"leave `optimisations` out or set it to none, or leave {key.rpartition('.')[2]} out",
        )
    if plan.loop != "submodules":
        if not plan.optimisations:
            raise PlanError(
                f"{where}: loop: {plan.loop} exists in the restructured model only, and this plan has the plain one",
                fix="set `optimisations: all`, or `loop: submodules`",
            )
        parts = ("action_encoder", "dit_model", "action_decoder")
        if len({resolved[part].backend for part in parts}) > 1:
            backends = ", ".join(f"{part} {resolved[part].backend}" for part in parts)
            raise PlanError(
                f"{where}: loop: {plan.loop} is one build, but the plan gives {backends}",
                fix="give the three the same backend, or set `loop: submodules`",
            )
    if plan.cuda_graph != "none" and "prompt_cache" not in plan.optimisations:
        raise PlanError(
            f"{where}: cuda_graph: a graph is given the image positions that prompt_cache looks up on the host, and "
            "this plan is without it",
            fix="set `optimisations: all`, or `cuda_graph: none`",
        )
    low, high = plan.ranges.length or (1, LONGEST)
    for length in plan.cuda_graph_lengths:
        if not low <= length <= high:
            raise PlanError(
                f"{where}: cuda_graph_lengths: {length} tokens lie outside ranges.length, {low} to {high}",
                fix="leave it out, or widen the range",
            )
    if plan.build.cpu_offload and not any(r.backend in MAY_BE_ENGINES for r in resolved.values()):
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
    resolved = {name: resolve(plan, name) for name in SUBMODULES}
    plain_only = [] if plan.optimisations else _plain_only(plan)
    backends = {r.backend for r in resolved.values()}
    engines = [r for r in resolved.values() if r.backend in (*HONOURED["use_explicit_typing"], AUTO)]
    precisions = {r.precision for r in engines}
    out = [f"{key}: {PLAIN_ONLY[key]}: the plain model is used instead" for key in plain_only]
    default = BuildOptions()
    for key, users in HONOURED.items():
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
        if name not in ATTENTION:
            out.append(f"submodules.{name}.decompose_attention has no effect: it has no attention")
        elif resolved[name].backend not in MAY_BE_ENGINES:
            out.append(f"submodules.{name}.decompose_attention has no effect on the {resolved[name].backend} backend")
    if plan.joint_backbone and resolved["vision_model"].backend == "eager":
        out.append("joint_backbone has no effect: the backbone stays in eager PyTorch")
    if plan.cuda_graph_lengths and plan.cuda_graph == "none":
        out.append("cuda_graph_lengths has no effect: cuda_graph is none")
    if plan.ranges.length and plan.ranges.length[1] <= IMAGE_TOKENS * plan.ranges.views[1]:
        needed = IMAGE_TOKENS * plan.ranges.views[1]
        out.append(
            f"ranges.length ends at {plan.ranges.length[1]} tokens, but {plan.ranges.views[1]} views of 224 x 224 "
            f"take {needed} alone: requests with that many views will be refused"
        )
    return out
