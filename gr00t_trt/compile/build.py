"""A plan's precisions set on a model, and the sizes that its compiled submodules must accept."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from ..errors import PlanError
from ..model.architecture import BATCH, IMAGES, LENGTH
from ..model.protocol import Model
from ..model.targets import DimRange
from ..plans.precisions import PRECISIONS
from ..plans.schema import SUBMODULES, Plan, Ranges
from ..plans.submodules import resolve_submodule


def torch_dtype(precision: str) -> torch.dtype:
    """The dtype of weights and activations in a precision."""
    return getattr(torch, PRECISIONS[precision].dtype)


def set_precision(model: Model, plan: Plan) -> None:
    """Cast every submodule to its planned dtype, and what lies between them to the plan's own.

    In place, tensor by tensor: a model in fp32 becomes smaller and is never held twice.
    """
    model.cast_glue(torch_dtype(plan.precision))
    joint = model.architecture.joint if plan.joint_backbone else ()
    # One graph has one dtype, what lies between its parts included.
    for name in (*SUBMODULES, *joint):
        model.cast_stage(name, torch_dtype(resolve_submodule(plan, name).precision))


class Sized(Protocol):
    """A request's sizes."""

    @property
    def workload(self) -> Any: ...
    @property
    def length(self) -> int: ...
    @property
    def images(self) -> int: ...


def dimension_ranges(config: Any, ranges: Ranges, request: Sized) -> dict[str, DimRange]:
    """The declared range of every varying dimension, tuned for a request.

    Raises: PlanError when the request itself lies outside the plan's ranges.
    """
    span = ranges.length or (32, 3 * config.tokens_per_image + 256)
    bounds = {
        BATCH: (request.workload.batch, ranges.batch),
        IMAGES: (request.images, (ranges.batch[0] * ranges.views[0], ranges.batch[1] * ranges.views[1])),
        LENGTH: (request.length, span),
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
