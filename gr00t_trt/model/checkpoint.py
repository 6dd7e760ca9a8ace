"""From a folder, a hub id or a synthetic name to a model."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..common.install import install
from ..errors import CheckpointError
from .adapter import Adapter, read_adapter, read_changes, refused
from .config_files import read_config
from .folders import ADAPTER_WEIGHTS, CONFIG, Kind, identify
from .lerobot import read_lerobot_config
from .n1_5.config import Gr00tConfig
from .n1_5.gr00t import Gr00tN1d5
from .n1_5.synthetic import fill_synthetic, is_synthetic, synthetic_config
from .weight_files import content_hash, header, headers
from .weights import check_count, copy_weights, load_weights, original_names

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIDE_FILES = ["*.json", "*.txt", "*.jinja", "experiment_cfg/*", "policy_*processor*.safetensors"]
_WEIGHTS = ["model*.safetensors", ADAPTER_WEIGHTS]


Cast = Callable[[Gr00tN1d5], object]
"""Sets the dtypes of a model's parts in place; called before the model has weights."""


def load_model(
    path: str | Path, *, dtype: torch.dtype | Cast = torch.float32, device: torch.device | str = "cpu"
) -> Gr00tN1d5:
    """A GR00T N1.5 in evaluation mode, without gradients.

    Args:
        path: A checkpoint folder, as Isaac-GR00T or LeRobot saves it, or a LoRA adapter, which is applied to its base
            model; a hub id such as ``nvidia/GR00T-N1.5-3B``, which is downloaded unless a folder of that name exists;
            ``synthetic`` (tiny) or ``synthetic:full``, reproducible weights without any file.
        dtype: float32, float16 or bfloat16 for all weights, or what sets the dtype of every part; stored tensors are
            cast one by one.
    Raises: CheckpointError saying what is missing, damaged or does not fit.
    """
    folder = resolve_checkpoint(path)
    if folder is not None:
        return _finished(_loaded(folder, dtype, torch.device(device)))
    model = _empty(synthetic_config(str(path)), dtype)
    fill_synthetic(model, device=torch.device(device))
    return _finished(model)


def _empty(config: Gr00tConfig, dtype: torch.dtype | Cast) -> Gr00tN1d5:
    """A model without weights, its parameters in the dtypes that they are to have."""
    with torch.device("meta"):
        model = Gr00tN1d5(config)
    if isinstance(dtype, torch.dtype):
        return model.to(dtype)
    dtype(model)
    return model


def _loaded(folder: Path, dtype: torch.dtype | Cast, device: torch.device) -> Gr00tN1d5:
    kind = identify(folder)
    adapter = read_adapter(folder) if kind is Kind.ADAPTER else None
    base = folder if adapter is None else base_of(adapter)
    config, described = _described(base, identify(base))
    stored = headers(base)
    check_count(config, stored, str(base), described)
    model = _empty(config, dtype)
    changes = {}
    if adapter is not None:
        adapter.check_base(original_names(stored))
        changes = read_changes(adapter, {name: tuple(p.shape) for name, p in model.named_parameters()})
    where = str(folder)
    load_weights(model, stored, device=device, where=where, described=described, changes=changes)
    return model


def _described(folder: Path, kind: Kind) -> tuple[Gr00tConfig, str]:
    """Geometry of a whole checkpoint, and what says so."""
    if kind is Kind.LEROBOT:
        return read_lerobot_config(folder)
    return read_config(folder), str(folder / CONFIG)


def base_of(adapter: Adapter, *, weights: bool = True) -> Path:
    """The folder of an adapter's base model. Raises: CheckpointError where it is not to be had."""
    beside = adapter.folder / adapter.base
    try:
        base = beside if os.path.isdir(beside) else resolve_checkpoint(adapter.base, weights=weights)
    except CheckpointError as e:
        raise refused(adapter.folder, f"its base model is not at hand: {e}", adapter.base) from e
    if base is None or identify(base, weights=weights) is not Kind.N1_5:
        raise refused(adapter.folder, f"its base model {adapter.base} is not {Kind.N1_5.value}", adapter.base)
    return base


