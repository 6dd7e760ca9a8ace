"""A plan's CUDA graphs: whether they are possible here, and the first captures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import BackendError, PlanError
from ..model.n1_5.fast import Capturer, CudaCapturer, RequestGraphs
from ..model.n1_5.fast.graphs import LIMIT
from ..model.n1_5.inputs import IDS, MASK
from ..model.protocol import Inputs, Model
from ..plans.backends import get_backend
from ..plans.schema import Plan
from ..plans.submodules import graph_tolerance
from ..record.schema import Replay

UNCAPTURED = "no graph was captured, so requests run kernel by kernel"


def request_graphs(
    model: Model,
    backends: Mapping[str, str],
    *,
    tolerance: float,
    on_demand: bool = False,
    limit: int = LIMIT,
    capturer: Capturer | None = None,
) -> RequestGraphs:
    """What replays the requests of a compiled model, with nothing captured yet.

    Args:
        backends: Stage -> backend of what was compiled.
        tolerance: See `plans.submodules.graph_tolerance`.
        capturer: By default as `capturer_for` gives it.
    Raises: BackendError where no request can be captured.
    """
    never, single = (_of_kind(backends, kind) for kind in ("none", "one shape"))
    capturer = capturer or capturer_for(model.device)
    if capturer is None:
        raise BackendError("one CUDA graph: the model is not on a GPU")
    if never:
        raise BackendError(f"one CUDA graph: the backend of {never} cannot be captured")
    restructured: Any = model  # no plan replays another
    return RequestGraphs(
        restructured, capturer, tolerance=tolerance, on_demand=on_demand, one_shape=bool(single), limit=limit
    )


def _of_kind(backends: Mapping[str, str], kind: str) -> str:
    return ", ".join(f"{name} ({used})" for name, used in backends.items() if get_backend(used).capturable == kind)


def capture_requests(
    model: Model,
    plan: Plan,
    inputs: Inputs,
    noise: torch.Tensor,
    *,
    backends: Mapping[str, str],
    note: Callable[[str], None],
    capturer: Capturer | None = None,
) -> Replay | None:
    """Let graphs answer the requests of a compiled model, where the machine can.

    Args:
        model: Compiled and compared with eager fp32; its `graphs` are set.
        inputs, noise: The request that the model was compiled for.
        backends: Stage -> backend of what was compiled.
        note: Told in a sentence what could not be captured, and why.
    Returns: For the record; None when every request runs uncaptured.
    Raises: PlanError for a prompt length that the observation's images do not fit into; ShapeError for one that a
        compiled stage was not built for.
    """
    limit, on_demand = max(LIMIT, 1 + len(plan.cuda_graph_lengths)), plan.cuda_graph == "on_demand"
    tolerance = graph_tolerance(plan)
    try:
        graphs = request_graphs(
            model, backends, tolerance=tolerance, on_demand=on_demand, limit=limit, capturer=capturer
        )
    except BackendError as error:
        note(f"{UNCAPTURED}: {str(error).removeprefix('one CUDA graph: ')}")
        return None
    refused = graphs.capture(model.prepare(inputs), noise)
    if refused is not None:
        note(f"{UNCAPTURED}: {refused}")
        return None
    further = [length for length in plan.cuda_graph_lengths if length != inputs[IDS].shape[1]]
    if single := _of_kind(backends, "one shape"):
        note(f"requests of one shape only are captured, and again when another came between, because of {single}")
        further = []
    for length in further:
        refused = graphs.capture(model.prepare(with_length(inputs, length, model.config)), noise)
        if refused is not None:
            note(f"prompts of {length} tokens run kernel by kernel: {refused}")
    model.graphs = graphs
    return Replay(len(graphs), graphs.input_bytes, graphs.max_rel_error)


def capturer_for(device: torch.device) -> Capturer | None:
    """What captures on a device; None where nothing can be."""
    return CudaCapturer(device) if device.type == "cuda" else None


def with_length(inputs: Inputs, length: int, config: Any) -> dict[str, torch.Tensor]:
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
