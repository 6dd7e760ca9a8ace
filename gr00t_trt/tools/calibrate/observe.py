"""Whole requests over recorded frames, each with fresh noise: what linear layers are given, and layers ranked."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ...data import LeRobotDataset
from ...data.dataset_statistics import Advance
from ...errors import UsageError
from ...model.protocol import Inputs, Model
from ...model.targets import Call
from ...plans.schema import ARCHITECTURE
from ...policy.policy import Gr00tPolicy
from ...quantize.calibration import Frame, Observed
from ...quantize.layers import linear_layers, quantizable, with_replaced
from ...quantize.linear import QuantLinear
from ...quantize.observe import observe
from ...quantize.ranking import noise_by_layer


def choose_frames(dataset: LeRobotDataset, episodes: Sequence[int] | None, count: int) -> tuple[Frame, ...]:
    """Frames in the middle of equal parts of each episode, as many in each as possible.

    Args:
        episodes: The first two of the dataset where None.
    Raises: UsageError for an episode that the dataset does not have, and for more frames than there are rows.
    """
    lengths = {episode.index: episode.length for episode in dataset.episodes}
    wanted = list(dict.fromkeys(episodes if episodes is not None else list(lengths)[:2]))
    for episode in wanted:
        if episode not in lengths:
            known = f"{min(lengths)} to {max(lengths)}"
            raise UsageError(f"--episodes: {dataset.path} has no episode {episode}", known=known)
    shares = [count // len(wanted) + (number < count % len(wanted)) for number in range(len(wanted))]
    for episode, share in zip(wanted, shares, strict=True):
        if share > lengths[episode]:
            raise UsageError(
                f"--frames: {share} of episode {episode}, which has {lengths[episode]} rows",
                fix="ask for fewer, or name more --episodes",
            )
    return tuple(
        (episode, int((part + 0.5) * lengths[episode] / share))
        for episode, share in zip(wanted, shares, strict=True)
        for part in range(share)
    )


class Requests:
    """Recorded frames as requests; the noise of a frame is always the same.

    Args:
        seed: Of the first frame's noise; every frame has its own.
    """

    def __init__(self, policy: Gr00tPolicy, dataset: LeRobotDataset, frames: Sequence[Frame], seed: int):
        self.policy, self.dataset, self.frames, self.seed = policy, dataset, frames, seed
        plain = policy.model
        self.model: Model = plain.architecture.restructured(plain, tuple(ARCHITECTURE.optimizations))
        # Stage by stage, so that every layer is called: in a whole step the last one is folded into the next stage's.
        self.model.loop = ARCHITECTURE.loops[0]

    def __getitem__(self, number: int) -> tuple[Inputs, Tensor]:
        """Model inputs, and noise fp32 [1, T, 32]. Raises: Gr00tError for a frame that cannot be read."""
        episode, row = self.frames[number]
        step = self.dataset.step(episode, row)
        inputs, _ = self.policy.preprocess({k: v for k, v in step.items() if not k.startswith("action.")})
        shape = (1, self.model.action_horizon, self.model.config.action_head.action_dim)
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + number))
        return inputs, noise.to(self.model.device)


def observe_frames(requests: Requests, advance: Advance = lambda done, total: None) -> dict[str, Observed]:
    """As `quantize.observe.observe`, of all requests."""
    done, total = iter(range(1, len(requests.frames) + 1)), len(requests.frames)
    asked = ((frame, *requests[number]) for number, frame in enumerate(requests.frames))
    return observe(requests.model, asked, advance=lambda: advance(next(done), total))


@torch.no_grad()
def rank(
    requests: Requests,
    observed: Mapping[str, Observed],
    forms: Sequence[str],
    advance: Advance,
    frames: int,
) -> dict[str, dict[str, float]]:
    """Layer -> format -> the share of its stage's output that becomes noise when it alone is quantised.

    Stages get the inputs that they have in the fp32 model; of a stage that a request calls several times, one call of
    each frame, another denoising step each.

    Args:
        frames: So many, spread over the calibrated ones.
    """
    every = max(len(requests.frames) // frames, 1)
    recordings = [requests.model.record(*requests[n])[0] for n in range(0, len(requests.frames), every)][:frames]
    layers = {name: one for name, one in quantizable(linear_layers(requests.model)).items() if name in observed}
    out: dict[str, dict[str, float]] = {name: {} for name in layers}
    done, total = itertools.count(1), len(layers) * len(forms)
    for stage in ARCHITECTURE.attention:
        own = {name: one for name, one in layers.items() if name.startswith(f"{stage}/")}
        module = requests.model.eager_stage(stage)
        calls = [recording[stage][n % len(recording[stage])] for n, recording in enumerate(recordings)]
        run, recalled = partial(_run, calls), _outputs_of_blocks(module, calls)
        for form in forms:
            makers = _makers(module, own, observed, form, recalled)
            for name, share in noise_by_layer(run, module, makers, lambda: advance(next(done), total)).items():
                out[name][form] = share
    return out


Given = list[tuple[nn.Module, list[Tensor]]]
"""Blocks of a stage in order, each with its output of every call."""


def _outputs_of_blocks(stage: nn.Module, calls: Sequence[Call]) -> list[Given]:
    """What the blocks of each list of a stage give."""
    lists = {name: one for name, one in stage.named_modules() if isinstance(one, nn.ModuleList)}
    outer = {name: one for name, one in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}
    seen: list[Given] = [[(block, []) for block in blocks] for blocks in outer.values()]
    handles = [
        block.register_forward_hook(lambda _, __, made, kept=kept: kept.append(made.clone()))
        for blocks in seen
        for block, kept in blocks
    ]
    try:
        _run(calls, stage)
    finally:
        for handle in handles:
            handle.remove()
    return [blocks for blocks in seen if all(len(kept) == len(calls) for _, kept in blocks)]


def _recalling(block: nn.Module, outputs: Sequence[Tensor]) -> nn.Module:
    """Stands in for a block whose inputs have not changed: it gives its recorded outputs, call by call."""
    twin, answers = copy.copy(block), itertools.cycle(outputs)
    twin.forward = lambda *_: next(answers).clone()
    return twin


def _makers(
    stage: nn.Module,
    layers: Mapping[str, nn.Linear],
    observed: Mapping[str, Observed],
    form: str,
    recalled: Sequence[Given],
) -> dict[str, Callable[[], nn.Module]]:
    """Layer -> makes the stage in which it alone is quantised, and the blocks before its own compute nothing anew."""

    def make(name: str) -> nn.Module:
        replaced: dict[int, nn.Module] = {}
        for blocks in recalled:
            own = next((n for n, (block, _) in enumerate(blocks) if layers[name] in block.modules()), 0)
            replaced |= {id(block): _recalling(block, outputs) for block, outputs in blocks[:own]}
        replaced[id(layers[name])] = QuantLinear(layers[name], form, observed[name].channels)
        made: nn.Module = with_replaced(stage, replaced)
        return made

    return {name: partial(make, name) for name in layers}


def _run(calls: Sequence[Call], stage: nn.Module) -> list[Tensor]:
    return [stage(*call.inputs) for call in calls]
