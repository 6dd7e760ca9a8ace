"""What a fine-tuning starts from: tensors to be copied byte for byte, and the small files that belong to them."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DatasetMetadata, metadata_path, synthetic_tokenizer
from ..errors import CheckpointError
from ..model import load_model, resolve_checkpoint
from ..model.adapter import read_adapter, read_changes
from ..model.checkpoint import base_of
from ..model.config_section import read_object
from ..model.config_writer import config_file, eagle_file
from ..model.folders import CONFIG, EAGLE_CONFIG, Kind, identify
from ..model.lerobot import read_lerobot_config
from ..model.n1_5.config import EagleConfig
from ..model.weight_files import Stored, content_hash, headers, opened
from ..model.weight_writer import Entry, computed, from_stored, from_tensor, write_json, write_weights
from ..model.weights import Change, original_names
from .widths import ACTION_AXES

GENERATED = "base"
"""Folder in a run's that holds a generated base model: an adapter must find it, and a checkpoint copies from it."""

_TOKENIZER_FILES = {
    "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "vocab.json",
    "merges.txt", "chat_template.json", "chat_template.jinja",
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A base model's files.

    Attributes:
        name: What an adapter calls it: a folder, a hub id, or a path from the adapter's own folder.
        folder: Where its weights lie.
        config: Its `config.json`. eagle: Its `eagle_config.json`, if it has a vision-language model of its own.
        stored: Tensors under the original's names.
        changes: Parameter -> what an adapter does to it, where the base is itself an adapter on a base.
        places: Where statistics and tokenizer are looked for, in order.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    eagle: Mapping[str, Any] | None
    stored: Mapping[str, Stored]
    changes: Mapping[str, Change] = field(default_factory=dict)
    places: tuple[Path, ...] = ()

    def entry(self, name: str) -> Entry:
        """A tensor as it is; in fp32 where an adapter changes it, since half of that would be another model."""
        stored = self.stored[name]
        change = self.changes.get(name)
        if change is None:
            return from_stored(stored)
        return computed(stored.shape, torch.float32, partial(_changed, stored, change))

    def fingerprint(self) -> list[list[Any]]:
        """Equal for the same files, as far as names, sizes and times of writing tell."""
        files = {stored.file for stored in self.stored.values()} | {change.file for change in self.changes.values()}
        return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]

    def sha256(self) -> str:
        """As `content_hash`, of all tensors; read once for the same files."""
        key = json.dumps(self.fingerprint())
        if key not in _HASHES:
            _HASHES[key] = content_hash(self.stored)
        return _HASHES[key]


_HASHES: dict[str, str] = {}
"""Fingerprint -> hash: a run saves many checkpoints, and reading 5 GB takes seconds."""


def _changed(stored: Stored, change: Change) -> Tensor:
    with opened(stored.file) as file:
        return change(file.get_tensor(stored.key))


def open_base(base: str | Path, run: Path) -> Base:
    """The files of a base model.

    Args:
        base: As `load_model` takes it.
        run: The run's folder, into which a generated model is written once.
    Raises: CheckpointError for what is no checkpoint; OSError where a generated model cannot be written.
    """
    folder = resolve_checkpoint(base)
    if folder is None:
        return _opened(f"../{GENERATED}", _generated(str(base), run / GENERATED))
    name = str(base) if not Path(base).is_dir() else str(folder.resolve())
    return _opened(name, folder)


def _opened(name: str, folder: Path) -> Base:
    kind = identify(folder)
    if kind is Kind.ADAPTER:
        adapter = read_adapter(folder)
        below = _opened(adapter.base, base_of(adapter))
        shapes = {key: stored.shape for key, stored in below.stored.items()}
        changes = read_changes(adapter, shapes)
        return Base(name, folder, below.config, below.eagle, below.stored, changes, (folder, *below.places))
    stored = original_names(headers(folder))
    if kind is Kind.LEROBOT:
        found, _ = read_lerobot_config(folder)
        config, eagle = config_file(found), None if found.eagle == EagleConfig() else eagle_file(found.eagle)
    else:
        own = folder / EAGLE_CONFIG
        config, eagle = read_object(folder / CONFIG), read_object(own) if own.is_file() else None
    return Base(name, folder, config, eagle, stored, {}, (folder,))


