"""What is read from config.json and eagle_config.json, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gr00t_trt.errors import CheckpointError
from gr00t_trt.model import load_config, load_model


def put(config: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for key in path:
        config = config[key]
    config[last] = value


def drop(config: dict[str, Any], dotted: str) -> None:
    *path, last = dotted.split(".")
    for key in path:
        config = config[key]
    del config[last]


@pytest.mark.parametrize("name", ["synthetic", "synthetic:full"])
def test_synthetic_geometries_are_json(name: str) -> None:
    config = load_config(name)
    assert json.loads(json.dumps(dataclasses.asdict(config))) == dataclasses.asdict(config)
    assert config.tokens_per_image == 256
    assert config.special_tokens["<IMG_CONTEXT>"] == config.image_token_index
    assert max(config.special_tokens.values()) < config.vocab_size
    assert len(config.special_tokens) == 6


def test_written_files_read_back(checkpoint: Any, shared_tiny: Any) -> None:
    checkpoint.write()
    got = load_config(checkpoint.folder)
    assert got.action_head == shared_tiny.config.action_head
    assert got.eagle.vision == shared_tiny.config.eagle.vision
    assert got.eagle.text == shared_tiny.config.eagle.text
    assert got.special_tokens == {"<IMG_CONTEXT>": 1021}


def test_without_eagle_config_the_public_one_is_built_in(checkpoint: Any) -> None:
    checkpoint.config["action_head_cfg"].update(backbone_embedding_dim=2048)
    checkpoint.config["action_head_cfg"]["diffusion_model_cfg"]["cross_attention_dim"] = 2048
    checkpoint.config["action_head_cfg"]["vl_self_attention_cfg"].update(num_attention_heads=32, attention_head_dim=64)
    checkpoint.write()
    (checkpoint.folder / "eagle_config.json").unlink()
    config = load_config(checkpoint.folder)
    assert config.eagle == load_config("synthetic:full").eagle
    assert config.special_tokens["<|im_start|>"] == 151644


def test_absent_keys_mean_the_code_s_defaults(checkpoint: Any) -> None:
    for key in ("max_num_embodiments", "max_seq_len", "num_target_vision_tokens", "use_vlln", "add_pos_embed"):
        drop(checkpoint.config, f"action_head_cfg.{key}")
    drop(checkpoint.config, "action_head_cfg.diffusion_model_cfg.interleave_self_attention")
    drop(checkpoint.config, "action_head_cfg.diffusion_model_cfg.attention_bias")
    checkpoint.write()
    head = load_config(checkpoint.folder).action_head
    assert (head.max_num_embodiments, head.max_seq_len, head.num_target_vision_tokens) == (32, 1024, 32)
    assert head.use_vlln
    assert head.add_pos_embed
    assert head.diffusion.attention_bias
    assert not head.diffusion.interleave_self_attention


REFUSED = [
    ("model_type", "gr00t_n1_6", 'model_type: unsupported value "gr00t_n1_6"'),
    ("backbone_cfg.reproject_vision", True, "backbone_cfg.reproject_vision: unsupported value true"),
    ("backbone_cfg.select_layer", 0, "backbone_cfg.select_layer: 0"),
    ("backbone_cfg.select_layer", 4, "backbone_cfg.select_layer: 4"),
    ("backbone_cfg.select_layer", "two", "backbone_cfg.select_layer: bad value 'two'"),
    ("action_head_cfg.diffusion_model_cfg.norm_type", "ada_norm_zero", "norm_type: unsupported value"),
    (
        "action_head_cfg.diffusion_model_cfg.positional_embeddings",
        "sinusoidal",
        'action_head_cfg.diffusion_model_cfg.positional_embeddings: unsupported value "sinusoidal"',
    ),
    ("action_head_cfg.vl_self_attention_cfg.activation_fn", "geglu", 'activation_fn: unsupported value "geglu"'),
    ("action_head_cfg.max_state_dim", -3, "action_head_cfg.max_state_dim: bad value -3"),
    ("action_head_cfg.use_vlln", "yes", "action_head_cfg.use_vlln: bad value 'yes'"),
    ("action_head_cfg.hidden_size", 65, "output_dim: 64 differs from hidden_size, 65"),
    ("action_head_cfg.input_embedding_dim", 98, "heads times head_dim: 96 differs from input_embedding_dim, 98"),
    ("action_horizon", 15, "action_horizon: unsupported value 15"),
    ("backbone_cfg", None, "backbone_cfg: None is not an object"),
]


def refused(checkpoint: Any) -> str:
    checkpoint.write()
    with pytest.raises(CheckpointError) as e:
        load_config(checkpoint.folder)
    return str(e.value)


@pytest.mark.parametrize(("key", "value", "words"), REFUSED)
def test_refused_values_name_file_key_and_value(checkpoint: Any, key: str, value: Any, words: str) -> None:
    put(checkpoint.config, key, value)
    told = refused(checkpoint)
    assert words in told
    assert "config.json" in told


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("use_pixel_shuffle", True, "use_pixel_shuffle: unsupported value true"),
        ("select_layer", -2, "select_layer: unsupported value -2"),
        ("text_config.attention_bias", True, "text_config.attention_bias: unsupported value true"),
        ("vision_config.hidden_act", "gelu", 'vision_config.hidden_act: unsupported value "gelu"'),
        ("image_token_index", 5000, "image_token_index: 5000 lies outside"),
        ("force_image_size", 448, "force_image_size: unsupported value 448"),
        ("text_config.num_key_value_heads", 3, "num_attention_heads: 4 is no multiple"),
    ],
)
def test_refused_eagle_values(checkpoint: Any, key: str, value: Any, words: str) -> None:
    put(checkpoint.eagle_config, key, value)
    told = refused(checkpoint)
    assert words in told
    assert "eagle_config.json" in told


def test_absent_positional_embeddings_mean_an_unsupported_default(checkpoint: Any) -> None:
    drop(checkpoint.config, "action_head_cfg.diffusion_model_cfg.positional_embeddings")
    checkpoint.write()
    with pytest.raises(CheckpointError, match=r'unsupported value "sinusoidal" \(what an absent key means\)'):
        load_config(checkpoint.folder)


@pytest.mark.parametrize("key", ["action_head_cfg.max_state_dim", "action_head_cfg.num_inference_timesteps"])
def test_required_keys(checkpoint: Any, key: str) -> None:
    drop(checkpoint.config, key)
    checkpoint.write()
    with pytest.raises(CheckpointError, match=f"{key}: is missing"):
        load_config(checkpoint.folder)


def test_files_that_are_absent_or_no_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{'a': 1}")
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read as JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="holds a list, not an object"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested deeper"),
        ("[" * 100_000, "nested deeper"),
        ('{"model_type": "gr00t_n1_5", "model_type": "gr00t_n1"}', "key 'model_type' has two values"),
        ('{"a": ' + "9" * 10_000 + "}", "cannot be read as JSON"),
    ],
)
def test_json_that_python_would_choke_on_or_misread(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("action_head_cfg.diffusion_model_cfg.num_layers", 1_000_000),
        ("action_head_cfg.vl_self_attention_cfg.num_layers", 1_000_000),
        ("action_head_cfg.hidden_size", 10**9),
        ("action_head_cfg.action_horizon", 10**9),
        ("action_head_cfg.max_num_embodiments", 10**9),
        ("action_head_cfg.num_inference_timesteps", 10**9),
        ("backbone_cfg.project_to_dim", 10**9),
        ("backbone_cfg.select_layer", 10**9),
    ],
)
def test_numbers_without_end_are_refused_before_anything_is_built(checkpoint: Any, key: str, value: int) -> None:
    put(checkpoint.config, key, value)
    checkpoint.write()
    with pytest.raises(CheckpointError, match=rf"{key}: {value} is far beyond any"):
        load_config(checkpoint.folder)


def test_more_layers_than_tensors(checkpoint: Any) -> None:
    put(checkpoint.config, "action_head_cfg.diffusion_model_cfg.num_layers", 900)
    with pytest.raises(CheckpointError, match=r"906 layers.*only \d+ tensors"):
        load_model(checkpoint.write())


def test_unknown_synthetic_name() -> None:
    with pytest.raises(CheckpointError, match="did you mean synthetic:full"):
        load_config("synthetic:ful")
