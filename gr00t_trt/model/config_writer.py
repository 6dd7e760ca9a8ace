"""A geometry as the two configuration files of a checkpoint: what `config_files` reads, and the original's code too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .n1_5.config import ActionHeadConfig, EagleConfig, Gr00tConfig, TransformerConfig

_NOISE = {"noise_beta_alpha": 1.5, "noise_beta_beta": 1.0, "noise_s": 0.999}
_DROPOUT = {"dropout": 0.2, "final_dropout": True}


def config_file(config: Gr00tConfig) -> dict[str, Any]:
    """The object of ``config.json``, in the original's words."""
    head, backbone = config.action_head, config.backbone
    return {
        "architectures": ["GR00T_N1_5"],
        "model_type": "gr00t_n1_5",
        "action_dim": head.action_dim,
        "action_horizon": head.action_horizon,
        "hidden_size": head.backbone_embedding_dim,
        "compute_dtype": "bfloat16",
        "model_dtype": "float32",
        "torch_dtype": "float32",
        "backbone_cfg": {
            "eagle_path": "NVEagle/eagle_er-qwen3_1_7B-Siglip2_400M_stage1_5_128gpu_er_v7_1mlp_nops",
            "load_bf16": False,
            "project_to_dim": backbone.project_to_dim,
            "reproject_vision": False,
            "select_layer": backbone.select_layer,
            "tune_llm": False,
            "tune_visual": False,
            "use_flash_attention": True,
        },
        "action_head_cfg": _action_head(head),
    }


def _action_head(head: ActionHeadConfig) -> Mapping[str, object]:
    plain = {key: value for key, value in asdict(head).items() if not isinstance(value, dict)}
    diffusion = head.diffusion
    return {
        **plain,
        **_NOISE,
        "max_action_dim": head.action_dim,
        "model_dtype": "float32",
        "tune_diffusion_model": True,
        "tune_projector": True,
        "diffusion_model_cfg": {
            **_transformer(diffusion),
            "cross_attention_dim": diffusion.cross_attention_dim,
            "interleave_self_attention": diffusion.interleave_self_attention,
            "norm_eps": diffusion.norm_eps,
            "norm_type": "ada_norm",
            "output_dim": diffusion.output_dim,
        },
        # An absent section is what a model without these layers has.
        **({"vl_self_attention_cfg": _transformer(head.vl_self_attention)} if head.use_vlln else {}),
    }


def _transformer(config: TransformerConfig) -> Mapping[str, object]:
    return {
        **_DROPOUT,
        "attention_bias": config.attention_bias,
        "attention_head_dim": config.attention_head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_layers": config.num_layers,
        "positional_embeddings": None,
    }


def eagle_file(eagle: EagleConfig) -> dict[str, Any]:
    """The object of ``eagle_config.json``, the vision-language model's."""
    vision, text = asdict(eagle.vision), asdict(eagle.text)
    return {
        "architectures": ["Eagle2_5_VLForConditionalGeneration"],
        "model_type": "eagle_2_5_vl",
        "force_image_size": eagle.vision.image_size,
        "image_token_index": eagle.image_token_index,
        "mlp_connector_layers": 1,
        "select_layer": -1,
        "use_pixel_shuffle": False,
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "num_channels": 3,
            **vision,
        },
        "text_config": {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": False,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            **text,
        },
    }
