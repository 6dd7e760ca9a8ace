"""What the inputs of every linear layer reach while requests are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..errors import DatasetError
from ..model.protocol import Inputs, Model
from .calibration import Frame, Observed, weight_hashes
from .layers import linear_layers

Asked = tuple[Frame, Inputs, Tensor]
"""The frame that a request is made of, its model inputs, and noise fp32 [1, T, 32]."""


@torch.no_grad()
def observe(
    model: Model,
    requests: Iterable[Asked],
    *,
    hashed: bool = True,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Observed]:
    """What the inputs of every linear layer reach, by ``stage/layer``, in whole requests of all denoising steps.

    Args:
        model: Restructured with all optimizations, in fp32.
        hashed: Note which weights these are, which takes seconds and only serves a calibration that is written.
        advance: Called after each request.
    Raises: DatasetError for a frame that makes an input that is not finite.
    """
    layers = linear_layers(model)
    channels: dict[str, Tensor] = {}
    history: dict[str, list[float]] = {name: [] for name in layers}
    with _watching(layers, channels):
        for frame, inputs, noise in requests:
            model.get_action(inputs, noise)
            for name, seen in channels.items():
                history[name].append(float(seen.amax()))
                if not torch.isfinite(seen).all():
                    raise DatasetError(f"episode {frame[0]}, row {frame[1]}: the input of {name} is not finite")
            advance()
    hashes = {name: weight_hashes(layer.weight) if hashed else () for name, layer in layers.items()}
    return {
        name: Observed(channels[name].cpu(), torch.tensor(history[name]), hashes[name])
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

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(watch(name)))
        yield
