"""The model's geometry as frozen dataclasses. Their defaults are the parts that the public checkpoint leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

IMAGE_TOKEN = "<IMG_CONTEXT>"
PUBLIC_SPECIAL_TOKENS: Mapping[str, int] = {
    IMAGE_TOKEN: 151669,
    "<img>": 151670,
    "</img>": 151671,
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
}
"""Ids of the public checkpoint's tokenizer; `<|endoftext|>` pads, on the left."""


@dataclass(frozen=True)
class VisionConfig:
    """SigLIP tower. Defaults: the 400M tower of GR00T N1.5."""

    hidden_size: int = 1152
    num_hidden_layers: int = 27
    num_attention_heads: int = 16
    intermediate_size: int = 4304
    patch_size: int = 14
    image_size: int = 224
    layer_norm_eps: float = 1e-6

    @property
    def tokens_per_image(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True)
class TextConfig:
    """Qwen3 language model. Defaults: Qwen3-1.7B with GR00T's vocabulary.

    Attributes:
        num_hidden_layers: Layers of the parent model; only the first `select_layer` exist here.
    """

    hidden_size: int = 2048
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 6144
    vocab_size: int = 151680
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-6


@dataclass(frozen=True)
class EagleConfig:
    """The vision-language model, and the ids of the tokens that a prompt is framed with."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    image_token_index: int = PUBLIC_SPECIAL_TOKENS[IMAGE_TOKEN]
    special_tokens: dict[str, int] = field(default_factory=lambda: dict(PUBLIC_SPECIAL_TOKENS))


@dataclass(frozen=True)
class BackboneConfig:
    """How the vision-language model is cut.

    Attributes:
        select_layer: Number of language layers kept.
        project_to_dim: Width of a final linear layer; None leaves the language width.
    """

    select_layer: int = 12
    project_to_dim: int | None = None


@dataclass(frozen=True)
class TransformerConfig:
    """What the DiT and the vision-language self-attention have in common."""

    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    attention_bias: bool = True
    norm_eps: float = 1e-5

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """The diffusion transformer.

    Attributes:
        output_dim: Width of its output.
        cross_attention_dim: Width of the vision-language features it attends to.
        interleave_self_attention: Odd blocks attend to the tokens themselves instead of the features.
    """

    output_dim: int = 26
    cross_attention_dim: int = 2048
    interleave_self_attention: bool = False


@dataclass(frozen=True)
class ActionHeadConfig:
    """The flow-matching action head."""

    diffusion: DiTConfig
    vl_self_attention: TransformerConfig
    action_dim: int
    action_horizon: int
    max_state_dim: int
    num_inference_timesteps: int
    backbone_embedding_dim: int = 1536
    input_embedding_dim: int = 1536
    hidden_size: int = 1024
    max_seq_len: int = 1024
    max_num_embodiments: int = 32
    num_target_vision_tokens: int = 32
    num_timestep_buckets: int = 1000
    add_pos_embed: bool = True
    use_vlln: bool = True


@dataclass(frozen=True)
class Gr00tConfig:
    """Geometry of a whole GR00T N1.5."""

    backbone: BackboneConfig
    action_head: ActionHeadConfig
    eagle: EagleConfig = field(default_factory=EagleConfig)

    @property
    def special_tokens(self) -> dict[str, int]:
        """Token -> id, as far as known: all six for the public and synthetic models, else only `<IMG_CONTEXT>`."""
        return self.eagle.special_tokens

    @property
    def image_token_index(self) -> int:
        return self.eagle.image_token_index

    @property
    def tokens_per_image(self) -> int:
        """Image tokens that one image takes in the prompt: 256 for 224 x 224."""
        return self.eagle.vision.tokens_per_image

    @property
    def image_size(self) -> int:
        """Side of the square images, in pixels."""
        return self.eagle.vision.image_size

    @property
    def vocab_size(self) -> int:
        return self.eagle.text.vocab_size