def _generated(name: str, folder: Path) -> Path:
    """The folder of a generated model, written whole or not at all."""
    if folder.is_dir():
        return folder
    with whole_folder(folder) as temporary:
        model = load_model(name)
        write_weights(temporary, {key: from_tensor(value) for key, value in model.state_dict().items()})
        write_json(temporary / CONFIG, config_file(model.config))
        write_json(temporary / EAGLE_CONFIG, eagle_file(model.config.eagle))
        synthetic_tokenizer(model.config.special_tokens, model.config.vocab_size).write(temporary)
    return folder


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when the block ends; where the block fails, nothing is left."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_side_files(
    folder: Path, base: Base, metadata: Mapping[str, DatasetMetadata], *, adapter: bool = False
) -> None:
    """Write statistics, with those of the base's other tags, and the base's tokenizer into a checkpoint's folder.

    Args:
        metadata: Tag -> what was trained with.
        adapter: Without the tokenizer, which is looked for in the base as well.
    Raises: OSError.
    """
    entries: dict[str, object] = {}
    found = next((path for path in map(metadata_path, base.places) if path.is_file()), None)
    if found is not None:
        entries.update(read_object(found))
    entries.update({tag: own.to_dict() for tag, own in metadata.items()})
    if entries:
        path = metadata_path(folder)
        path.parent.mkdir(exist_ok=True)
        write_json(path, entries)
    for file in () if adapter else _tokenizer_files(base):
        shutil.copyfile(file, folder / file.name)


def _tokenizer_files(base: Base) -> Iterator[Path]:
    for place in base.places:
        for folder in (place, *sorted(path for path in place.iterdir() if path.is_dir())):
            files = [file for file in sorted(folder.iterdir()) if file.name in _TOKENIZER_FILES and file.is_file()]
            if files:
                yield from files
                return


def config_for(base: Base, shapes: Mapping[str, tuple[int, ...]], action_horizon: int | None) -> dict[str, Any]:
    """The base's `config.json` with the widths and the horizon of a trained model.

    Args:
        shapes: Name -> shape of what was trained.
        action_horizon: Actions per chunk; None keeps the base's.
    """
    config = copy.deepcopy(dict(base.config))
    head = config["action_head_cfg"]
    first = shapes.get("action_head.action_encoder.W1.W")
    if first is not None and first[1] != head["action_dim"]:
        head["action_dim"] = head["max_action_dim"] = config["action_dim"] = first[1]
    if action_horizon is not None:
        head["action_horizon"] = config["action_horizon"] = action_horizon
    return config


def check_trained(base: Base, shapes: Mapping[str, tuple[int, ...]], *, adapter: bool = False) -> None:
    """Hold trained tensors against the base's: the same names and shapes, but for more action columns.

    Args:
        adapter: In which no shape may differ; names that the base has no tensor of are not looked at.
    Raises: CheckpointError.
    """
    unknown = [name for name in shapes if name not in base.stored]
    if unknown and not adapter:
        what = f"{base.folder}: {len(unknown)} trained tensors are none of its tensors: {', '.join(unknown[:5])}"
        raise CheckpointError(what, fix="train and save from the same base model")
    own = {name: base.stored[name].shape for name in shapes if name in base.stored}
    others = [name for name, shape in own.items() if shape != shapes[name]]
    wider = not adapter and {*others} == {*ACTION_AXES}
    if others and not wider:
        name = others[0]
        what = f"{base.folder}: {name} is {list(own[name])} there and {list(shapes[name])} after training"
        raise CheckpointError(
            what,
            known=f"the same shapes, or all of {', '.join(ACTION_AXES)} wider, which an adapter cannot be",
            fix="train all layers of the robot, without LoRA, for more action columns",
        )
