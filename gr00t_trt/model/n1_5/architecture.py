"""GR00T N1.5 as the rest of the package knows it. Never imports torch."""

from __future__ import annotations

from ..architecture import BATCH, IMAGES, LENGTH, Architecture

SUBMODULES = (
    "vision_model",
    "language_model",
    "vl_components",
    "state_encoder",
    "action_encoder",
    "dit_model",
    "action_decoder",
)
BACKBONE = SUBMODULES[:2]
STEP = ("action_encoder", "dit_model", "action_decoder")
_STEP_BY_WEIGHT = ("dit_model", "action_encoder", "action_decoder")

N1_5 = Architecture(
    name="n1_5",
    title="GR00T N1.5",
    submodules=SUBMODULES,
    groups={"eagle_backbone": BACKBONE, "action_head": SUBMODULES[2:], "all": SUBMODULES},
    joint={"eagle_backbone": BACKBONE},
    step=STEP,
    loops=("submodules", "denoise_step", "denoise_loop"),
    arguments={
        "vision_model": {"pixel_values": {0: IMAGES}},
        "language_model": {"inputs_embeds": {0: BATCH, 1: LENGTH}, "attention_mask": {0: BATCH, 1: LENGTH}},
        "vl_components": {"backbone_features": {0: BATCH, 1: LENGTH}},
        "state_encoder": {"state": {0: BATCH}, "embodiment_id": {0: BATCH}},
        "action_encoder": {"actions": {0: BATCH}, "timestep": {0: BATCH}, "embodiment_id": {0: BATCH}},
        "dit_model": {
            "hidden_states": {0: BATCH},
            "encoder_hidden_states": {0: BATCH, 1: LENGTH},
            "timestep": {0: BATCH},
        },
        "action_decoder": {"model_output": {0: BATCH}, "embodiment_id": {0: BATCH}},
        # Vision tower, connector, embedding and LLM in one graph.
        "eagle_backbone": {
            "pixel_values": {0: IMAGES},
            "input_ids": {0: BATCH, 1: LENGTH},
            "attention_mask": {0: BATCH, 1: LENGTH},
        },
    },
    covers={
        "language_model_padded": ("language_model",),
        "denoise_step": _STEP_BY_WEIGHT,
        "denoise_loop": _STEP_BY_WEIGHT,
    },
    # The keys and values at its end are made by weights of the DiT.
    borrows={"vl_components": ("kv_cache", ("dit_model",))},
    attention=("vision_model", "language_model", "vl_components", "dit_model"),
    image_tokens=256,
    longest_prompt=40960,
    # Three more steps of the same kind are missing because the plain model already takes them: the state token is
    # computed once per observation, all views go through the vision tower in one call, and neither pooling head nor
    # vocabulary head exists.
    optimizations={
        "constant_folding": "what follows from the timestep or the embodiment alone is computed once: modulation "
        "tables, the embodiment's weights out of the 32 slots, the action encoder's first two layers as one, and the "
        "transformer's last with the decoder's first",
        "kv_cache": "keys and values of the cross-attention blocks are computed once per observation",
        "token_pruning": "past the last self-attention, only the action tokens are computed",
        "fused_projections": "query, key and value are one matrix product, and so are gate and up; patches become "
        "vectors by one product instead of a convolution",
        "prompt_cache": "prompt embeddings, image positions, rotations and masks are kept per prompt; one without "
        "padding uses causal attention without a mask tensor",
    },
    renamed={
        "embodiment_weights": "constant_folding",
        "future_tokens": "constant_folding",
        "timestep_tables": "constant_folding",
        "action_encoder_fold": "constant_folding",
        "cross_attention_kv": "kv_cache",
        "action_rows": "token_pruning",
        "patch_product": "fused_projections",
        "unpadded_mask": "prompt_cache",
    },
    replay_needs="prompt_cache",
    plain_only={
        "joint_backbone": "the restructured model keeps its two towers apart",
        "build.cpu_offload": "stages of the restructured model share weights, so that none can be moved away",
        "build.trt_engine_path": "ready-made engines are cut as the plain model is",
    },
    restructure="gr00t_trt.model.n1_5.fast:restructure",
    kernels="gr00t_trt.model.n1_5.fast.triton_stages:with_kernels",
    colors={
        "preprocess": "#b9a3e3",
        "vision_model": "#56b4e9",
        "language_model": "#0072b2",
        "language_model_padded": "#0072b2",
        "eagle_backbone, rest": "#7aa6c2",
        "vl_components": "#009e73",
        "context": "#e0b000",
        "state_encoder": "#cc79a7",
        "action_encoder": "#f0a35e",
        "dit_model": "#d55e00",
        "denoise_step": "#d55e00",
        "denoise_loop": "#d55e00",
        "action_decoder": "#b08968",
        "postprocess": "#7f6bb3",
        "between stages": "#8c8c8c",
    },
)
