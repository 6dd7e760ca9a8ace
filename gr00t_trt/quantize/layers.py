"""Which linear layers a stage has, which of them a plan keeps in 16 bit, and a stage with the others quantised."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..common.notice import warn_once
from ..errors import PlanError
from ..model.protocol import Model
from ..model.targets import Target
from ..plans.precisions import PRECISIONS, Gate
from ..plans.schema import ARCHITECTURE, AUTO_KEEP
from ..plans.submodules import Quantization, ResolvedSubmodule
from .calibration import Calibration, read_calibration
from .formats import FORMATS
from .linear import QuantLinear, can_be_quantized
from .ranking import worst

ALWAYS_KEPT = ("dit_model/proj_out_2",)
"""The last product of the transformer: its error goes into the actions undamped, and it has few bytes."""


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
    target: Target, model: Model, resolved: ResolvedSubmodule, policy: object
) -> tuple[Target, tuple[str, ...]]:
    """The target with its linear layers quantised as the plan says, and sentences for the record.

    Args:
        target: A stage of `model`, which stays as it is: what is not replaced is shared.
        policy: What will ask the model; its data config is held against the calibration's.
    Raises: PlanError for a quantised precision without a calibration, one of other weights, and a pattern of `keep`
        that matches nothing.
    """
    wanted = resolved.quantization
    if wanted is None:
        return target, ()
    path, form = wanted.file(), resolved.precision
    calibration, known = read_calibration(path), linear_layers(model)
    names = {id(layer): name for name, layer in known.items()}
    own = {name: known[name] for one in target.module.modules() if (name := names.get(id(one))) is not None}
    calibration.refuse_other_weights({name: known[name] for name in _upstream(known, own)}, path)
    able = quantizable(own)
    kept = kept_layers(calibration, form, able, wanted, resolved.gate, own if wanted.own else known)
    made = {
        id(layer): QuantLinear(layer, form, calibration.observed(name).channels)
        for name, layer in able.items()
        if name not in kept
    }
    _warn_of_other_data(calibration, policy, path)
    taken = calibration.provenance
    source = f"calibration {path}: {len(taken.frames)} frames of {taken.dataset}, weights {calibration.weights}"
    return replace(target, module=with_replaced(target.module, made)), (_told(form, able, own, kept), source)


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
    kept: set[str] = set()
    for pattern in wanted.keep:
        if pattern == AUTO_KEEP:
            continue
        if not matching(pattern, among):
            raise PlanError(
                f"keep: {pattern!r} matches no layer", known=[name.partition("/")[2] for name in list(among)[:12]]
            )
        kept.update(matching(pattern, layers))
    if AUTO_KEEP in wanted.keep:
        noise = {name: calibration.observed(name).noise.get(form) for name in layers if name not in kept}
        kept.update(worst(noise, form, gate, wanted.file()))
    return kept


def with_replaced(module: nn.Module, made: Mapping[int, nn.Module]) -> Any:
    """A module with some of its submodules replaced; it shares everything else with the original, which stays whole.

    Args:
        made: `id` of a submodule -> what takes its place.
    """
    if id(module) in made:
        return made[id(module)]
    children = {name: child and with_replaced(child, made) for name, child in module._modules.items()}
    if all(children[name] is child for name, child in module._modules.items()):
        return module
    twin = copy.copy(module)
    twin._modules, twin._parameters = children, dict(module._parameters)
    return twin


def _told(form: str, able: Mapping[str, nn.Linear], own: Mapping[str, nn.Linear], kept: Collection[str]) -> str:
    """How much of a stage is quantised, in one sentence."""
    total = sum(layer.weight.numel() for layer in own.values())
    done = sum(layer.weight.numel() for name, layer in able.items() if name not in kept)
    text = f"{form}: {len(able) - len(kept)} of {len(own)} linear layers, {100 * done / max(total, 1):.0f} % of their "
    text += f"weights, take {FORMATS[form].bits:g} bits a weight"
    narrow = [name for name in own if name not in able and name not in ALWAYS_KEPT]
    carrier = PRECISIONS[form].carrier
    for names, why in ((sorted(kept), "as the plan says"), (narrow, "a side is no multiple of 16")):
        if names:
            shown = ", ".join(name.partition("/")[2] for name in names[:8])
            text += f"; {len(names)} stay in {carrier}, {why}: {shown}{', ...' if len(names) > 8 else ''}"
    return text


def _warn_of_other_data(calibration: Calibration, policy: object, path: str) -> None:
    """Say so where the policy has another data config than the one that was calibrated with."""
    taken, config = calibration.provenance.data_config, getattr(policy, "config_name", None)
    if config is not None and config != taken:
        why = "its scales may not fit other cameras and parts; calibrate again with this one"
        warn_once(f"calibration {path}: it was taken with the data config {taken}, and this one is {config}: {why}")
