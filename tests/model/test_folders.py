"""Folders that are no N1.5 checkpoint: each gets one sentence that says what it is and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gr00t_trt.errors import CheckpointError
from gr00t_trt.model import load_config, load_model
from gr00t_trt.model.folders import Kind, identify


def put(folder: Path, **files: Any) -> Path:
    """Files by name (`__` for a slash, `_json` for the suffix); objects are written as JSON, None makes a folder."""
    for key, content in files.items():
        path = folder / key.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


N1_5 = {"model_type": "gr00t_n1_5"}
LEROBOT = {"type": "groot", "base_model_path": "nvidia/GR00T-N1.5-3B"}


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"config_json": N1_5}, Kind.N1_5),
        ({"config_json": LEROBOT}, Kind.LEROBOT),
        ({"config_json": {**N1_5, "type": "groot"}}, Kind.N1_5),
        ({"adapter_config_json": {}}, Kind.ADAPTER),
        ({"adapter_config_json": {}, "config_json": N1_5}, Kind.ADAPTER),
    ],
)
def test_what_can_be_loaded(tmp_path: Path, files: dict[str, Any], kind: Kind) -> None:
    assert identify(put(tmp_path, **files), weights=False) is kind


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ["empty folder"]),
        ({"meta__info_json": {}}, ["is a dataset", "--dataset_path"]),
        ({"config_json": {"model_type": "gr00t_n1"}}, ["gr00t_n1", "GR00T N1\n", "N1.5"]),
        ({"config_json": {"model_type": "Gr00tN1d6"}}, ["Gr00tN1d6", "N1.6", "N1.5"]),
        ({"config_json": {"model_type": "Gr00tN1d7"}}, ["Gr00tN1d7", "N1.7", "N1.5"]),
        ({"config_json": {"model_type": "qwen3"}}, ["qwen3", "another model"]),
        ({"config_json": {"type": "act"}}, ["LeRobot", "'act'"]),
        ({"config_json": {**LEROBOT, "base_model_path": "nvidia/GR00T-N1.7-3B"}}, ["LeRobot", "N1.7"]),
        ({"config_json": "version https://git-lfs.github.com/spec/v1\n"}, ["config.json", "git lfs pull"]),
        ({"config_json": N1_5}, ["no weights"]),
        ({"config_json": N1_5, "global_step500": None}, ["global_step500", "zero_to_fp32.py", "safetensors"]),
        ({"config_json": N1_5, "zero_to_fp32.py": ""}, ["DeepSpeed", "--safe_serialization"]),
        ({"config_json": N1_5, "pytorch_model.bin": ""}, ["pytorch_model.bin", "pickle", "save_file"]),
        ({"config_json": N1_5, "last.pt": ""}, ["last.pt", "weights_only=True"]),
        ({"config_json": N1_5, "model-00001-of-00002.safetensors": ""}, ["index.json is missing"]),
        ({"model.safetensors": ""}, ["config.json: no such file", "copy config.json"]),
        ({"README.md": ""}, ["config.json: no such file", "README.md"]),
        ({"adapter_config_json": {}, "model.safetensors": ""}, ["LoRA adapter", "model.safetensors", "move"]),
    ],
)
def test_what_cannot(tmp_path: Path, files: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CheckpointError) as caught:
        identify(put(tmp_path, **files))
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("names", "offered"),
    [
        (["checkpoint-500", "checkpoint-1000", "checkpoint-9"], "checkpoint-1000"),
        (["checkpoints/000100/pretrained_model", "checkpoints/last/pretrained_model"], "checkpoints/000100"),
        (["pretrained_model"], "pretrained_model"),
        (["snapshots/0123abc"], "snapshots/0123abc"),
    ],
)
def test_the_folder_above_offers_what_is_inside(tmp_path: Path, names: list[str], offered: str) -> None:
    for name in names:
        put(tmp_path / name, config_json=N1_5)
    put(tmp_path, experiment_cfg=None)
    with pytest.raises(CheckpointError) as caught:
        identify(tmp_path)
    assert f"--model_path {tmp_path / offered}" in str(caught.value)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize("load", [load_model, load_config])
def test_every_way_of_loading_asks_first(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    with pytest.raises(CheckpointError, match="is a dataset"):
        load(put(tmp_path, meta__info_json={}))
