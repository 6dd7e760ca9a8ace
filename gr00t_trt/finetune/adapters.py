"""LoRA adapters as folders: in PEFT's format, as the original writes them, and merged into their base model.

Source of the format: PEFT, src/peft/tuners/lora/config.py and src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import DatasetMetadata
from ..errors import CheckpointError, RecordError
from ..model.adapter import PREFIX, read_adapter
from ..model.folders import ADAPTER_BASE, ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, EAGLE_CONFIG, Kind, identify
from ..model.weight_writer import from_tensor, write_file, write_json, write_weights
from .base import Base, check_trained, open_base, whole_folder, write_side_files
from .lora import Lora
from .parts import peft_key

_LOW_RANK = (".lora_A.", ".lora_B.")


def write_adapter(
    folder: Path, trained: Mapping[str, Tensor], lora: Lora, base: Base, metadata: Mapping[str, DatasetMetadata]
) -> None:
    """Write an adapter's folder, with the hash of the base that it belongs to.

    Args:
        trained: `lora_A` and `lora_B` of every changed layer, and parameters that were trained whole.
    Raises: OSError; CheckpointError for a base that is an adapter itself, or tensors of other shapes than its own.
    """
    if base.changes:
        raise CheckpointError(
            f"{base.folder}: is an adapter, and an adapter of an adapter would have to be applied in two steps",
            known="an adapter of a whole model",
            fix="merge it first, and train from the merged folder",
        )
    check_trained(base, {name: tuple(tensor.shape) for name, tensor in trained.items()}, adapter=True)
    tensors = {peft_key(name): tensor for name, tensor in trained.items()}
    write_file(folder / ADAPTER_WEIGHTS, {key: from_tensor(tensor) for key, tensor in tensors.items()})
    write_json(folder / ADAPTER_CONFIG, _config(tensors, lora, base.name))
    write_json(folder / ADAPTER_BASE, {"base_model_name_or_path": base.name, "sha256": base.sha256()})
    write_side_files(folder, base, metadata, adapter=True)


def _config(tensors: Mapping[str, Tensor], lora: Lora, base: str) -> dict[str, Any]:
    names = [key.removeprefix(PREFIX) for key in tensors]
    changed = sorted({name.split(part)[0] for name in names for part in _LOW_RANK if part in name})
    whole = sorted({name.rpartition(".")[0] for name in names if not any(part in name for part in _LOW_RANK)})
    alpha = int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "corda_config": None,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": lora.dropout,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": whole or None,
        "peft_type": "LORA",
        "qalora_group_size": 16,
        "r": lora.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": changed,
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
    }


def merge(adapter: str | Path, out: str | Path) -> Path:
    """Write the model that an adapter makes of its base as a whole checkpoint, which everything takes.

    What the adapter changes is stored in fp32, all else byte for byte as in the base.

    Args:
        adapter: An adapter's folder.
        out: The folder to write; it must not exist.
    Returns: `out`.
    Raises: CheckpointError for a folder that is no adapter, or a base that is not at hand or another one than it was
        trained from; RecordError where the folder cannot be written.
    """
    adapter, out = Path(adapter), Path(out)
    if identify(adapter) is not Kind.ADAPTER:
        raise CheckpointError(f"{adapter}: is a whole model already", known=Kind.ADAPTER.value)
    if out.exists():
        raise RecordError(f"{out}: exists", fix="name a folder that does not exist yet")
    base = open_base(adapter, out.parent)
    read_adapter(adapter).check_base(base.stored)
    try:
        with whole_folder(out) as temporary:
            write_weights(temporary, {name: base.entry(name) for name in base.stored})
            write_json(temporary / CONFIG, dict(base.config))
            if base.eagle is not None:
                write_json(temporary / EAGLE_CONFIG, dict(base.eagle))
            write_side_files(temporary, base, {})
    except OSError as error:
        raise RecordError(f"{out}: cannot be written: {error.strerror or error}", fix="free some space") from error
    return out