def model_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    config: Gr00tConfig,
    *,
    dtype: torch.dtype | Cast = torch.float32,
    device: torch.device | str = "cpu",
    where: str = "the model",
) -> Gr00tN1d5:
    """As `load_model`, with the weights of another model's `state_dict`, which are copied.

    Args:
        where: What the tensors belong to, for messages.
    Raises: CheckpointError naming missing, unexpected and misshapen tensors.
    """
    model = _empty(config, dtype)
    copy_weights(model, tensors, device=torch.device(device), where=where)
    return _finished(model)


def _finished(model: Gr00tN1d5) -> Gr00tN1d5:
    model.reset_stages()
    return model.eval().requires_grad_(False)


def load_config(path: str | Path) -> Gr00tConfig:
    """The geometry that `load_model` would build, without reading or downloading weights.

    Raises: CheckpointError naming file, key and value.
    """
    folder = resolve_checkpoint(path, weights=False)
    if folder is None:
        return synthetic_config(str(path))
    base = side_folders(folder)[-1]
    return _described(base, identify(base, weights=False))[0]


def content_hash_of(path: str | Path) -> str | None:
    """SHA-256 over all tensors of a checkpoint, and of its base if it is an adapter; None for a synthetic model.

    Everything is read: seconds for a checkpoint of gigabytes.
    Raises: CheckpointError for what cannot be read.
    """
    folder = resolve_checkpoint(path)
    if folder is None:
        return None
    if identify(folder) is not Kind.ADAPTER:
        return content_hash(original_names(headers(folder)))
    adapter = read_adapter(folder)
    both = content_hash(header(folder / ADAPTER_WEIGHTS)), content_hash_of(base_of(adapter))
    return hashlib.sha256(f"{both} {adapter.scaling}".encode()).hexdigest()


def side_folders(folder: Path) -> list[Path]:
    """Where a checkpoint's statistics and tokenizer are looked for: in it, then in its base model if it is an adapter.

    Raises: CheckpointError for a folder that is no checkpoint, or an adapter whose base model is not at hand.
    """
    if identify(folder, weights=False) is not Kind.ADAPTER:
        return [folder]
    return [folder, base_of(read_adapter(folder), weights=False)]


def resolve_checkpoint(path: str | Path, *, weights: bool = True) -> Path | None:
    """The local folder of a checkpoint, downloaded if `path` is a hub id; None for synthetic models.

    Args:
        weights: False leaves the weights out of a download.
    Raises: CheckpointError if there is no such folder, or the download fails.
    """
    name = str(path)
    if is_synthetic(name):
        return None
    # Unlike pathlib's, these take any name: of an unknown user, too long, with a NUL.
    folder = Path(os.path.expanduser(path))
    if os.path.isdir(folder):
        return folder
    if os.path.exists(folder):
        raise CheckpointError(f"{name}: is a file", fix=f"give the folder that holds it: {folder.parent}")
    # `runs/last` has the form of a hub id; if `runs` exists here, a folder was meant.
    if isinstance(path, Path) or not _HUB_ID.fullmatch(name) or os.path.isdir(folder.parent):
        raise CheckpointError(
            f"{name[:300]}: no such folder",
            known="a checkpoint folder, a hub id such as nvidia/GR00T-N1.5-3B, synthetic, or synthetic:full",
            fix="check the path",
        )
    return _download(name, weights)


def _download(name: str, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise CheckpointError(
            f"{name}: no such folder, and downloading it needs huggingface_hub", fix=install("huggingface_hub")
        ) from e
    try:
        return Path(snapshot_download(name, allow_patterns=_SIDE_FILES + (_WEIGHTS if weights else [])))
    # The hub client has no common base for its own, its HTTP library's and the operating system's errors.
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and the download failed: {reason}",
            fix="check the name and the network, or download the checkpoint elsewhere and give its folder",
        ) from e
