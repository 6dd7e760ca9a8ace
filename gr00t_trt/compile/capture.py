"""A plan's CUDA graphs: whether they are possible here, and the first captures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..backends import get_backend
from ..errors import PlanError
from ..model import Gr00tConfig
from ..model.n1_5.fast import Capturer, CudaCapturer, FastGr00tN1d5, RequestGraphs
from ..model.n1_5.fast.graphs import LIMIT
from ..model.n1_5.inputs import IDS, MASK
from ..plans.schema import Plan

Note = Callable[[str], None]

UNCAPTURED = "no graph was captured, so requests run kernel by kernel"


def capture_requests(
    model: FastGr00tN1d5,
    plan: Plan,
    inputs: Mapping[str, Any],
    noise: torch.Tensor,
    *,
    backends: Mapping[str, str],
    capturer: Capturer | None,
    note: Note,
) -> dict[str, Any] | None:
    """Let graphs answer the requests of a compiled model, where the plan asks for it and the machine can.

    Args:
        model: Compiled and compared with eager fp32; its `graphs` are set.
        inputs, noise: The request that the model was compiled for.
        backends: Stage -> backend of what was compiled.
        capturer: As `capturer_for` gives it.
        note: Told in a sentence what could not be captured, and why.
    Returns: For the record's `end_to_end.cuda_graph`: `graphs`, `input_bytes`, and the largest difference to the
        uncaptured model, `strayed`; None when every request runs uncaptured.
    Raises: PlanError for a prompt length that the observation's images do not fit into; ShapeError for one that a
        compiled stage was not built for.
    """
    never, single = (
        ", ".join(f"{name} ({used})" for name, used in backends.items() if get_backend(used).capturable == kind)
        for kind in ("none", "one shape")
    )
    if capturer is None:
        note(f"{UNCAPTURED}: the model is not on a GPU")
        return None
    if never:
        note(f"{UNCAPTURED}: the backend of {never} cannot be captured")
        return None
    graphs = RequestGraphs(
        model,
        capturer,
        on_demand=plan.cuda_graph == "on_demand",
        one_shape=bool(single),
        limit=max(LIMIT, 1 + len(plan.cuda_graph_lengths)),
    )
    refused = graphs.capture(model.prepare(inputs), noise)
    if refused is not None:
        note(f"{UNCAPTURED}: {refused}")
        return None
    further = [length for length in plan.cuda_graph_lengths if length != inputs[IDS].shape[1]]
    if single:
        note(f"requests of one shape only are captured, and again when another came between, because of {single}")
        further = []
    for length in further:
        refused = graphs.capture(model.prepare(with_length(inputs, length, model.config)), noise)
        if refused is not None:
            note(f"prompts of {length} tokens run kernel by kernel: {refused}")
    model.graphs = graphs
    return {"graphs": len(graphs), "input_bytes": graphs.input_bytes, "strayed": graphs.strayed}


def capturer_for(device: torch.device) -> Capturer | None:
    """What captures on a device; None where nothing can be."""
    return CudaCapturer(device) if device.type == "cuda" else None


def with_length(inputs: Mapping[str, Any], length: int, config: Gr00tConfig) -> dict[str, Any]:
    """The request with text tokens left out at the end, or the last one repeated, so that prompts have `length` tokens.

    Raises: PlanError where not even the images fit.
    """
    ids, mask = inputs[IDS], inputs[MASK]
    is_text = (ids != config.image_token_index).all(dim=0)
    text, position, surplus = is_text.nonzero().flatten(), torch.arange(ids.shape[1]), ids.shape[1] - length
    if surplus >= len(text):
        raise PlanError(
            f"cuda_graph_lengths: {length} tokens are too few for the observation's images",
            known=f"at least {ids.shape[1] - len(text) + 1}",
        )
    if surplus > 0:
        is_text[text[:-surplus]] = False
        position = position[~is_text]
    else:
        position = torch.cat((position, text[-1:].expand(-surplus)))
    return {**inputs, IDS: ids[:, position], MASK: mask[:, position]}
