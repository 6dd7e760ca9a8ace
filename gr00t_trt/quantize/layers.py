"""Which linear layers a stage has, which of them a plan keeps in 16 bit, and a stage with the others quantised."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import partial

import torch
from torch import nn

from ..common.notice import warn_once
from ..errors import PlanError
from ..model.protocol import Model
from ..model.replaced import with_replaced
from ..model.targets import Target
from ..plans.precisions import PRECISIONS, Gate
from ..plans.resolve import Resolved
from ..plans.schema import ARCHITECTURE, AUTO_KEEP
from ..plans.submodules import Quantization, ResolvedSubmodule
from .calibration import Calibration, read_calibration
from .formats import FORMATS
from .linear import QuantLinear, can_be_quantized
from .ranking import decibels, noise_of_outputs, noise_share, worst, worst_besides

ALWAYS_KEPT = ("dit_model/proj_out_2",)
"""The last product of the transformer: its error goes into the actions undamped, and it has few bytes."""


_AS_PLANNED, _NARROW, _UNDAMPED = "as the plan says", "a side is no multiple of 16", "the actions would get its error"


Pairs = Mapping[str, tuple[nn.Linear, QuantLinear]]
"""Layer -> it, and what takes its place."""


@dataclass(frozen=True, eq=False)
class Quantized:
    """What was done to a stage.

    Attributes:
        before: The stage as it was, in the 16-bit type that carries it.
        form: A name of `formats.FORMATS`.
        layers: Layer -> it, and what took its place.
        kept: Layer that stays in 16 bit -> why; `weights` counts those of all layers together.
        calibration: What gave the scales, and `file`, where that lies; None for one that was never written.
    """

    before: Target
    form: str
    layers: Pairs
    kept: Mapping[str, str]
    weights: int
    calibration: Calibration
    file: str | None

    @property
    def share(self) -> float:
        """Of the linear layers' weights, what is quantised: 0 to 1."""
        return sum(layer.weight.numel() for layer, _ in self.layers.values()) / max(self.weights, 1)

    @property
    def half_bytes(self) -> int:
        """What all of the stage's parameters take in 16 bit."""
        return 2 * sum(parameter.numel() for parameter in self.before.module.parameters())

    @property
    def weight_bytes(self) -> int:
        """What they take now: codes, scales, and what stays in 16 bit."""
        saved = sum(2 * layer.weight.numel() - _held_bytes(made) for layer, made in self.layers.values())
        return self.half_bytes - saved

    @property
    def notes(self) -> tuple[str, str]:
        """Sentences for the record."""
        taken = self.calibration.provenance
        frames = f"{len(taken.frames)} frames of {taken.dataset}"
        if self.file is None:
            return self._told(), f"calibrated in this run: {frames}"
        weights = f"({self.calibration.digest}): {frames}, weights {self.calibration.weights}"
        return self._told(), f"calibration {self.file} {weights}"

    def sqnr_db(self) -> dict[str, float]:
        """Layer -> signal over noise of its own output, on the inputs that it gets in the target's recorded call."""
        noise = noise_of_outputs(lambda: self.before.module(*self.before.inputs), self.layers)
        return {name: decibels(lost / signal) for name, (lost, signal) in noise.items() if lost > 0 and signal > 0}

    def _told(self) -> str:
        """How much of the stage is quantised, in one sentence."""
        every = len(self.layers) + len(self.kept)
        text = f"{self.form}: {len(self.layers)} of {every} linear layers, {100 * self.share:.0f} % of their weights, "
        text += f"take {FORMATS[self.form].bits:g} bits a weight"
        for why in (_AS_PLANNED, _NARROW):
            if names := sorted(name for name, reason in self.kept.items() if reason == why):
                shown = ", ".join(name.partition("/")[2] for name in names[:8])
                carrier = PRECISIONS[self.form].carrier
                text += f"; {len(names)} stay in {carrier}, {why}: {shown}{', ...' if len(names) > 8 else ''}"
        return text


def _held_bytes(made: QuantLinear) -> int:
    return sum(
        value.numel() * value.element_size()
        for value in (made.codes, made.scale, made.block_scale)
        if value is not None
    )


def linear_layers(model: Model) -> dict[str, nn.Linear]:
    """``stage/layer`` -> the linear layers of the stages that can be quantised, in the order of a request."""
    return {
        f"{stage}/{name}": layer
        for stage in ARCHITECTURE.attention
        for name, layer in model.eager_stage(stage).named_modules()
        if isinstance(layer, nn.Linear)
    }


def quantizable(layers: Mapping[str, nn.Linear]) -> dict[str, nn.Linear]:
    """Those whose sizes allow it and that are not always kept."""
    return {name: one for name, one in layers.items() if can_be_quantized(one) and name not in ALWAYS_KEPT}


def matching(pattern: str, names: Iterable[str]) -> tuple[str, ...]:
    """The layers that a pattern of a plan means: a name, or dotted parts of one, with ``*`` and ``?``."""
    return tuple(name for name in names if fnmatchcase(f".{name.partition('/')[2]}.", f"*.{pattern}.*"))


