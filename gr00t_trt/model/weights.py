"""Safetensors files into a module: one tensor at a time, every key accounted for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from .n1_5.config import Gr00tConfig
from .n1_5.gr00t import Gr00tN1d5
from .stored import Read, remember
from .weight_files import Stored, opened, stored_size

EMBEDDING = "backbone.eagle_model.language_model.model.embed_tokens.weight"
VOCABULARY_HEAD = "backbone.eagle_model.language_model.lm_head.weight"
VISION_TOWER = "backbone.eagle_model.vision_model.vision_model."
_FLOATING_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_FLOATING = tuple(_FLOATING_NAMES.values())
_LISTED = 5
_BATCH_BYTES = 1 << 28


class Change(Protocol):
    """From a stored tensor to the one that the model gets, of the same shape."""

    @property
    def file(self) -> Path:
        """What it is read from."""
        ...

    def __call__(self, weight: torch.Tensor) -> torch.Tensor: ...


def dead_tensors(config: Gr00tConfig) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the 12 tensors that checkpoints store and that never reach an action."""
    vision, text = config.eagle.vision, config.eagle.text
    width, inner = vision.hidden_size, vision.intermediate_size
    head = VISION_TOWER + "head."
    return {
        VOCABULARY_HEAD: (text.vocab_size, text.hidden_size),
        head + "probe": (1, 1, width),
        head + "attention.in_proj_weight": (3 * width, width),
        head + "attention.in_proj_bias": (3 * width,),
        head + "attention.out_proj.weight": (width, width),
        head + "attention.out_proj.bias": (width,),
        head + "layernorm.weight": (width,),
        head + "layernorm.bias": (width,),
        head + "mlp.fc1.weight": (inner, width),
        head + "mlp.fc1.bias": (inner,),
        head + "mlp.fc2.weight": (width, inner),
        head + "mlp.fc2.bias": (width,),
    }


def check_count(config: Gr00tConfig, stored: Mapping[str, Stored], where: str, described: str) -> None:
    """Refuse a number of layers that so few tensors cannot fill, before they are built. Raises: CheckpointError."""
    head, eagle = config.action_head, config.eagle
    layers = head.diffusion.num_layers + head.vl_self_attention.num_layers
    layers += eagle.vision.num_hidden_layers + config.backbone.select_layer
    if layers > len(stored):
        raise CheckpointError(
            f"{where}: {layers} layers, as {described} describes them, and only {len(stored)} tensors",
            known="several tensors a layer",
            fix="check that the configuration belongs to these weights, or get both again",
        )


def load_weights(
    model: Gr00tN1d5,
    stored: Mapping[str, Stored],
    *,
    device: torch.device,
    where: str,
    described: str,
    changes: Mapping[str, Change] | None = None,
) -> None:
    """Give every parameter of `model`, which may be on the meta device, its stored value in the parameter's own dtype.

    Tensors are read, cast and placed one by one; the peak is one copy of the model and one tensor. How to read those
    that the cast rounds is kept for `stored.as_stored`.

    Args:
        stored: All tensors of the checkpoint.
        where, described: What they belong to, and what describes their shapes, for messages.
        changes: Parameter -> what is done to its stored value first.
    Raises: CheckpointError for files that cannot be read, for a NaN or an infinity in a parameter, and one that names
        all missing, unexpected and misshapen tensors.
    """
    changes = changes or {}
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    rounded: dict[str, Read] = {}
    for path, batch in _batches(_matched(stored, model, where, described)):
        with opened(path) as file:
            for name, source in batch.items():
                read = _FromFile(source, changes.get(name))
                given = read.within(file)
                # An explicit copy: without a cast, `to` would hand out a view of the mapped file.
                value = torch.empty(source.shape, dtype=dtypes[name], device=device).copy_(given)
                _check_finite(value, given, f"{source.file}: {source.key}")
                if not _holds(value.dtype, given.dtype):
                    rounded[name] = read
                set_parameter(model, name, value)
    changing = (change.file for change in changes.values())
    remember(model, rounded, (*(source.file for source in stored.values()), *changing))


def _batches(wanted: Mapping[str, Stored]) -> Iterator[tuple[Path, dict[str, Stored]]]:
    """A file and tensors of it, in order, and so few that their mapped pages do not pile up beside the copies."""
    for path, of_file in itertools.groupby(wanted.items(), key=lambda item: item[1].file):
        batch, size = dict[str, Stored](), 0
        for name, source in of_file:
            if size > _BATCH_BYTES:
                yield path, batch
                batch, size = {}, 0
            batch[name] = source
            size += stored_size(source)
        yield path, batch


@dataclass(frozen=True)
class _FromFile:
    """Reads a tensor of a checkpoint, with what an adapter does to it."""

    source: Stored
    change: Change | None

    def __call__(self) -> torch.Tensor:
        with opened(self.source.file) as file:
            return self.within(file)

    def within(self, file: Any) -> torch.Tensor:
        """The same from its file, which is open."""
        given: torch.Tensor = file.get_tensor(self.source.key)
        return given if self.change is None else self.change(given)


