"""What kind of folder a path names: a checkpoint that can be loaded, or which other thing, and what to do about it.

Looks at names and small JSON files only. Never imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from .config_section import read_object

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
EAGLE_CONFIG = "eagle_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_BASE = "adapter_config.json", "adapter_model.safetensors", "base.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

_GENERATIONS = {"gr00t_n1": "N1", "gr00tn1d6": "N1.6", "gr00t_n1_6": "N1.6", "gr00tn1d7": "N1.7", "gr00t_n1_7": "N1.7"}
_LATER_NAME = re.compile(r"n1[._d]?([67])", re.IGNORECASE)
_SUPPORTED = "checkpoints of GR00T N1.5 (model_type gr00t_n1_5), as Isaac-GR00T or LeRobot saves them"
_LISTED = 10


class Kind(Enum):
    """What can be loaded."""

    N1_5 = "a GR00T N1.5 checkpoint"
    LEROBOT = "LeRobot's checkpoint of a GR00T N1.5"
    ADAPTER = "a LoRA adapter of a GR00T N1.5"


def identify(folder: Path, *, weights: bool = True) -> Kind:
    """Which kind of checkpoint a folder holds.

    Args:
        weights: False leaves open whether weights are there.
    Raises: CheckpointError for every other folder, saying what it is and what to do.
    """
    if (folder / ADAPTER_CONFIG).is_file():
        _refuse_two_models(folder)
        return Kind.ADAPTER
    if not (folder / CONFIG).is_file():
        raise _without_config(folder)
    config = read_object(folder / CONFIG)
    kind = Kind.LEROBOT if "type" in config and "model_type" not in config else Kind.N1_5
    if kind is Kind.LEROBOT:
        _check_policy_type(folder, config)
    else:
        _check_generation(folder, config)
    if weights and not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise _without_weights(folder)
    return kind


def _refuse_two_models(folder: Path) -> None:
    whole = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if whole is not None:
        raise CheckpointError(
            f"{folder}: holds a LoRA adapter ({ADAPTER_CONFIG}) and whole weights ({whole}), and only one can be meant",
            fix=f"move {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS} away if they have been merged into the weights",
        )


def _check_policy_type(folder: Path, config: Mapping[str, Any]) -> None:
    if config["type"] != "groot":
        raise CheckpointError(
            f"{folder}: is LeRobot's checkpoint of another policy: type {str(config['type'])[:60]!r} in {CONFIG}",
            known=f"{_SUPPORTED} (type 'groot')",
        )
    named = " ".join(str(config.get(key, "")) for key in ("base_model_path", "model_version"))
    later = _LATER_NAME.search(named)
    if later is not None:
        raise CheckpointError(
            f"{folder}: is LeRobot's checkpoint of a GR00T N1.{later[1]} ({later[0]} in {CONFIG})", known=_SUPPORTED
        )


def _check_generation(folder: Path, config: Mapping[str, Any]) -> None:
    given = str(config.get("model_type", "gr00t_n1_5"))
    if given == "gr00t_n1_5":
        return
    generation = _GENERATIONS.get(given.lower())
    what = f"is a checkpoint of GR00T {generation}" if generation else "is a checkpoint of another model"
    raise CheckpointError(
        f'{folder / CONFIG}: model_type: unsupported value "{given[:60]}": it {what}',
        known=_SUPPORTED,
        fix="use a GR00T N1.5 checkpoint, such as nvidia/GR00T-N1.5-3B",
    )


def _without_config(folder: Path) -> CheckpointError:
    names = _names(folder)
    if not names:
        return CheckpointError(f"{folder}: is an empty folder", known="a checkpoint folder", fix="check the path")
    if (folder / "meta" / "info.json").is_file():
        return CheckpointError(
            f"{folder}: is a dataset, not a checkpoint: it holds meta/info.json", fix=f"--dataset_path {folder}"
        )
    inside = _checkpoints_inside(folder)
    if inside:
        return CheckpointError(
            f"{folder}: is no checkpoint, but the folder above {_counted(inside)}",
            known=_listed(str(path.relative_to(folder)) for path in inside),
            fix=f"give the checkpoint itself: --model_path {inside[-1]}",
        )
    if any(name.endswith((".safetensors", *PICKLES)) or name.startswith("global_step") for name in names):
        return CheckpointError(
            f"{folder / CONFIG}: no such file, though there are weights: {_listed(names)}",
            fix=f"copy {CONFIG} from the model that these weights were trained from",
        )
    return CheckpointError(
        f"{folder / CONFIG}: no such file",
        known=f"a checkpoint folder holds {CONFIG} and model*.safetensors; found: {_listed(names)}",
        fix=f"give the folder that holds {CONFIG} and the model*.safetensors files",
    )


def _checkpoints_inside(folder: Path) -> list[Path]:
    """Checkpoints up to three levels below, by their number: of a trainer's run, of LeRobot's, of the hub's cache."""
    found: set[Path] = set()
    for level in ("*", "*/pretrained_model", "checkpoints/*/pretrained_model", "snapshots/*"):
        for path in folder.glob(level):
            if (path / CONFIG).is_file() or (path / ADAPTER_CONFIG).is_file():
                found.add(path)
    return sorted(found, key=lambda path: (_number(path.relative_to(folder)), str(path)))


def _number(path: Path) -> int:
    digits = re.findall(r"\d{1,18}", str(path))
    return int(digits[-1]) if digits else -1


def _counted(paths: list[Path]) -> str:
    return "a checkpoint" if len(paths) == 1 else f"{len(paths)} checkpoints"


def _without_weights(folder: Path) -> CheckpointError:
    names = _names(folder)
    known = f"{SINGLE}, or {INDEX} with its shards; found: {_listed(names)}"
    steps = [name for name in names if name.startswith("global_step")]
    if steps or "zero_to_fp32.py" in names:
        what = f"its weights are still in DeepSpeed's pieces ({(steps or ['zero_to_fp32.py'])[-1]})"
        fix = f"put them together: cd {folder} && python zero_to_fp32.py . . --safe_serialization"
        return CheckpointError(f"{folder}: no weights: {what}", known=known, fix=fix)
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return CheckpointError(
            f"{folder}: no weights: {_listed(pickles)} is not read, as a pickle can run any code",
            known=known,
            fix='convert a file of a source that you trust: python -c "import torch; from safetensors.torch import '
            f"save_file; t = torch.load('{pickles[0]}', weights_only=True); "
            f"save_file({{k: v.contiguous().clone() for k, v in t.items()}}, '{SINGLE}')\"",
        )
    shards = [name for name in names if re.fullmatch(r"model.*\.safetensors", name)]
    if shards:
        return CheckpointError(
            f"{folder}: {INDEX} is missing, which says what is in {_listed(shards)}",
            known=known,
            fix=f"download {INDEX} into the folder",
        )
    return CheckpointError(f"{folder}: no weights", known=known, fix="download the whole checkpoint folder")


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as e:
        raise CheckpointError(f"{folder}: cannot be listed: {e.strerror}", fix="check its permissions") from e


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    more = f", and {len(every) - _LISTED} more" if len(every) > _LISTED else ""
    return ", ".join(every[:_LISTED]) + more