def quantized_target(
    target: Target, model: Model, resolved: ResolvedSubmodule, policy: object, calibration: Calibration | None = None
) -> tuple[Target, Quantized | None]:
    """The target with its linear layers quantised as the plan says, and what was done; None for nothing.

    Args:
        target: A stage of `model`, which stays as it is: what is not replaced is shared.
        policy: What will ask the model; its data config is held against the calibration's.
        calibration: Taken of this very model; None reads the plan's file, and holds that against the model.
    Raises: PlanError for a quantised precision without a calibration, one of other weights, and a pattern of `keep`
        that matches nothing.
    """
    wanted = resolved.quantization
    if wanted is None:
        return target, None
    form, known = resolved.precision, linear_layers(model)
    names = {id(layer): name for name, layer in known.items()}
    own = {name: known[name] for one in target.module.modules() if (name := names.get(id(one))) is not None}
    path = None
    if calibration is None:
        calibration = read_calibration(path := wanted.file())
        calibration.refuse_other_weights({name: known[name] for name in _upstream(known, own)}, path)
        _warn_of_other_data(calibration, policy, path)
    able = quantizable(own)
    planned = kept_layers(calibration, form, able, wanted, resolved.gate, own if wanted.own else known)
    layers = {
        name: (layer, QuantLinear(layer, form, calibration.observed(name).channels))
        for name, layer in able.items()
        if name not in planned
    }
    if AUTO_KEEP in wanted.keep:
        ranked = {name: calibration.observed(name).noise[form] for name in layers}
        planned |= worst_besides(partial(_noise_of, target, layers), ranked, form, resolved.gate)
        layers = {name: pair for name, pair in layers.items() if name not in planned}
    kept = {
        name: _AS_PLANNED if name in planned else _UNDAMPED if name in ALWAYS_KEPT else _NARROW
        for name in own
        if name in planned or name not in able
    }
    weights = sum(layer.weight.numel() for layer in own.values())
    done = Quantized(target, form, layers, kept, weights, calibration, path)
    return replace(target, module=_replaced(target, layers)), done


def _replaced(target: Target, layers: Pairs, but: Collection[str] = ()) -> nn.Module:
    return with_replaced(target.module, {id(old): new for n, (old, new) in layers.items() if n not in but})


@torch.no_grad()
def _noise_of(target: Target, layers: Pairs, but: Collection[str]) -> float:
    """What quantising layers, but for some, makes noise of the target's output in its recorded call."""
    expected = target.module(*target.inputs)
    return noise_share([_replaced(target, layers, but)(*target.inputs)], [expected])


def refuse_unfit(resolved: Resolved) -> None:
    """Before a model is loaded, what the calibration alone can say of a plan.

    Raises: PlanError for a file that cannot be read, a pattern of `keep` that matches none of its layers, and ``auto``
        without a ranking.
    """
    for name in resolved.names:
        wanted, form = resolved[name].quantization, resolved[name].precision
        if wanted is None:
            continue
        known = read_calibration(wanted.file()).layers
        stages = ARCHITECTURE.covers.get(name, (name,))
        own = {layer: seen for layer, seen in known.items() if layer.partition("/")[0] in stages}
        _refuse_unmatched(wanted, own if wanted.own else known)
        if AUTO_KEEP in wanted.keep and not any(form in seen.noise for seen in own.values()):
            worst(dict.fromkeys(own), form, resolved[name].gate, wanted.file())


def _refuse_unmatched(wanted: Quantization, among: Collection[str]) -> None:
    """Raises: PlanError for a pattern that means none of these layers."""
    for pattern in wanted.keep:
        if pattern != AUTO_KEEP and not matching(pattern, among):
            raise PlanError(
                f"keep: {pattern!r} matches no layer", known=[name.partition("/")[2] for name in list(among)[:12]]
            )


def _upstream(known: Mapping[str, nn.Linear], own: Collection[str]) -> list[str]:
    """A stage's layers and all before them: what these compute decides about its inputs."""
    names = list(known)
    last = max((names.index(name) for name in own), default=-1)
    return names[: last + 1]


def kept_layers(
    calibration: Calibration,
    form: str,
    layers: Collection[str],
    wanted: Quantization,
    gate: Gate,
    among: Collection[str],
) -> set[str]:
    """Those of `layers` that stay in 16 bit.

    Args:
        gate: Of the submodule; ``auto`` keeps the worst until it holds.
        among: The layers of which each pattern must mean one: the stage's, or for the whole plan the model's.
    Raises: PlanError for a pattern that matches nothing, and for ``auto`` without a ranking.
    """
    _refuse_unmatched(wanted, among)
    kept = {name for pattern in wanted.keep if pattern != AUTO_KEEP for name in matching(pattern, layers)}
    if AUTO_KEEP in wanted.keep:
        noise = {name: calibration.observed(name).noise.get(form) for name in layers if name not in kept}
        kept.update(worst(noise, form, gate, wanted.file()))
    return kept


def _warn_of_other_data(calibration: Calibration, policy: object, path: str) -> None:
    """Say so where the policy has another data config or embodiment than the ones that were calibrated with."""
    taken = calibration.provenance
    tag = getattr(getattr(policy, "metadata", None), "embodiment_tag", None)
    pairs = {
        "data config": (taken.data_config, getattr(policy, "config_name", None)),
        "embodiment": (taken.embodiment_tag, None if tag is None else str(getattr(tag, "value", tag))),
    }
    for what, (theirs, ours) in pairs.items():
        if ours is not None and ours != theirs:
            why = "its scales may not fit other cameras and parts; calibrate again with this one"
            warn_once(f"calibration {path}: it was taken with the {what} {theirs}, and this one is {ours}: {why}")
