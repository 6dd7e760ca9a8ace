"""The checks on model inputs, made before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...errors import ObservationError
from ..protocol import Inputs
from .config import Gr00tConfig

PIXELS, IDS, MASK = "eagle_pixel_values", "eagle_input_ids", "eagle_attention_mask"
STATE, EMBODIMENT = "state", "embodiment_id"
_FLOATING = (PIXELS, STATE)
LOOKED_UP = (IDS, MASK, EMBODIMENT)
"""What the restructured model looks up on the host; on a GPU it would have to be worked out in every call."""


def example_inputs(config: Gr00tConfig, words: int = 40) -> dict[str, Tensor]:
    """Model inputs of one sample with one image, in host memory, always the same: noise for pixels, state and words.

    Args:
        words: Tokens of the prompt beside those of the image.
    Returns: What `check_inputs` asks for, and ``eagle_image_sizes`` [1, 2], which the original asks for besides.
    """
    generator = torch.Generator().manual_seed(0)
    size, image = config.image_size, config.image_token_index
    text = torch.randint(0, config.vocab_size - 1, (1, words), generator=generator)
    text += (text >= image).long()  # every id but the image token's
    ids = torch.cat((text[:, :8], torch.full((1, config.tokens_per_image), image), text[:, 8:]), dim=1)
    return {
        PIXELS: torch.rand(1, 3, size, size, generator=generator) * 2 - 1,
        IDS: ids,
        MASK: torch.ones_like(ids),
        "eagle_image_sizes": torch.tensor([[size, size]]),
        STATE: torch.rand(1, 1, config.action_head.max_state_dim, generator=generator) * 2 - 1,
        EMBODIMENT: torch.tensor([min(24, config.action_head.max_num_embodiments - 1)]),
    }


def check_inputs(inputs: Inputs, config: Gr00tConfig) -> dict[str, Tensor]:
    """The five tensors that the model reads, checked.

    Shapes and dtypes are checked always, values only on tensors in host memory.
    Raises: ObservationError naming key, value and fix.
    """
    tensors = {key: _tensor(inputs, key) for key in (PIXELS, IDS, MASK, STATE, EMBODIMENT)}
    _check_shapes(tensors, config)
    if tensors[IDS].device.type == "cpu":
        _check_ids(tensors[IDS], tensors[PIXELS].shape[0], config)
    if tensors[EMBODIMENT].device.type == "cpu":
        _check_embodiments(tensors[EMBODIMENT], config)
    for key in _FLOATING:
        if tensors[key].device.type == "cpu":
            _check_finite(tensors[key], key)
    return tensors


def _tensor(inputs: Inputs, key: str) -> Tensor:
    if key not in inputs:
        raise ObservationError(f"model inputs: no {key}", known=f"given: {', '.join(sorted(inputs)) or 'nothing'}")
    value = inputs[key]
    if not isinstance(value, Tensor):
        raise ObservationError(f"{key}: a {type(value).__name__}, not a tensor", fix="use torch.as_tensor")
    if value.is_complex() or value.is_floating_point() != (key in _FLOATING):
        raise ObservationError(
            f"{key}: dtype {str(value.dtype).removeprefix('torch.')}",
            known="a floating dtype" if key in _FLOATING else "int64",
        )
    return value


def _check_shapes(tensors: Mapping[str, Tensor], config: Gr00tConfig) -> None:
    size, width = config.image_size, config.action_head.max_state_dim
    expected: dict[str, tuple[int | str, ...]] = {
        PIXELS: ("images", 3, size, size),
        IDS: ("batch", "length"),
        MASK: ("batch", "length"),
        STATE: ("batch", 1, width),
        EMBODIMENT: ("batch",),
    }
    sizes: dict[str, tuple[int, str]] = {}
    for key, pattern in expected.items():
        shape = tuple(tensors[key].shape)
        fits = len(shape) == len(pattern) and all(
            s == p if isinstance(p, int) else s >= 1 for s, p in zip(shape, pattern, strict=False)
        )
        if not fits:
            fix = f"resize images to {size} x {size}" if key == PIXELS and len(shape) == 4 else None
            fix = f"pad the state with zeros to {width}" if key == STATE and len(shape) == 3 else fix
            raise ObservationError(f"{key}: shape {shape}", known=f"[{', '.join(map(str, pattern))}]", fix=fix)
        for name, s in zip(pattern, shape, strict=True):
            if isinstance(name, str):
                first, where = sizes.setdefault(name, (s, key))
                if s != first:
                    raise ObservationError(
                        f"{key}: {name} {s}, but {where} has {name} {first}", fix=f"give both the same {name}"
                    )


def _check_ids(ids: Tensor, images: int, config: Gr00tConfig) -> None:
    bad = ids[(ids < 0) | (ids >= config.vocab_size)]
    if bad.numel():
        raise ObservationError(
            f"{IDS}: token id {int(bad[0])} is outside the vocabulary",
            known=f"0 to {config.vocab_size - 1}",
            fix="use the tokenizer that belongs to this model",
        )
    per_image = config.tokens_per_image
    counts = (ids == config.image_token_index).sum(1).tolist()
    fix = f"write {per_image} tokens {config.image_token_index} into the prompt for each image"
    for sample, count in enumerate(counts):
        if count % per_image:
            raise ObservationError(
                f"{IDS}: sample {sample} has {count} image tokens", known=f"a multiple of {per_image}", fix=fix
            )
    if sum(counts) != images * per_image:
        raise ObservationError(
            f"{IDS}: {sum(counts)} image tokens in all, but {PIXELS} holds {images} image(s)",
            known=f"{images} x {per_image} = {images * per_image}",
            fix=fix,
        )


def _check_embodiments(embodiments: Tensor, config: Gr00tConfig) -> None:
    last = config.action_head.max_num_embodiments - 1
    for sample, index in enumerate(embodiments.tolist()):
        if not 0 <= index <= last:
            raise ObservationError(
                f"{EMBODIMENT}: sample {sample} has {index}",
                known=f"0 to {last}, such as 24 for gr1, 17 for oxe_droid, 26 for agibot_genie1, 31 for new_embodiment",
            )


def _check_finite(values: Tensor, key: str) -> None:
    # One reduction in the usual case; the position is searched only for the message.
    if not torch.isfinite(values.sum(dtype=torch.float64)):
        place = (~torch.isfinite(values)).nonzero()
        if len(place):
            at = tuple(place[0].tolist())
            raise ObservationError(
                f"{key}: {float(values[at])} at {list(at)}", known="finite numbers", fix=f"check where {key} comes from"
            )
