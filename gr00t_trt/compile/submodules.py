"""The registry of compile targets, and the recording of their real inputs.

One table says what each submodule is called with and which axes vary; everything else (compiling, timing,
checking, exporting) is written once and reads this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import PlanError, unknown
from ..model import Gr00tConfig, Gr00tN1d5
from ..model.targets import (
    BATCH,
    IMAGES,
    LENGTH,
    DimRange,
    Recording,
    Submodule,
    Target,
    make_target,
    recording_calls,
)
from ..plans.schema import GROUPS, LOOPS, SUBMODULES, Plan, Ranges

REGISTRY: Mapping[str, Submodule] = {
    s.name: s
    for s in (
        Submodule("vision_model", {"pixel_values": {0: IMAGES}}),
        Submodule(
            "language_model",
            {"inputs_embeds": {0: BATCH, 1: LENGTH}, "attention_mask": {0: BATCH, 1: LENGTH}},
        ),
        Submodule("vl_components", {"backbone_features": {0: BATCH, 1: LENGTH}}),
        Submodule("state_encoder", {"state": {0: BATCH}, "embodiment_id": {0: BATCH}}),
        Submodule("action_encoder", {"actions": {0: BATCH}, "timestep": {0: BATCH}, "embodiment_id": {0: BATCH}}),
        Submodule(
            "dit_model",
            {"hidden_states": {0: BATCH}, "encoder_hidden_states": {0: BATCH, 1: LENGTH}, "timestep": {0: BATCH}},
        ),
        Submodule("action_decoder", {"model_output": {0: BATCH}, "embodiment_id": {0: BATCH}}),
        # The joint target of --use_eagle_backbone_joint: vision tower, connector, embedding and LLM in one graph.
        Submodule(
            "eagle_backbone",
            {
                "pixel_values": {0: IMAGES},
                "input_ids": {0: BATCH, 1: LENGTH},
                "attention_mask": {0: BATCH, 1: LENGTH},
            },
        ),
    )
}


STEP = ("action_encoder", "dit_model", "action_decoder")
"""What one denoising step consists of, and what `denoise_step` and `denoise_loop` take the place of."""

GOVERNED: Mapping[str, tuple[str, ...]] = {
    "eagle_backbone": GROUPS["eagle_backbone"],
    "denoise_step": STEP,
    "denoise_loop": STEP,
}
"""Compile target made of several submodules -> those submodules, which get the same backend in a plan."""


def select(fn_name: str, plan: Plan) -> tuple[str, ...]:
    """Names of the compile targets that a `--fn_name` value stands for, in the order of a request.

    Args:
        fn_name: A submodule, one of the groups ``eagle_backbone``, ``action_head``, ``all``, or, of the restructured
            model, ``denoise_step`` and ``denoise_loop``.
        plan: Whether the backbone is one target, and which model and loop there are.
    Raises: PlanError for an unknown name, with the nearest valid one, and for a target that the plan rules out.
    """
    further = LOOPS[1:]
    if fn_name not in (*GROUPS, *SUBMODULES, *further):
        raise unknown(PlanError, "--fn_name", fn_name, (*SUBMODULES, *GROUPS, *further))
    if fn_name in further and not plan.optimisations:
        raise PlanError(f"--fn_name {fn_name}: a part of the restructured model only", fix="use --optimisations all")
    if fn_name in LOOPS and fn_name != plan.loop:
        raise PlanError(f"--fn_name {fn_name}: the plan's loop is {plan.loop}", fix=f"add --loop {fn_name}")
    if fn_name in STEP and plan.loop != "submodules":
        raise PlanError(
            f"--fn_name {fn_name}: the plan's loop is {plan.loop}, which contains it", fix="use --loop submodules"
        )
    names = list(GROUPS.get(fn_name, (fn_name,)))
    backbone = GROUPS["eagle_backbone"]
    if plan.joint_backbone and fn_name in backbone:
        raise PlanError(
            f"--use_eagle_backbone_joint compiles {' and '.join(backbone)} as one graph, so --fn_name {fn_name} "
            "alone has nothing to compile",
            fix="use --fn_name eagle_backbone, or leave --use_eagle_backbone_joint out",
        )
    if plan.joint_backbone and backbone[0] in names:
        names = ["eagle_backbone", *(n for n in names if n not in backbone)]
    if plan.loop != "submodules" and set(STEP) <= set(names):
        names = [*(n for n in names if n not in STEP), plan.loop]
    return tuple(names)


def record(model: Gr00tN1d5, inputs: Mapping[str, Any], noise: torch.Tensor) -> tuple[Recording, torch.Tensor]:
    """Run one request and keep what every stage was called with and what it returned.

    Args:
        inputs: Model inputs of a real observation, as `Gr00tPolicy.preprocess` makes them.
        noise: [B, T, action_dim] initial noise.
    Returns: The recording, and `action_pred` [B, T, action_dim] of the same request.
    """
    with recording_calls(model.stages) as calls:
        actions = model.get_action(inputs, noise=noise)["action_pred"]
    return {name: tuple(own) for name, own in calls.items()}, actions


def dimension_ranges(config: Gr00tConfig, ranges: Ranges, recording: Recording) -> dict[str, DimRange]:
    """The declared range of every varying dimension, tuned for the recorded request.

    Raises: PlanError when the recorded request itself lies outside the plan's ranges.
    """
    images = recording["vision_model"][0].inputs[0].shape[0]
    batch, length = recording["language_model"][0].inputs[0].shape[:2]
    span = ranges.length or (32, 3 * config.tokens_per_image + 256)
    bounds = {
        BATCH: (batch, ranges.batch),
        IMAGES: (images, (ranges.batch[0] * ranges.views[0], ranges.batch[1] * ranges.views[1])),
        LENGTH: (length, span),
    }
    out = {}
    for name, (size, (minimum, maximum)) in bounds.items():
        if not minimum <= size <= maximum:
            raise PlanError(
                f"the observation has {name} {size}, outside the plan's range {minimum} to {maximum}",
                known="ranges: batch, views and length are [minimum, maximum]; images are batch times views",
                fix=f"widen `ranges` in the plan so that {name} {size} fits",
            )
        out[name] = DimRange(name, minimum, size, maximum)
    return out


def target(model: Gr00tN1d5, name: str, recording: Recording, dims: Mapping[str, DimRange]) -> Target:
    """A submodule of `model` with its recorded inputs, ready for a backend.

    Floating inputs are given in the stage's own dtype, on the model's device.
    """
    dtypes = model.argument_dtypes(name)
    return make_target(REGISTRY[name], model.eager_stage(name), recording[name][0], dtypes, model.device, dims)
