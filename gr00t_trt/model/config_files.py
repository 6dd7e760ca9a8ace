"""A checkpoint folder's configuration files as a geometry.

`config.json` describes the backbone's cut and the action head. The vision-language sub-configuration is not part of
the public checkpoint and is therefore built in; an `eagle_config.json` beside `config.json` replaces it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from .config_section import Section
from .n1_5 import config as geometry

MOST_LAYERS, MOST_WORDS, MOST_POSITIONS = 1000, 10_000_000, 1_000_000
"""Bounds that no GR00T N1.5 comes near; a number beyond them would keep a program busy for hours."""


def read_config(folder: Path) -> geometry.Gr00tConfig:
    """Geometry of the checkpoint in `folder`.

    Raises: CheckpointError naming file, key and value for whatever is missing, malformed, unsupported or contradictory.
    """
    eagle_file = folder / "eagle_config.json"
    return build_config(Section.read(folder / "config.json"), Section.read(eagle_file) if eagle_file.exists() else None)


def build_config(top: Section, eagle: Section | None) -> geometry.Gr00tConfig:
    """Geometry from the two objects; without the second one, the released vision-language model's.

    Raises: CheckpointError as `read_config`.
    """
    top.only("model_type", ("gr00t_n1_5",), default="gr00t_n1_5")
    config = geometry.Gr00tConfig(
        backbone=_backbone(top.section("backbone_cfg")),
        action_head=_action_head(top.section("action_head_cfg")),
        eagle=geometry.EagleConfig() if eagle is None else _eagle(eagle),
    )
    _check_agreement(config, top)
    return config


def _backbone(cfg: Section) -> geometry.BackboneConfig:
    cfg.only("reproject_vision", (False,), default=False)
    return geometry.BackboneConfig(
        select_layer=cfg.integer("select_layer", -1, minimum=None),
        project_to_dim=cfg.optional_integer("project_to_dim", 1536),
    )


def _transformer(cfg: Section) -> geometry.TransformerConfig:
    cfg.only("positional_embeddings", (None,), default="sinusoidal")
    cfg.only("activation_fn", ("gelu-approximate",), default="gelu-approximate")
    return geometry.TransformerConfig(
        num_attention_heads=cfg.integer("num_attention_heads", 8),
        attention_head_dim=cfg.integer("attention_head_dim", 64),
        num_layers=cfg.integer("num_layers", 12, maximum=MOST_LAYERS),
        attention_bias=cfg.flag("attention_bias", True),
    )


def _action_head(cfg: Section) -> geometry.ActionHeadConfig:
    width = cfg.integer("backbone_embedding_dim", 1536)
    dit = cfg.section("diffusion_model_cfg")
    dit.only("norm_type", ("ada_norm",), default="ada_norm")
    dit.only("norm_elementwise_affine", (False,), default=False)
    shared = replace(_transformer(dit), norm_eps=dit.number("norm_eps", 1e-5))
    diffusion = geometry.DiTConfig(
        **vars(shared),
        output_dim=dit.integer("output_dim", 26),
        cross_attention_dim=dit.optional_integer("cross_attention_dim", None) or shared.width,
        interleave_self_attention=dit.flag("interleave_self_attention", False),
    )
    use_vlln = cfg.flag("use_vlln", True)
    vl = cfg.section("vl_self_attention_cfg", optional=not use_vlln)
    return geometry.ActionHeadConfig(
        diffusion=diffusion,
        vl_self_attention=_transformer(vl) if use_vlln else geometry.TransformerConfig(1, width, 0),
        **cfg.integers("action_dim action_horizon max_state_dim num_inference_timesteps"),
        backbone_embedding_dim=width,
        input_embedding_dim=cfg.integer("input_embedding_dim", 1536),
        hidden_size=cfg.integer("hidden_size", 1024),
        max_seq_len=cfg.integer("max_seq_len", 1024, maximum=MOST_POSITIONS),
        max_num_embodiments=cfg.integer("max_num_embodiments", 32),
        num_target_vision_tokens=cfg.integer("num_target_vision_tokens", 32),
        num_timestep_buckets=cfg.integer("num_timestep_buckets", 1000, maximum=MOST_POSITIONS),
        add_pos_embed=cfg.flag("add_pos_embed", True),
        use_vlln=use_vlln,
    )


def _eagle(cfg: Section) -> geometry.EagleConfig:
    cfg.only("use_pixel_shuffle", (False,), default=False)
    cfg.only("select_layer", (-1,), default=-1)
    cfg.only("mlp_connector_layers", (1,), default=1)
    vision, text = cfg.section("vision_config"), cfg.section("text_config")
    vision.only("model_type", ("siglip_vision_model",), default="siglip_vision_model")
    vision.only("hidden_act", ("gelu_pytorch_tanh",), default="gelu_pytorch_tanh")
    vision.only("num_channels", (3,), default=3)
    text.only("model_type", ("qwen3",), default="qwen3")
    text.only("hidden_act", ("silu",), default="silu")
    text.only("attention_bias", (False,), default=False)
    text.only("use_sliding_window", (False,), default=False)
    text.only("rope_scaling", (None,), default=None)
    rope = text.section("rope_parameters", optional=True)
    rope.only("rope_type", ("default",), default="default")
    eagle = geometry.EagleConfig(
        vision=geometry.VisionConfig(
            **vision.integers("num_hidden_layers", maximum=MOST_LAYERS),
            **vision.integers("hidden_size num_attention_heads intermediate_size"),
            **vision.integers("patch_size image_size"),
            layer_norm_eps=vision.number("layer_norm_eps", 1e-6),
        ),
        text=geometry.TextConfig(
            **text.integers("num_hidden_layers", maximum=MOST_LAYERS),
            **text.integers("hidden_size num_attention_heads num_key_value_heads intermediate_size"),
            head_dim=text.integer("head_dim", 128),
            vocab_size=text.integer("vocab_size", maximum=MOST_WORDS),
            rope_theta=text.number("rope_theta", rope.number("rope_theta", 1e6)),
            rms_norm_eps=text.number("rms_norm_eps", 1e-6),
        ),
        image_token_index=cfg.integer("image_token_index", minimum=0, maximum=MOST_WORDS),
    )
    cfg.only("force_image_size", (eagle.vision.image_size,), default=eagle.vision.image_size)
    public = eagle.image_token_index == geometry.PUBLIC_SPECIAL_TOKENS[geometry.IMAGE_TOKEN] and (
        eagle.text.vocab_size == geometry.TextConfig.vocab_size
    )
    tokens = dict(geometry.PUBLIC_SPECIAL_TOKENS) if public else {geometry.IMAGE_TOKEN: eagle.image_token_index}
    _check_eagle(eagle, cfg)
    return geometry.EagleConfig(eagle.vision, eagle.text, eagle.image_token_index, tokens)


def _check_eagle(eagle: geometry.EagleConfig, cfg: Section) -> None:
    vision, text = eagle.vision, eagle.text
    heads, keys = vision.num_attention_heads, text.num_key_value_heads
    multiples = (
        ("vision_config.hidden_size", vision.hidden_size, "num_attention_heads", heads),
        ("text_config.num_attention_heads", text.num_attention_heads, "num_key_value_heads", keys),
    )
    for key, value, other, factor in multiples:
        cfg.check(value % factor == 0, f"{key}: {value} is no multiple of {other} {factor}")
    cfg.check(text.head_dim % 2 == 0, f"text_config.head_dim: {text.head_dim} is odd; rotary embedding needs pairs")
    cfg.check(
        eagle.image_token_index < text.vocab_size,
        f"image_token_index: {eagle.image_token_index} lies outside text_config.vocab_size {text.vocab_size}",
    )


def _check_agreement(config: geometry.Gr00tConfig, top: Section) -> None:
    """Values that must be equal, because one module's output is another's input."""
    head, backbone, text = config.action_head, config.backbone, config.eagle.text
    if not 1 <= backbone.select_layer <= text.num_hidden_layers:
        raise CheckpointError(
            f"{top.file}: backbone_cfg.select_layer: {backbone.select_layer} is outside the language model",
            known=f"1 to {text.num_hidden_layers}, the layers of the language model",
        )
    for key, value in (("action_dim", head.action_dim), ("action_horizon", head.action_horizon)):
        top.only(key, (value,), default=value, why=f"action_head_cfg.{key}")
    width = ("backbone_embedding_dim", head.backbone_embedding_dim)
    features = backbone.project_to_dim or text.hidden_size
    diffusion, dit = head.diffusion, "diffusion_model_cfg"
    pairs: list[tuple[str, int, str, int]] = [
        (*width, "the backbone's width (project_to_dim, or the language model's hidden_size)", features),
        (f"{dit}.cross_attention_dim", diffusion.cross_attention_dim, *width),
        (f"{dit}: heads times head_dim", diffusion.width, "input_embedding_dim", head.input_embedding_dim),
        (f"{dit}.output_dim", diffusion.output_dim, "hidden_size", head.hidden_size),
        ("vl_self_attention_cfg: heads times head_dim", head.vl_self_attention.width, *width),
    ]
    for key, value, other, expected in pairs:
        top.check(value == expected, f"action_head_cfg.{key}: {value} differs from {other}, {expected}")
    top.check(
        head.input_embedding_dim % 2 == 0, f"action_head_cfg.input_embedding_dim: {head.input_embedding_dim} is odd"
    )
    limits = (
        ("action_horizon", head.action_horizon, "max_seq_len", head.max_seq_len),
        ("num_inference_timesteps", head.num_inference_timesteps, "num_timestep_buckets", head.num_timestep_buckets),
    )
    for key, value, other, most in limits:
        top.check(value <= most, f"action_head_cfg.{key}: {value} exceeds {other} {most}")
