"""Layers ranked by the noise that each adds to its stage's output: noise powers add up, so any set can be predicted."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import PlanError
from ..plans.precisions import Gate
from ..plans.schema import CALIBRATE

MARGIN_DB = 1.0
"""What a prediction must be better than the gate: the frames of a ranking are not those of a check."""


def decibels(share: float) -> float:
    """A noise share as a signal-to-noise ratio; infinite for none."""
    return -10 * math.log10(share) if share > 0 else math.inf


def needed_db(gate: Gate) -> float:
    """The signal-to-noise ratio at which both the cosine and the decibels of a gate hold."""
    cosine = gate.cosine or 0.0
    from_cosine = decibels(2 * (1 - cosine)) if cosine < 1 else math.inf
    return max(from_cosine, gate.sqnr_db or 0.0)


def worst(noise: Mapping[str, float | None], form: str, gate: Gate, calibration: str) -> tuple[str, ...]:
    """The fewest layers that must stay in 16 bit for the rest to pass a gate, the worst first.

    Args:
        noise: Layer -> its share of noise when it alone is quantised; None where that was not measured.
        calibration: The file that they come from, for the message.
    Raises: PlanError for layers that were not ranked.
    """
    known = {name: share for name, share in noise.items() if share is not None}
    if len(known) < len(noise):
        missing = next(name for name in noise if name not in known)
        raise PlanError(
            f"keep: auto: {calibration} has no ranking for {form}: {missing} is not in it",
            fix=f"rank its layers: {CALIBRATE} --rank {form}",
        )
    ranked = sorted(known, key=known.__getitem__, reverse=True)
    needed, left = needed_db(gate) + MARGIN_DB, math.fsum(known.values())
    kept = []
    for name in ranked:
        if decibels(left) >= needed:
            break
        kept.append(name)
        left = math.fsum(known[other] for other in ranked[len(kept) :])
    return tuple(kept)


def worst_besides(
    measured: Callable[[Collection[str]], float], noise: Mapping[str, float], form: str, gate: Gate
) -> set[str]:
    """Further layers that must stay in 16 bit where the noise of a request is more than a ranking predicts.

    Args:
        measured: What stays in 16 bit besides -> noise power over signal power of the stage's output.
        noise: Layer that is quantised -> its share of noise in the ranking.
    """
    kept: set[str] = set()
    while left := {name: share for name, share in noise.items() if name not in kept}:
        lost = measured(kept)
        if decibels(lost) >= needed_db(gate):
            break
        factor = lost / max(math.fsum(left.values()), 1e-30)
        more = worst({name: share * factor for name, share in left.items()}, form, gate, "")
        kept.update(more or (max(left, key=left.__getitem__),))
    return kept


@torch.no_grad()
def noise_by_layer(
    run: Callable[[nn.Module], Sequence[Tensor]],
    stage: nn.Module,
    quantized: Mapping[str, Callable[[], nn.Module]],
    advance: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Layer -> noise power over signal power of a stage's outputs, with that layer alone quantised.

    Args:
        run: Gives the outputs of a stage, or of one made from it, on the same inputs each time.
        quantized: Layer -> makes the stage in which it is quantised.
        advance: Called after each layer.
    """
    expected = run(stage)
    out = {}
    for name, make in quantized.items():
        out[name] = noise_share(run(make()), expected)
        advance()
    return out


def noise_share(outputs: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Noise power over signal power of some outputs together."""
    signal = math.fsum(float(one.double().square().sum()) for one in expected)
    pairs = zip(outputs, expected, strict=True)
    return math.fsum(float((got.double() - want.double()).square().sum()) for got, want in pairs) / signal


@torch.no_grad()
def noise_of_outputs(
    run: Callable[[], object], layers: Mapping[str, tuple[nn.Linear, nn.Module]]
) -> dict[str, tuple[float, float]]:
    """Layer -> noise power and signal power of its own output, on the inputs that it gets while `run` runs.

    Args:
        layers: Layer -> it, and what would take its place; both are asked in fp32. A layer that does not run is absent.
    """
    out: dict[str, tuple[float, float]] = {}

    def watch(name: str, layer: nn.Linear, other: nn.Module) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], __: Tensor) -> None:
            x, bias = args[0].float(), None if layer.bias is None else layer.bias.float()
            exact = F.linear(x, layer.weight.float(), bias)
            noise, signal = out.get(name, (0.0, 0.0))
            error = other(x) - exact
            out[name] = noise + float(error.double().square().sum()), signal + float(exact.double().square().sum())

        return hook

    with ExitStack() as hooks:
        for name, (layer, other) in layers.items():
            hooks.enter_context(layer.register_forward_hook(watch(name, layer, other)))
        run()
    return out