def _holds(dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Whether every stored value can be held in `dtype` as it is."""
    return torch.promote_types(dtype, stored) == dtype


def copy_weights(model: Gr00tN1d5, tensors: Mapping[str, torch.Tensor], *, device: torch.device, where: str) -> None:
    """As `load_weights`, from another model's state; the values are copied, and those that the cast rounds kept.

    Args:
        where: What the tensors belong to, for messages.
    """
    found = {
        key: Stored(Path(), key, tuple(tensor.shape), _FLOATING_NAMES.get(tensor.dtype, str(tensor.dtype)))
        for key, tensor in tensors.items()
    }
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    rounded: dict[str, Read] = {}
    for name, source in _matched(found, model, where, "its configuration").items():
        given = tensors[source.key].detach()
        value = torch.empty(source.shape, dtype=dtypes[name], device=device).copy_(given)
        _check_finite(value, given, f"{where}: {source.key}")
        if not _holds(value.dtype, given.dtype):
            rounded[name] = partial(Tensor.detach, given)
        set_parameter(model, name, value)
    remember(model, rounded)


def _check_finite(value: torch.Tensor, given: torch.Tensor, where: str) -> None:
    """Refuse a parameter that is not finite, or that only its cast has made so. Raises: CheckpointError."""
    # Both ends of the range show NaN and infinity, twenty times as fast as a look at every value.
    if all(bool(end.isfinite()) for end in torch.aminmax(value)):
        return
    stored = int((~given.isfinite()).sum())
    if stored:
        raise CheckpointError(
            f"{where} holds {stored} values that are NaN or infinite, of {given.numel()}",
            known="finite weights",
            fix="take an earlier checkpoint: the training has diverged, or the file is damaged",
        )
    kind = str(value.dtype).removeprefix("torch.")
    raise CheckpointError(
        f"{where} holds {int((~value.isfinite()).sum())} values beyond {kind}: up to {float(given.abs().max()):.4g}",
        known=f"at most {torch.finfo(value.dtype).max:.4g}",
        fix="load it in float32 or bfloat16: --precision bf16",
    )


def _matched(stored: Mapping[str, Stored], model: Gr00tN1d5, where: str, described: str) -> dict[str, Stored]:
    """Parameter of `model` -> its stored tensor. Raises: CheckpointError."""
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    named = original_names(stored)
    if EMBEDDING not in named and VOCABULARY_HEAD in named:
        named[EMBEDDING] = named.pop(VOCABULARY_HEAD)
    _check_strict(where, described, wanted, dead_tensors(model.config), named)
    return {name: named[name] for name in wanted}


def original_names(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """The tensors under the names of the public checkpoint, whoever saved them."""
    return _with_inner_level(_strip_prefix(stored))


def _with_inner_level(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """With the vision tower's second `vision_model`, which transformers 5 has dropped from its own model."""
    outer = VISION_TOWER.removesuffix("vision_model.")
    if any(key.startswith(VISION_TOWER) for key in stored):
        return dict(stored)
    return {key.replace(outer, VISION_TOWER) if key.startswith(outer) else key: s for key, s in stored.items()}


def set_parameter(model: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace one parameter, for inference: no gradient."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))


def _strip_prefix(stored: Mapping[str, Stored]) -> dict[str, Stored]:
    """Without what re-saving inside another module put in front of every key, such as ``_groot_model.``."""
    first = next(iter(stored), "")
    starts = [i for i in (first.find("backbone."), first.find("action_head.")) if i > 0 and first[i - 1] == "."]
    prefix = first[: min(starts)] if starts else ""
    if not all(key.startswith(prefix) for key in stored):
        prefix = ""
    return {key[len(prefix) :]: value for key, value in stored.items()}


def _check_strict(
    where: str,
    described: str,
    wanted: Mapping[str, tuple[int, ...]],
    dead: Mapping[str, tuple[int, ...]],
    stored: Mapping[str, Stored],
) -> None:
    expected = {**dead, **wanted}
    misshapen = [
        f"{key} has {list(found.shape)}, expected {list(expected[key])}"
        for key, found in stored.items()
        if key in expected and found.shape != expected[key]
    ]
    whole = [f"{key} is {stored[key].dtype}" for key in wanted if key in stored and stored[key].dtype not in _FLOATING]
    problems = [
        *_listing("missing", [key for key in wanted if key not in stored]),
        *_listing("unexpected", [key for key in stored if key not in expected]),
        *_listing("misshapen", misshapen),
        *_listing("not floating point", whole),
    ]
    if problems:
        raise CheckpointError(
            f"{where}: the tensors do not fit GR00T N1.5 as {described} describes it",
            known="\n  ".join(["each tensor exactly once, in its shape", *problems]),
            fix="check that the configuration belongs to these weights, or get both again",
        )


def _listing(what: str, items: Iterable[str]) -> list[str]:
    names = sorted(items)
    if not names:
        return []
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return [f"{what} ({len(names)}): {'; '.join(names[:_LISTED])}{more}"]
