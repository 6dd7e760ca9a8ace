"""Bundles of the checkpoints that people have: the checkpoint can be gone, and the actions are the same to the bit."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from bundles import CPU, QUIET, actions, equal, made, normal, resolved, source, started
from safetensors.torch import load_file, save_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "policy"))
from checkpoints import CAMERAS, write_base, write_lerobot


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The synthetic model as NVIDIA's code would have saved it, with statistics and tokenizer."""
    policy = source().policy(CPU, QUIET)
    folder = write_base(tmp_path / "base", policy.model)
    policy.metadata.write(folder)
    policy.prompter.tokenizer.write(folder)
    return folder


def test_a_checkpoint_is_not_needed_once_it_is_bundled(checkpoint: Path, tmp_path: Path) -> None:
    plan = resolved(precision="bf16", denoising_steps=2)
    before = actions(normal(plan, model_path=str(checkpoint)))
    folder = made(tmp_path / "robot", plan, model_path=str(checkpoint)).folder
    shutil.rmtree(checkpoint)
    found = started(folder)
    assert equal(actions(found.policy), before)
    assert (found.policy.denoising_steps, found.policy.bracketed_instruction) == (2, False)


def test_an_adapter_is_merged(checkpoint: Path, tmp_path: Path) -> None:
    name = "action_head.model.transformer_blocks.0.attn1.to_q"
    weight = load_file(checkpoint / "model.safetensors")[f"{name}.weight"]
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    about = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(checkpoint), "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps({**about, "target_modules": ["to_q"]}))
    pair = {"A": torch.ones(4, weight.shape[1]), "B": torch.full((weight.shape[0], 4), 0.01)}
    tensors = {f"base_model.model.{name}.lora_{side}.weight": value for side, value in pair.items()}
    save_file(tensors, adapter / "adapter_model.safetensors")
    before = actions(normal(resolved(), model_path=str(adapter)))
    assert not equal(before, actions(normal(resolved(), model_path=str(checkpoint))))
    folder = made(tmp_path / "robot", model_path=str(adapter)).folder
    shutil.rmtree(adapter)
    shutil.rmtree(checkpoint)
    assert equal(actions(started(folder).policy), before)


def test_a_checkpoint_of_lerobot_keeps_its_own_arithmetic(checkpoint: Path, tmp_path: Path) -> None:
    lerobot = write_lerobot(tmp_path / "pretrained_model", source().policy(CPU, QUIET).model, checkpoint)
    settings = {"model_path": str(lerobot), "tokenizer": str(checkpoint / "tokenizer.json")}
    before = actions(normal(resolved(), **settings))
    folder = made(tmp_path / "robot", **settings).folder
    shutil.rmtree(lerobot)
    shutil.rmtree(checkpoint)
    found = started(folder).policy
    assert equal(actions(found), before)
    assert set(found.modality_config["video"].modality_keys) == {f"video.{name}" for name in CAMERAS}
