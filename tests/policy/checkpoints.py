"""Checkpoint folders as people have them: NVIDIA's layout, LeRobot's, and the tokenizer's files beside them."""

from __future__ import annotations

import dataclasses
import json
from itertools import product
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import torch
from safetensors.torch import save_file

from gr00t_trt.model import Gr00tN1d5

CAMERAS = {"wrist": (3, 96, 128), "front": (3, 96, 128)}
WIDTH = 6


def write_base(folder: Path, model: Gr00tN1d5) -> Path:
    """The model as NVIDIA's code saves one."""
    folder.mkdir(parents=True)
    head = dataclasses.asdict(model.config.action_head)
    dit, vl = head.pop("diffusion"), head.pop("vl_self_attention")
    del vl["norm_eps"]
    config = {
        "architectures": ["GR00T_N1_5"],
        "model_type": "gr00t_n1_5",
        "action_dim": head["action_dim"],
        "action_horizon": head["action_horizon"],
        "backbone_cfg": {**dataclasses.asdict(model.config.backbone), "reproject_vision": False},
        "action_head_cfg": {
            **head,
            "diffusion_model_cfg": {**dit, "norm_type": "ada_norm", "positional_embeddings": None},
            "vl_self_attention_cfg": {
                **{k: v for k, v in vl.items() if k != "norm_eps"},
                "positional_embeddings": None,
            },
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "eagle_config.json").write_text(json.dumps(eagle_config(model)))
    save_file(
        {k: v.clone() for k, v in model.state_dict().items()}, str(folder / "model.safetensors"), {"format": "pt"}
    )
    return folder


def eagle_config(model: Gr00tN1d5) -> dict[str, Any]:
    """As the file of the vision-language model, which NVIDIA's code keeps with itself."""
    vision, text = dataclasses.asdict(model.config.eagle.vision), dataclasses.asdict(model.config.eagle.text)
    return {
        "architectures": ["Eagle25VLForConditionalGeneration"],
        "model_type": "eagle_2_5_vl",
        "image_token_index": model.config.image_token_index,
        "select_layer": -1,
        "use_pixel_shuffle": False,
        "mlp_connector_layers": 1,
        "vision_config": {"model_type": "siglip_vision_model", **vision},
        "text_config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "tie_word_embeddings": True,
            "max_position_embeddings": 4096,
            **text,
        },
    }


def write_vocabulary(folder: Path, special_tokens: dict[str, int]) -> None:
    """A vocabulary in Qwen2's files: bytes, pairs of letters, and the special tokens behind them."""
    folder.mkdir(parents=True, exist_ok=True)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [i for i in range(256) if i not in visible]
    tokens = [chr(i) for i in visible] + [chr(256 + n) for n in range(len(hidden))]
    pairs = [(a, b) for a, b in product(f"{chr(288)}{ascii_lowercase}", ascii_lowercase)]
    pairs += [(chr(288), f"{a}{b}") for a, b in product(ascii_lowercase, ascii_lowercase)]
    pairs = pairs[: min(special_tokens.values()) - len(tokens)]
    tokens += [a + b for a, b in pairs]
    assert len(set(tokens)) == len(tokens) == min(special_tokens.values())
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in pairs))
    added = {
        str(i): {"content": t, "special": True, "lstrip": False, "rstrip": False, "normalized": False,
                 "single_word": False}
        for t, i in sorted(special_tokens.items(), key=lambda item: item[1])
    }  # fmt: skip
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "added_tokens.json").write_text(json.dumps(special_tokens))


def statistics(seed: int = 3) -> dict[str, dict[str, list[float]]]:
    """Of a robot one of whose joints never moved."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for key in ("observation.state", "action"):
        low = torch.randn(WIDTH, generator=generator)
        high = low + torch.rand(WIDTH, generator=generator) + 0.5
        high[2] = low[2]
        values = {"min": low, "max": high, "mean": (low + high) / 2, "std": (high - low) / 4}
        out[key] = {name: value.tolist() for name, value in values.items()}
    return out


def write_lerobot(folder: Path, model: Gr00tN1d5, base: Path, *, tag: str = "so100") -> Path:
    """The model as LeRobot saves its policy, with the files that its processors leave beside it."""
    folder.mkdir(parents=True)
    tensors = {f"_groot_model.{name}": value.clone() for name, value in model.state_dict().items()}
    save_file(tensors, str(folder / "model.safetensors"))
    visual = {f"observation.images.{name}": {"type": "VISUAL", "shape": shape} for name, shape in CAMERAS.items()}
    config = {
        "type": "groot",
        "n_obs_steps": 1,
        "input_features": {**visual, "observation.state": {"type": "STATE", "shape": [WIDTH]}},
        "output_features": {"action": {"type": "ACTION", "shape": [WIDTH]}},
        "chunk_size": 50,
        "max_state_dim": 64,
        "base_model_path": str(base),
        "tokenizer_assets_repo": "lerobot/eagle2hg-processor-groot-n1p5",
        "embodiment_tag": tag,
    }
    (folder / "config.json").write_text(json.dumps(config))
    pack = {
        "state_horizon": 1,
        "action_horizon": 16,
        "max_state_dim": 64,
        "max_action_dim": 32,
        "language_key": "task",
        "formalize_language": False,
        "embodiment_tag": tag,
        "embodiment_mapping": {"new_embodiment": 31, "gr1": 24, "so100": 2},
        "normalize_min_max": True,
    }
    steps = [
        ("rename_observations_processor", {"rename_map": {}}, False),
        ("to_batch_processor", {}, False),
        ("groot_pack_inputs_v3", pack, True),
        ("groot_eagle_encode_v3", {}, False),
        ("groot_eagle_collate_v3", {}, False),
        ("device_processor", {"device": "cpu", "float_dtype": None}, False),
    ]
    write_processor(folder, "policy_preprocessor", steps)
    unpack = {"env_action_dim": WIDTH, "normalize_min_max": True}
    write_processor(
        folder,
        "policy_postprocessor",
        [("groot_action_unpack_unnormalize_v1", unpack, True), ("device_processor", {"device": "cpu"}, False)],
    )
    return folder


def write_processor(folder: Path, name: str, steps: list[tuple[str, dict[str, Any], bool]]) -> None:
    entries = []
    state = {f"{k}.{n}": torch.tensor(v) for k, own in statistics().items() for n, v in own.items()}
    for index, (kind, config, stateful) in enumerate(steps):
        entry: dict[str, Any] = {"registry_name": kind, "config": config}
        if stateful:
            entry["state_file"] = f"{name}_step_{index}_{kind}.safetensors"
            save_file(state, str(folder / entry["state_file"]))
        entries.append(entry)
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "steps": entries}))
