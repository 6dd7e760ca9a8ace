"""Settings of a plan that exclude each other, and settings that do nothing. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import PlanError
from .backends import AUTO, BACKENDS, honoring
from .precisions import PRECISIONS, Gate
from .schema import ARCHITECTURE, LOOPS, SUBMODULES, BuildOptions, Plan
from .submodules import ResolvedSubmodule, resolve_submodule


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
    _refuse_unquantizable(plan, resolved, where)
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


def _refuse_unquantizable(plan: Plan, resolved: Mapping[str, ResolvedSubmodule], where: str) -> None:
    """Raises: PlanError for a quantised precision where nothing can be quantised, and for a backend, or a GPU that
    engines are asked for, that cannot compute in it.
    """
    for name, own in resolved.items():
        row = PRECISIONS[own.precision]
        given = name in plan.submodules and plan.submodules[name].precision is not None
        at = f"{where}: submodules.{name}.precision: {row.name}" if given else f"{where}: precision: {row.name}"
        if row.quantized and name not in ARCHITECTURE.attention:
            raise PlanError(
                f"{at}: {name} has no large products to quantise",
                known=f"a quantised precision of {', '.join(ARCHITECTURE.attention)}",
            )
        if row.backends and own.backend not in row.backends:
            best, *others = row.backends
            raise PlanError(
                f"{at}: the backend {own.backend} cannot build it",
                known=f"{best}; and {' or '.join(others)}, its reference in PyTorch: the accuracy, not the speed",
                fix=f"use --backend {best}, or `backend: {best}` for this submodule",
            )
        builds = own.backend == AUTO or BACKENDS[own.backend].makes_engines
        for capability in plan.build.compute_capabilities if builds else ():
            if not row.computes_on(capability):
                raise PlanError(
                    f"{where}: build.compute_capabilities: a GPU of {capability} cannot multiply in {row.name}, the "
                    f"precision of {name}",
                    known=f"{row.least_capability} and newer",
                    fix=f"leave {capability} out, or build in another precision for it",
                )
        if row.quantized and len(plan.optimizations) < len(ARCHITECTURE.optimizations):
            raise PlanError(
                f"{at}: calibrations are of the restructured model's layers", fix="set `optimizations: all`"
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
    for key, value in vars(plan.build).items():
        users = honoring(key)
        if value != getattr(default, key) and not backends & {*users, AUTO}:
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
    quantized = [r for r in resolved.values() if r.quantization is not None]
    if not quantized:
        asked = {"calibration": plan.calibration, "keep": plan.keep}
        out += [f"{key} has no effect: no precision of this plan is quantised" for key, value in asked.items() if value]
    for name, own in plan.submodules.items():
        if own.keep is not None and resolved[name].quantization is None:
            out.append(
                f"submodules.{name}.keep has no effect: its precision, {resolved[name].precision}, quantises nothing"
            )
    if plan.joint_backbone and resolved["vision_model"].backend == "eager":
        out.append("joint_backbone has no effect: the backbone stays in eager PyTorch")
    if plan.cuda_graph_lengths and plan.cuda_graph == "none":
        out.append("cuda_graph_lengths has no effect: cuda_graph is none")
    length, views = plan.ranges.length, plan.ranges.views[1]
    if length and length[1] <= (needed := ARCHITECTURE.image_tokens * views):
        out.append(
            f"ranges.length ends at {length[1]} tokens, but {views} views of 224 x 224 take {needed} alone: requests "
            "with that many views will be refused"
        )
    return out
