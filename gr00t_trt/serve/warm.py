"""The batches that a server may make, got ready before it reports so: one graph or one warm call for each size."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from ..common.devices import side_stream
from ..common.interface import Observation
from ..errors import UsageError
from ..measure.workloads import noise_of
from ..policy.policy import Gr00tPolicy
from .batching import Batcher
from .mixed import mixed_inputs
from .robots import Robot


def warm_batches(
    policy: Gr00tPolicy, batcher: Batcher, observation: Observation, sizes: Sequence[int], note: Callable[[str], None]
) -> None:
    """Answer an observation as a batch of each size, or capture that where requests are replayed.

    Args:
        observation: A single one, of which batches are made; what cannot be joined is left alone.
        note: Told in a sentence of a size that no graph was captured for.
    Raises: UsageError where what was compiled keeps one graph, which every other batch would throw away.
    """
    if batcher.form(observation) is None:
        return
    graphs: Any = policy.model.graphs
    if graphs is not None:
        graphs.expect(1 + len(sizes))  # or batches would push out the prompts of single requests
    with side_stream(policy.model.device):
        for size in sizes:
            joined = batcher.join([observation] * size)
            if graphs is None:
                policy.get_action(joined)
            else:
                _ready(policy, policy.preprocess(joined)[0], size, note)


def warm(
    first: Robot, observation: Observation, others: Sequence[Robot], sizes: Sequence[int], note: Callable[[str], None]
) -> None:
    """The same for several kinds of robots on one model, and for batches of different ones.

    Args:
        observation: Of the first kind; of the others, their policies' examples are taken.
    """
    policy, graphs = first.policy, first.policy.model.graphs
    assert first.batcher is not None
    if others and graphs is not None:
        graphs.expect(1 + len(others) + bool(sizes))
    warm_batches(policy, first.batcher, observation, sizes, note)
    parts = [(first, observation), *((each, each.policy.example()) for each in others)]
    with side_stream(policy.model.device):
        for robot, own in parts[1:]:
            for size in (1, *sizes):
                _ready(policy, mixed_inputs([(robot, [own] * size)]), size, note)
        alike = [part for part in parts if _shared_form(*part) == _shared_form(*parts[0])]
        for size in sizes if len(alike) > 1 else ():
            turns = [(part, len(range(place, size, len(alike)))) for place, part in enumerate(alike)]
            mixed = [(robot, [own] * count) for (robot, own), count in turns if count]
            _ready(policy, mixed_inputs(mixed), size, note)


def _shared_form(robot: Robot, observation: Observation) -> Hashable:
    assert robot.batcher is not None
    return robot.batcher.shared_form(observation)


def _ready(policy: Gr00tPolicy, inputs: Mapping[str, Any], size: int, note: Callable[[str], None]) -> None:
    graphs: Any = policy.model.graphs
    if graphs is None:
        policy.predict(inputs, None)
        return
    before = len(graphs)
    refused = graphs.capture(policy.model.prepare(inputs), noise_of(policy.model, size, 0))
    if refused is not None:
        note(f"batches of {size} run kernel by kernel: {refused}")
    elif len(graphs) <= before:
        raise UsageError(
            f"--max_batch and --cuda_graph: what was compiled keeps {before} graphs, and each batch needs one",
            known="backends without state of their own, such as inductor",
            fix="leave one of both out",
        )
