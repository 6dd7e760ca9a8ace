"""The registry of compile targets, and the recording of their real inputs.

One table says what each submodule is called with and which axes vary; everything else (compiling, timing,
checking, exporting) is written once and reads this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .backends.base import Target
from .errors import PlanError, unknown
from .model import Gr00tConfig, Gr00tN1d5
from .settings import GROUPS, SUBMODULES, Ranges
from .shapes import DimRange

BATCH, IMAGES, LENGTH = "batch", "images", "length"


@dataclass(frozen=True)
class Submodule:
    """One compile target: the stage of the model that it replaces, and what varies in its inputs.

    Attributes:
        name: Name on the command line, in plans, in records and in `model.stages`.
        arguments: Argument name -> axis -> name of the dimension that varies along it.
    """

    name: str
    arguments: Mapping[str, Mapping[int, str]]


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


def select(fn_name: str, *, joint_backbone: bool = False) -> tuple[str, ...]:
    """Names of the compile targets that a `--fn_name` value stands for, in the order of a request.

    Args:
        fn_name: A submodule, or one of the groups ``eagle_backbone``, ``action_head``, ``all``.
        joint_backbone: The backbone is one target instead of two.
    Raises: PlanError for an unknown name, with the nearest valid one.
    """
    if fn_name not in GROUPS and fn_name not in SUBMODULES:
        raise unknown(PlanError, "--fn_name", fn_name, (*SUBMODULES, *GROUPS))
    names = GROUPS.get(fn_name, (fn_name,))
    if not joint_backbone:
        return names
    backbone = GROUPS["eagle_backbone"]
    if fn_name in backbone:
        raise PlanError(
            f"--use_eagle_backbone_joint compiles {' and '.join(backbone)} as one graph, so --fn_name {fn_name} "
            "alone has nothing to compile",
            fix="use --fn_name eagle_backbone, or leave --use_eagle_backbone_joint out",
        )
    rest = tuple(n for n in names if n not in backbone)
    return ("eagle_backbone", *rest) if rest != names else names


@dataclass(frozen=True)
class Call:
    """One recorded call of a stage: its tensors and its result."""

    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor


Recording = Mapping[str, tuple[Call, ...]]
"""Stage name -> its calls within one request, in order; the loop's stages have one per denoising step."""


def record(model: Gr00tN1d5, inputs: Mapping[str, Any], noise: torch.Tensor) -> tuple[Recording, torch.Tensor]:
    """Run one request and keep what every stage was called with and what it returned.

    Args:
        inputs: Model inputs of a real observation, as `Gr00tPolicy.preprocess` makes them.
        noise: [B, T, action_dim] initial noise.
    Returns: The recording, and `action_pred` [B, T, action_dim] of the same request.
    """
    calls: dict[str, list[Call]] = {name: [] for name in REGISTRY}

    def recorder(name: str, stage: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: torch.Tensor) -> torch.Tensor:
            output = stage(*args)
            calls[name].append(Call(tuple(a.detach().clone() for a in args), output.detach().clone()))
            return output

        return call

    original = dict(model.stages)
    try:
        for name, stage in original.items():
            model.stages[name] = recorder(name, stage)
        actions = model.get_action(inputs, noise=noise)["action_pred"]
    finally:
        model.stages.update(original)
    return {name: tuple(c) for name, c in calls.items()}, actions


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
    spec = REGISTRY[name]
    dtype = model.stage_dtypes[name]
    inputs = tuple((x.to(dtype) if x.is_floating_point() else x).to(model.device) for x in recording[name][0].inputs)
    return Target(
        name=name,
        module=model.eager_stage(name),
        inputs=inputs,
        argument_names=tuple(spec.arguments),
        ranges=tuple({axis: dims[dim] for axis, dim in axes.items()} for axes in spec.arguments.values()),
    )
