"""From a folder, a hub id or a synthetic name to a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from .config_files import read_config
from .n1_5.config import Gr00tConfig
from .n1_5.gr00t import Gr00tN1d5
from .n1_5.synthetic import fill_synthetic, is_synthetic, synthetic_config
from .weights import copy_weights, load_weights

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SIDE_FILES = ["*.json", "*.txt", "*.jinja", "experiment_cfg/*"]
_WEIGHTS = ["model*.safetensors"]


def load_model(
    path: str | Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Gr00tN1d5:
    """A GR00T N1.5 in evaluation mode, without gradients, all weights in one dtype.

    Args:
        path: A checkpoint folder; a hub id such as ``nvidia/GR00T-N1.5-3B``, which is downloaded unless a folder of
            that name exists; ``synthetic`` (tiny) or ``synthetic:full``, reproducible weights without any file.
        dtype: float32, float16 or bfloat16; stored tensors are cast one by one.
    Raises: CheckpointError saying what is missing, damaged or does not fit.
    """
    folder = resolve_checkpoint(path)
    config = synthetic_config(str(path)) if folder is None else read_config(folder)
    with torch.device("meta"):
        model = Gr00tN1d5(config)
    target = torch.device(device)
    if folder is None:
        fill_synthetic(model, dtype=dtype, device=target)
    else:
        load_weights(model, folder, dtype=dtype, device=target)
    return _finished(model)


def model_from_tensors(
    tensors: Mapping[str, torch.Tensor],
    config: Gr00tConfig,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    where: str = "the model",
) -> Gr00tN1d5:
    """As `load_model`, with the weights of another model's `state_dict`, which are copied.

    Args:
        where: What the tensors belong to, for messages.
    Raises: CheckpointError naming missing, unexpected and misshapen tensors.
    """
    with torch.device("meta"):
        model = Gr00tN1d5(config)
    copy_weights(model, tensors, dtype=dtype, device=torch.device(device), where=where)
    return _finished(model)


def _finished(model: Gr00tN1d5) -> Gr00tN1d5:
    model.reset_stages()
    return model.eval().requires_grad_(False)


def load_config(path: str | Path) -> Gr00tConfig:
    """The geometry that `load_model` would build, without reading or downloading weights.

    Raises: CheckpointError naming file, key and value.
    """
    folder = resolve_checkpoint(path, weights=False)
    return synthetic_config(str(path)) if folder is None else read_config(folder)


def resolve_checkpoint(path: str | Path, *, weights: bool = True) -> Path | None:
    """The local folder of a checkpoint, downloaded if `path` is a hub id; None for synthetic models.

    Args:
        weights: False leaves the weights out of a download.
    Raises: CheckpointError if there is no such folder, or the download fails.
    """
    name = str(path)
    if is_synthetic(name):
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{name}: is a file", fix=f"give the folder that holds it: {folder.parent}")
    # `runs/last` has the form of a hub id; if `runs` exists here, a folder was meant.
    if isinstance(path, Path) or not _HUB_ID.fullmatch(name) or folder.parent.is_dir():
        raise CheckpointError(
            f"{name}: no such folder",
            known="a checkpoint folder, a hub id such as nvidia/GR00T-N1.5-3B, synthetic, or synthetic:full",
            fix="check the path",
        )
    return _download(name, weights)


def _download(name: str, weights: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise CheckpointError(
            f"{name}: no such folder, and downloading it needs huggingface_hub", fix="pip install huggingface_hub"
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
