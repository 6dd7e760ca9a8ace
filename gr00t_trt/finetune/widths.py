"""A model for robots with more joints than it was made for, in which all other robots stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch.nn.functional import pad

from ..errors import PlanError
from ..model import Gr00tN1d5
from ..model.weights import set_parameter

ACTION_AXES: Mapping[str, int] = {
    "action_head.action_encoder.W1.W": 1,
    "action_head.action_decoder.layer2.W": 2,
    "action_head.action_decoder.layer2.b": 1,
}
"""Parameters with one entry per action column -> the axis they lie along. A wider model must train all of them, since
no checkpoint of the base holds them in that shape."""


@torch.no_grad()
def widen_actions(model: Gr00tN1d5, action_dim: int) -> None:
    """Give a model more action columns, in place, before it is trained.

    The first columns of every robot's encoder and decoder are the old ones, to the bit; the new ones are zero, in which
    state both learn: an encoder that ignores a column, and a decoder that predicts 0 for it.

    Args:
        model: The plain one, with all robots' slots.
        action_dim: Columns afterwards, at least as many as now.
    Raises: PlanError for fewer.
    """
    head = model.config.action_head
    if action_dim < head.action_dim:
        what = f"actions of {action_dim} columns: the model has {head.action_dim}, and other robots use them"
        raise PlanError(what, fix="pad the data config's actions up to the model's width")
    parameters = dict(model.named_parameters())
    for name, axis in ACTION_AXES.items():
        old = parameters[name]
        after = [0, 0] * (old.ndim - 1 - axis) + [0, action_dim - head.action_dim]  # pad's order: the last axis first
        set_parameter(model, name, pad(old, after))
    wider = replace(head, action_dim=action_dim)
    model.config = replace(model.config, action_head=wider)
    model.action_head.config = wider
