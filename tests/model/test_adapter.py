"""LoRA adapters in PEFT's format: applied to their base, or one error that says how to merge them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from gr00t_trt.errors import CheckpointError
from gr00t_trt.model import load_config, load_model
from gr00t_trt.model.checkpoint import side_folders

TARGET = "action_head.model.transformer_blocks.0.attn1.to_q"
PREFIX = "base_model.model."


class Adapter:
    """An adapter of one layer, of rank 4, beside its base."""

    def __init__(self, base: Path):
        self.base, self.folder = base, base.with_name("adapter")
        self.config: dict[str, Any] = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 16,
            "base_model_name_or_path": str(base),
        }
        generator = torch.Generator().manual_seed(0)
        self.a, self.b = torch.randn(4, 96, generator=generator), torch.randn(96, 4, generator=generator)
        self.tensors = {f"{PREFIX}{TARGET}.lora_A.weight": self.a, f"{PREFIX}{TARGET}.lora_B.weight": self.b}

    def write(self, **config: Any) -> Path:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "adapter_config.json").write_text(json.dumps({**self.config, **config}))
        save_file(self.tensors, str(self.folder / "adapter_model.safetensors"))
        return self.folder


@pytest.fixture
def adapter(checkpoint: Any) -> Adapter:
    return Adapter(checkpoint.write())


@pytest.mark.parametrize(("options", "scaling"), [({}, 4.0), ({"use_rslora": True}, 8.0), ({"lora_alpha": 2}, 0.5)])
def test_applied_to_its_base(adapter: Adapter, options: dict[str, Any], scaling: float) -> None:
    base, adapted = load_model(adapter.base).state_dict(), load_model(adapter.write(**options)).state_dict()
    for name, value in base.items():
        change = scaling * (adapter.b @ adapter.a) if name == f"{TARGET}.weight" else 0.0
        torch.testing.assert_close(adapted[name], value + change, rtol=0, atol=1e-5)
    assert load_config(adapter.folder) == load_config(adapter.base)
    assert side_folders(adapter.folder) == [adapter.folder, adapter.base]


@pytest.mark.parametrize("written", ["../checkpoint", "nobody/checkpoint"])
def test_a_base_named_by_a_relative_path(adapter: Adapter, written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (adapter.base.parent / "nobody").symlink_to(adapter.base.parent)
    monkeypatch.chdir(adapter.base.parent)
    load_model(adapter.write(base_model_name_or_path=written))


def test_parameters_that_were_trained_whole(adapter: Adapter) -> None:
    name = "action_head.action_decoder.layer2.b"
    adapter.tensors[PREFIX + name] = torch.full((32, 32), 2.0)
    adapted = load_model(adapter.write(modules_to_save=["action_head.action_decoder"]))
    assert torch.equal(adapted.state_dict()[name], adapter.tensors[PREFIX + name])


def test_the_adapter_that_the_original_wrote(golden: Path, tmp_path: Path) -> None:
    trained = golden.with_name("golden_toy_training")
    if not trained.is_dir():
        pytest.skip(f"no {trained}")
    folder = Path(shutil.copytree(trained / "lora_r8_adapter", tmp_path / "adapter"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(
        json.dumps({**config, "base_model_name_or_path": str(golden / "checkpoint")})
    )
    base, adapted = load_model(golden / "checkpoint").state_dict(), load_model(folder).state_dict()
    after = load_file(trained / "lora_r8.safetensors")
    changed = {name for name, value in adapted.items() if not torch.equal(value, base[name])}
    assert changed == {f"{name}.weight" for name in config["target_modules"]}
    for name in config["target_modules"]:
        a, b = (after[f"whole.after4.{PREFIX}{name}.lora_{x}.default.weight"].double() for x in "AB")
        merged = base[f"{name}.weight"].double() + config["lora_alpha"] / config["r"] * b @ a
        torch.testing.assert_close(adapted[f"{name}.weight"].double(), merged, rtol=0, atol=1e-7)


REFUSED = [
    ({"peft_type": "IA3"}, "peft_type 'IA3'"),
    ({"use_dora": True}, "use_dora True"),
    ({"rank_pattern": {"to_q": 8}}, "rank_pattern"),
    ({"bias": "all"}, "bias all"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights pissa"),
    ({"of_next_year": True}, "of_next_year"),
    ({"r": 8}, "not of rank 8"),
    ({"base_model_name_or_path": "/no/such"}, "/no/such: no such folder"),
    ({"base_model_name_or_path": "synthetic"}, "its base model synthetic is not"),
    ({"base_model_name_or_path": "."}, "is not a GR00T N1.5 checkpoint"),
]


@pytest.mark.parametrize(("options", "words"), REFUSED)
def test_what_cannot_be_applied_says_how_to_merge(adapter: Adapter, options: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(adapter.write(**options))
    for word in (words, "LoRA", "merge_and_unload()", "save_pretrained", str(adapter.folder)):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("action_head.nothing.lora_A.weight", (4, 96), "has no lora_B"),
        (f"{TARGET}.lora_magnitude_vector", (96,), "has no place"),
        ("action_head.action_decoder.layer2.b", (1, 1), "has no place"),
    ],
)
def test_tensors_without_a_place(adapter: Adapter, name: str, shape: tuple[int, ...], words: str) -> None:
    adapter.tensors[PREFIX + name] = torch.zeros(shape)
    with pytest.raises(CheckpointError, match=words):
        load_model(adapter.write())


def test_an_adapter_without_weights_or_with_nan(adapter: Adapter) -> None:
    adapter.b[3, 1] = float("nan")
    with pytest.raises(CheckpointError, match=rf"{TARGET}.weight holds 96 values that are NaN"):
        load_model(adapter.write())
    (adapter.folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is missing"):
        load_model(adapter.folder)
