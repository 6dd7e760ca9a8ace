"""LoRA adapters in PEFT's format: low-rank changes of a base model's matrices, applied while its weights are read.

Source: PEFT, src/peft/tuners/lora (names, scaling), and what Isaac-GR00T's fine-tuning writes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError
from .config_section import Section, read_object
from .folders import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS
from .weight_files import Stored, content_hash, header, opened
from .weights import Change

PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"
_WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "ensure_weight_tying", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "megatron_core", "modules_to_save",
    "peft_type", "peft_version", "qalora_group_size", "r", "revision", "target_modules", "task_type", "use_rslora",
}  # fmt: skip
"""Options of PEFT that are read here, or that say nothing beyond what the stored tensors show."""

_PLAIN: Mapping[str, tuple[Any, ...]] = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian")}
"""Options with values that leave the formula W + scaling B A as it is."""


@dataclass(frozen=True)
class Adapter:
    """What `adapter_config.json` says.

    Attributes:
        base: The base model, a folder or hub id, as it is written there.
        rank: Of the changes.
        scaling: Factor of B A.
    """

    folder: Path
    base: str
    rank: int
    scaling: float

    def check_base(self, stored: Mapping[str, Stored]) -> None:
        """Hold the base model against the hash that is kept beside an adapter, where one is; all of it is read.

        Args:
            stored: The base model's tensors, under the original's names.
        Raises: CheckpointError for another model than the adapter was trained from.
        """
        file = self.folder / ADAPTER_BASE
        if file.is_file() and Section.read(file).text("sha256") != content_hash(stored):
            raise CheckpointError(
                f"{self.folder}: its base model {self.base} is another one than it was trained from",
                known=f"the SHA-256 in {file} is of other weights",
                fix="put the base model back as it was, or train again from this one",
            )


def read_adapter(folder: Path) -> Adapter:
    """The adapter in `folder`. Raises: CheckpointError for a kind of adapter that cannot be applied."""
    file = folder / ADAPTER_CONFIG
    data = read_object(file)
    kind = data.get("peft_type")
    if kind != "LORA":
        raise refused(folder, f"peft_type {str(kind)[:60]!r}", str(data.get("base_model_name_or_path")))
    config = Section(file, data)
    base = config.text("base_model_name_or_path")
    for key, value in data.items():
        if value and key not in _WITHOUT_EFFECT and value not in _PLAIN.get(key, ()):
            raise refused(folder, f"{key} {str(value)[:60]}", base)
    rank = config.integer("r")
    alpha = config.number("lora_alpha", 8)
    return Adapter(folder, base, rank, alpha / (math.sqrt(rank) if config.flag("use_rslora", False) else rank))


def refused(folder: Path, what: str, base: str) -> CheckpointError:
    """The error for an adapter that cannot be applied here, with the way to merge it elsewhere."""
    return CheckpointError(
        f"{folder}: is an adapter, not a whole model, and cannot be applied: {what}",
        known="PEFT's plain LoRA on linear layers of a GR00T N1.5, with its base model at hand",
        fix="merge it into its base model where it was trained: PeftModel.from_pretrained(GR00T_N1_5.from_pretrained("
        f"{base!r}), {str(folder)!r}).merge_and_unload().save_pretrained('merged'), and give that folder",
    )


def read_changes(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Change]:
    """Parameter of the base model -> what the adapter does to it.

    Args:
        shapes: Parameter of the base model -> its shape.
    Raises: CheckpointError for a tensor that fits no parameter, or half a pair.
    """
    file = adapter.folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise refused(adapter.folder, f"{ADAPTER_WEIGHTS} is missing", adapter.base)
    stored = {key.removeprefix(PREFIX): found for key, found in header(file).items()}
    changes: dict[str, Change] = {}
    for key, found in stored.items():
        if key.endswith(_A):
            name = key.removesuffix(_A)
            other = stored.get(name + _B)
            _check_pair(adapter, f"{name}.weight", found, other, shapes)
            assert other is not None
            changes[f"{name}.weight"] = _LowRank(found, other, adapter.scaling)
        elif key.endswith(_B) and key.removesuffix(_B) + _A in stored:
            continue
        elif shapes.get(key) == found.shape:
            changes[key] = _Replacement(found)
        else:
            raise refused(adapter.folder, f"tensor {found.key} {list(found.shape)} has no place", adapter.base)
    return changes


def _check_pair(
    adapter: Adapter, name: str, a: Stored, b: Stored | None, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    shape = shapes.get(name)
    if b is None or shape is None or len(shape) != 2:
        what = "has no lora_B" if b is None else f"changes {name}, which is no matrix of the base model"
        raise refused(adapter.folder, f"tensor {a.key} {what}", adapter.base)
    wanted = ((adapter.rank, shape[1]), (shape[0], adapter.rank))
    if (a.shape, b.shape) != wanted:
        what = f"{name} {list(shape)} is changed by A {list(a.shape)} and B {list(b.shape)}, not of rank {adapter.rank}"
        raise refused(adapter.folder, what, adapter.base)


def _read(stored: Stored) -> Any:
    with opened(stored.file) as file:
        return file.get_tensor(stored.key)


@dataclass(frozen=True)
class _LowRank:
    """W + scaling B A, in fp32."""

    a: Stored
    b: Stored
    scaling: float

    @property
    def file(self) -> Path:
        return self.a.file

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.addmm(weight.float(), _read(self.b).float(), _read(self.a).float(), alpha=self.scaling)


@dataclass(frozen=True)
class _Replacement:
    """A parameter that was trained whole (PEFT's `modules_to_save`)."""

    stored: Stored

    @property
    def file(self) -> Path:
        return self.stored.file

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        return _read(self.stored)
