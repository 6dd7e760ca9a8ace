"""Whole requests over recorded frames, each with fresh noise, while every linear layer's input is watched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...data import LeRobotDataset
from ...errors import DatasetError, UsageError
from ...model.protocol import Model
from ...model.targets import Call
from ...plans.schema import ARCHITECTURE
from ...policy.policy import Gr00tPolicy
from ...quantize.calibration import Frame, Observed, weight_hashes
from ...quantize.layers import linear_layers, quantizable, with_replaced
from ...quantize.linear import QuantLinear
from ...quantize.ranking import noise_by_layer

RANK_FRAMES = 4
"""Frames, spread over the calibrated ones, whose requests every layer is ranked on."""

Advance = Callable[[int, int], None]
"""Told how many of how many are done."""


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

    def __getitem__(self, number: int) -> tuple[Mapping[str, Any], Tensor]:
        """Model inputs, and noise fp32 [1, T, 32]. Raises: Gr00tError for a frame that cannot be read."""
        episode, row = self.frames[number]
        step = self.dataset.step(episode, row)
        inputs, _ = self.policy.preprocess({k: v for k, v in step.items() if not k.startswith("action.")})
        shape = (1, self.model.action_horizon, self.model.config.action_head.action_dim)
        # Drawn on the host: a GPU's generator would give other numbers for the same seed.
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(self.seed + number))
        return inputs, noise.to(self.model.device)


@torch.no_grad()
def observe(requests: Requests, advance: Advance = lambda done, total: None) -> dict[str, Observed]:
    """What the inputs of every linear layer reach, by ``stage/layer``, in whole requests of all denoising steps.

    Raises: DatasetError for a frame that makes an input that is not finite.
    """
    layers = linear_layers(requests.model)
    channels: dict[str, Tensor] = {}
    history: dict[str, list[float]] = {name: [] for name in layers}
    with _watching(layers, channels):
        for number, frame in enumerate(requests.frames):
            inputs, noise = requests[number]
            requests.model.get_action(inputs, noise)
            for name, seen in channels.items():
                history[name].append(float(seen.amax()))
                if not torch.isfinite(seen).all():
                    raise DatasetError(f"episode {frame[0]}, row {frame[1]}: the input of {name} is not finite")
            advance(number + 1, len(requests.frames))
    return {
        name: Observed(channels[name].cpu(), torch.tensor(history[name]), weight_hashes(layers[name].weight))
        for name in layers
        if name in channels
    }


@contextmanager
def _watching(layers: Mapping[str, nn.Linear], channels: dict[str, Tensor]) -> Iterator[None]:
    """Inside, `channels` follows the largest magnitude of every layer's input channels."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            now = args[0].detach().float().abs().flatten(0, -2).amax(dim=0)
            channels[name] = torch.maximum(channels[name], now) if name in channels else now

        return hook

    handles = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def rank(
    requests: Requests, observed: Mapping[str, Observed], forms: Sequence[str], advance: Advance
) -> dict[str, dict[str, float]]:
    """Layer -> format -> the share of its stage's output that becomes noise when it alone is quantised.

    Stages get the inputs that they have in the fp32 model, of `RANK_FRAMES` frames.
    """
    every = max(len(requests.frames) // RANK_FRAMES, 1)
    recordings = [requests.model.record(*requests[n])[0] for n in range(0, len(requests.frames), every)][:RANK_FRAMES]
    layers = {name: one for name, one in quantizable(linear_layers(requests.model)).items() if name in observed}
    out: dict[str, dict[str, float]] = {name: {} for name in layers}
    done = iter(range(1, len(layers) * len(forms) + 1))
    for stage in ARCHITECTURE.attention:
        own = {name: one for name, one in layers.items() if name.startswith(f"{stage}/")}
        calls = [call for recording in recordings for call in recording[stage]]
        for form in forms:
            makers = _makers(requests.model.eager_stage(stage), own, observed, form)
            run, told = partial(_run, calls), lambda: advance(next(done), len(layers) * len(forms))
            for name, share in noise_by_layer(run, requests.model.eager_stage(stage), makers, told).items():
                out[name][form] = share
    return out


def _makers(
    stage: nn.Module, layers: Mapping[str, nn.Linear], observed: Mapping[str, Observed], form: str
) -> dict[str, Callable[[], nn.Module]]:
    """Layer -> makes the stage in which it alone is quantised."""

    def make(name: str) -> nn.Module:
        one = QuantLinear(layers[name], form, observed[name].channels)
        made: nn.Module = with_replaced(stage, {id(layers[name]): one})
        return made

    return {name: partial(make, name) for name in layers}


def _run(calls: Sequence[Call], stage: nn.Module) -> list[Tensor]:
    return [stage(*call.inputs) for call in calls]
