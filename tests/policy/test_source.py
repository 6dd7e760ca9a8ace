"""What is looked at first, and where statistics and tokenizer are looked for."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import pytest
import torch
from checkpoints import write_base, write_vocabulary
from rich.console import Console
from safetensors.torch import save_file

from gr00t_trt.common.progress import Steps
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_dataset
from gr00t_trt.errors import CheckpointError, PlanError
from gr00t_trt.model import load_model
from gr00t_trt.policy import load_policy
from gr00t_trt.policy.flags import Default, source_flags
from gr00t_trt.policy.source import Source, load_source

MODEL = load_model("synthetic")
STEPS = Steps(Console(file=io.StringIO()), None)


def test_the_checkpoint_is_identified_before_anything_else_is_read(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "info.json").write_text("{}")
    source = Source(str(tmp_path), dataset_path="/no/such/dataset", metadata="/no/such.json", tokenizer="/no/such")
    with pytest.raises(CheckpointError, match="is a dataset"):
        load_source(source, torch.device("cpu"), STEPS)
    with pytest.raises(CheckpointError, match="is a dataset"):
        load_policy(tmp_path, metadata="/no/such.json", tokenizer="/no/such")


def test_config_then_metadata_then_tokenizer_then_weights(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "checkpoint", MODEL)
    (folder / "model.safetensors").write_bytes(b"cut short")
    (folder / "eagle_config.json").rename(tmp_path / "eagle_config.json")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_policy(folder)
    (tmp_path / "eagle_config.json").rename(folder / "eagle_config.json")
    with pytest.raises(CheckpointError, match=r"metadata\.json"):
        load_policy(folder, tokenizer="/no/such")
    dataset = LeRobotDataset(synthetic_dataset(), data_config("fourier_gr1_arms_only").modality_config())
    dataset.metadata("gr1").write(folder)
    with pytest.raises(Exception, match="--tokenizer /no/such"):
        load_policy(folder, tokenizer="/no/such")
    write_vocabulary(folder / "tokenizer", dict(MODEL.config.special_tokens))
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        load_policy(folder)


def test_an_adapter_takes_what_it_lacks_from_its_base(tmp_path: Path) -> None:
    base, adapter = write_base(tmp_path / "base", MODEL), tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "r": 1, "base_model_name_or_path": str(base)}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    name = "base_model.model.action_head.model.proj_out_1"
    ab = {f"{name}.lora_A.weight": torch.zeros(1, 96), f"{name}.lora_B.weight": torch.zeros(192, 1)}
    save_file(ab, str(adapter / "adapter_model.safetensors"))
    metadata = LeRobotDataset(synthetic_dataset(), data_config("fourier_gr1_arms_only").modality_config()).metadata(
        "gr1"
    )
    metadata.write(base)
    write_vocabulary(base / "tokenizer", dict(MODEL.config.special_tokens))
    policy = load_policy(adapter)
    assert policy.metadata.source == str(base / "experiment_cfg" / "metadata.json")
    assert policy.prompter.tokenizer.name == str(base / "tokenizer")
    metadata.write(adapter)
    assert load_policy(adapter).metadata.source == str(adapter / "experiment_cfg" / "metadata.json")


def test_statistics_of_one_robot_and_the_tag_of_another() -> None:
    dataset = LeRobotDataset(synthetic_dataset(), data_config("fourier_gr1_arms_only").modality_config())
    metadata = dataset.metadata("new_embodiment")
    assert load_policy("synthetic", metadata=metadata).metadata.embodiment_tag == "new_embodiment"
    with pytest.raises(PlanError, match="--embodiment_tag gr1 with statistics of new_embodiment"):
        load_policy("synthetic", embodiment_tag="gr1", metadata=metadata)


def test_a_default_is_not_a_choice() -> None:
    parser = argparse.ArgumentParser()
    source_flags(parser, "data_config", "embodiment_tag", embodiment_tag="new_embodiment")
    left, chosen = parser.parse_args([]), parser.parse_args(["--embodiment_tag", "new_embodiment"])
    assert isinstance(left.data_config, Default)
    assert (left.embodiment_tag, type(left.embodiment_tag)) == ("new_embodiment", Default)
    assert type(chosen.embodiment_tag) is str
    assert "[new_embodiment]" in parser.format_help()
