"""Adapters as folders: the original's files, what PEFT makes of them, and merged into the base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gr00t_trt.errors import CheckpointError, RecordError
from gr00t_trt.finetune.adapters import merge
from gr00t_trt.finetune.checkpoints import restore, save
from gr00t_trt.finetune.lora import Lora
from gr00t_trt.model import Gr00tN1d5, load_model

PREFIX = "base_model.model."
SLOTS = "action_head.action_decoder.layer2."
LORA = Lora(rank=8, alpha=16, dropout=0.0)


@pytest.fixture
def original(golden: Path) -> Path:
    """The adapter that the original wrote after four steps."""
    folder = golden.parent / "golden_toy_training" / "lora_r8_adapter"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture
def trained(original: Path) -> dict[str, Tensor]:
    return load_file(str(original / "adapter_model.safetensors"))


@pytest.fixture
def toy(golden: Path, tmp_path: Path) -> Path:
    """A base of the test's own, to change."""
    return Path(shutil.copytree(golden / "checkpoint", tmp_path / "toy"))


def write(folder: Path, trained: dict[str, Tensor], base: Path | str) -> Path:
    names = {name: nn.Parameter(value.clone()) for name, value in trained.items()}
    optimizer = torch.optim.AdamW(names.values())
    return save(folder, 1, trained, optimizer, names, {}, base, {}, lora=LORA)


def test_the_folder_is_the_originals(trained: dict[str, Tensor], original: Path, toy: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "run", trained, toy)
    ours, theirs = (json.loads((folder / "adapter_config.json").read_text()) for folder in (path, original))
    assert ours.pop("base_model_name_or_path") == str(toy)
    del theirs["base_model_name_or_path"]
    assert ours == theirs
    written = load_file(str(path / "adapter_model.safetensors"))
    assert written.keys() == trained.keys()
    assert all(torch.equal(written[key], value) and written[key].dtype == value.dtype for key, value in trained.items())


def test_names_of_a_model_in_training_become_the_files(trained: dict[str, Tensor], toy: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "run", trained, toy)
    renamed = {key.removeprefix(PREFIX).replace(".weight", ".default.weight"): value for key, value in trained.items()}
    other = write(tmp_path / "other", renamed, toy)
    weights = "adapter_model.safetensors"
    assert (other / weights).read_bytes() == (path / weights).read_bytes()
    names = {name: nn.Parameter(value.clone()) for name, value in renamed.items()}
    assert restore(other, torch.optim.AdamW(names.values()), names).trained.keys() == renamed.keys()


def test_merged_it_is_the_adapters_model_to_the_bit(trained: dict[str, Tensor], toy: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "run", trained, toy)
    merged = merge(path, tmp_path / "merged")
    for dtype in (torch.float32, torch.bfloat16):
        one, two = load_model(path, dtype=dtype).state_dict(), load_model(merged, dtype=dtype).state_dict()
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    plain = load_file(str(toy / "model.safetensors"))
    whole = {}
    for file in merged.glob("model*.safetensors"):
        whole |= load_file(str(file))
    assert whole.keys() == plain.keys()
    changed = {key for key in whole if not torch.equal(whole[key], plain[key])}
    assert changed == {f"{key.removeprefix(PREFIX).split('.lora_')[0]}.weight" for key in trained}


def peft_model(adapter: Path, base: Path) -> Gr00tN1d5:
    """The base with an adapter put in by PEFT itself."""
    peft = pytest.importorskip("peft")
    model = load_model(base)
    bare = nn.Module()
    bare.backbone, bare.action_head = model.backbone, model.action_head
    config = peft.LoraConfig.from_pretrained(str(adapter))
    loaded = peft.PeftModel(bare, config)
    found = loaded.load_adapter(str(adapter), "default")
    assert not found.unexpected_keys
    return model


def test_peft_reads_it_and_the_actions_are_ours(
    trained: dict[str, Tensor], golden: Path, toy: Path, tmp_path: Path
) -> None:
    """With a robot's own layers trained whole, as PEFT's modules_to_save."""
    slots = {SLOTS + leaf: torch.randn_like(value) for leaf, value in _slots(toy).items()}
    path = write(tmp_path / "run", {**trained, **slots}, toy)
    case = load_file(str(golden / "case_b2_v2.safetensors"))
    inputs = {key.removeprefix("in."): value for key, value in case.items() if key.startswith("in.")}
    with torch.no_grad():
        theirs = _actions(peft_model(path, toy), inputs)
        ours = _actions(load_model(path), inputs)
    assert float((ours - theirs).abs().max()) < 1e-5
    assert float((ours - case["out.action_pred"]).abs().max()) > 0.1


def _actions(model: Gr00tN1d5, inputs: dict[str, Tensor]) -> Tensor:
    noise: Any = inputs["noise"]
    return model.get_action(inputs, noise=noise)["action_pred"]


def _slots(base: Path) -> dict[str, Tensor]:
    layer = load_model(base).get_submodule(SLOTS.rstrip("."))
    return {name: value.detach() for name, value in layer.named_parameters()}


def test_another_base_than_it_was_trained_from_is_refused(
    trained: dict[str, Tensor], toy: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "run", trained, toy)
    weights = bytearray((toy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (toy / "model.safetensors").write_bytes(weights)
    for load in (load_model, lambda folder: merge(folder, tmp_path / "merged")):
        with pytest.raises(CheckpointError, match="is another one than it was trained from"):
            load(path)
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_a_generated_base(tmp_path: Path) -> None:
    name = "action_head.model.transformer_blocks.0.attn1.to_q"
    trained = {f"{PREFIX}{name}.lora_A.weight": torch.randn(8, 96), f"{PREFIX}{name}.lora_B.weight": torch.randn(96, 8)}
    path = write(tmp_path / "run", trained, "synthetic")
    moved = (tmp_path / "run").rename(tmp_path / "moved") / path.name
    change = 2 * trained[f"{PREFIX}{name}.lora_B.weight"] @ trained[f"{PREFIX}{name}.lora_A.weight"]
    expected = load_model("synthetic").get_submodule(name).weight + change
    assert torch.allclose(load_model(moved).get_submodule(name).weight, expected, atol=1e-5)
    merge(moved, tmp_path / "merged")
    assert (tmp_path / "merged" / "tokenizer.json").is_file()


def test_going_on_from_an_adapters_model(trained: dict[str, Tensor], toy: Path, tmp_path: Path) -> None:
    """All of the head trained after LoRA: what the adapter changed is frozen here, and merged, in fp32."""
    adapter = write(tmp_path / "run", trained, toy)
    name = "action_head.model.proj_out_1.bias"
    tensors = {name: torch.randn(192)}
    names = {name: nn.Parameter(tensors[name].clone())}
    path = save(tmp_path / "more", 1, tensors, torch.optim.AdamW(names.values()), names, {}, adapter, {})
    expected = load_model(adapter).state_dict() | tensors
    assert all(torch.equal(value, expected[key]) for key, value in load_model(path).state_dict().items())
    with pytest.raises(CheckpointError, match="adapter of an adapter"):
        write(tmp_path / "third", trained, adapter)


def test_merging_refuses_what_it_cannot_do(trained: dict[str, Tensor], toy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a whole model already"):
        merge(toy, tmp_path / "merged")
    path = write(tmp_path / "run", trained, toy)
    with pytest.raises(RecordError, match="exists"):
        merge(path, toy)
