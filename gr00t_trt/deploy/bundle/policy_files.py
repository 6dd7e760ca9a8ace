"""A policy as files, and from them again: weights as they are held, geometry, statistics, tokenizer, data config.

`model/` is a checkpoint folder in Isaac-GR00T's layout, which every program of this package can load.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...compile.build import set_precision
from ...data import DatasetMetadata, Prompter, load_tokenizer
from ...data import data_config as data_config_from_name
from ...errors import PlanError
from ...model import Gr00tConfig, load_config, load_model
from ...model.config_writer import config_file, eagle_file
from ...model.folders import CONFIG
from ...model.weight_writer import from_tensor, write_weights
from ...plans.schema import Plan
from ...policy.lerobot import LeRobotDataConfig
from ...policy.policy import Gr00tPolicy
from .manifest import MODEL, PolicyFacts, written

SHARD_BYTES = 1 << 30
"""Files of this size are read and hashed side by side."""

LEROBOT = "lerobot"
"""In a data config's place: LeRobot's own files, in the folder of this name."""

CODE = "data_config"
"""The folder of a user's own data config, which is one Python file."""


def write_policy(
    policy: Gr00tPolicy, config: Any, name: Any, weights: Mapping[str, Tensor], folder: Path
) -> PolicyFacts:
    """Write all that a policy is made of.

    Args:
        config: Its data config. name: What that was chosen by, a text where it was named.
        weights: Of its model, under the checkpoint's names and in the precisions that they are to have.
        folder: The bundle's, which exists.
    Raises: PlanError for a data config that cannot be written; OSError.
    """
    model = folder / MODEL
    model.mkdir()
    geometry: Gr00tConfig = policy.model.config
    written(model, CONFIG, json.dumps(config_file(geometry), indent=2) + "\n")
    written(model, "eagle_config.json", json.dumps(eagle_file(geometry.eagle), indent=2) + "\n")
    policy.prompter.tokenizer.write(model)
    policy.metadata.write(model)
    chosen = _write_data_config(config, name, folder)
    entries = {key: from_tensor(value) for key, value in weights.items()}
    write_weights(model, entries, limit=SHARD_BYTES)
    return PolicyFacts(chosen, policy.metadata.embodiment_tag, policy.bracketed_instruction)


def _write_data_config(config: Any, name: Any, folder: Path) -> str:
    """Put a data config into the bundle; what `_data_config` makes it from again."""
    if isinstance(config, LeRobotDataConfig):
        _copy_lerobot(config.folder, folder / LEROBOT)
        return LEROBOT
    if not isinstance(name, str):
        raise PlanError(f"data config {type(config).__name__}: an object cannot be written", fix="name module:Class")
    if ":" not in name:
        return name
    module, _, class_name = name.rpartition(":")
    file = Path(module).expanduser() if module.endswith(".py") else Path(str(sys.modules[module].__file__))
    (folder / CODE).mkdir()
    shutil.copyfile(file, folder / CODE / file.name)
    return f"{CODE}/{file.name}:{class_name}"


def _copy_lerobot(source: Path, folder: Path) -> None:
    """LeRobot's own files; the geometry is that of the model beside them, whatever base model they name."""
    folder.mkdir()
    for path in (*source.glob("policy_*processor*.json"), *source.glob("policy_*processor*.safetensors")):
        shutil.copyfile(path, folder / path.name)
    own = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    written(folder, CONFIG, json.dumps({**own, "base_model_path": f"../{MODEL}"}, indent=2) + "\n")


def read_policy(folder: Path, facts: PolicyFacts, plan: Plan, device: torch.device) -> Gr00tPolicy:
    """The policy that was written, in plain PyTorch and in the plan's precisions, which its files have.

    Raises: Gr00tError for what `write_policy` would not have written.
    """
    model_folder = folder / MODEL
    config = _data_config(folder, facts.data_config)
    metadata = DatasetMetadata.load(model_folder, facts.embodiment_tag)
    geometry = load_config(model_folder)
    words = load_tokenizer(model_folder, (), geometry.special_tokens, geometry.vocab_size)
    sizes = {"image_size": geometry.image_size, "tokens_per_image": geometry.tokens_per_image}
    prompter = Prompter(words, words.special_tokens, **sizes)
    model = load_model(model_folder, dtype=partial(set_precision, plan=plan), device=device)
    policy = Gr00tPolicy(model, config, metadata, prompter, bracketed_instruction=facts.bracketed_instruction)
    policy.denoising_steps = plan.denoising_steps
    return policy


def _data_config(folder: Path, name: str) -> Any:
    if name == LEROBOT:
        return LeRobotDataConfig(folder / LEROBOT)
    return data_config_from_name(f"{folder / name}" if name.startswith(f"{CODE}/") else name)
