from __future__ import annotations

import numpy as np
import pytest
import torch

from gr00t_trt.data import SPECIAL_TOKENS, Prompter, bracketed, synthetic_tokenizer
from gr00t_trt.data.prompt import Segment, _resize, prompt_segments, split_tiles, tile_grid
from gr00t_trt.errors import ObservationError, TokenizerError

TOKENIZER = synthetic_tokenizer()
PEAR = "pick the pear from the counter and place it in the plate"
IM_START, IM_END, PAD = 151644, 151645, 151643
CONTEXT, IMG, END_IMG = 151669, 151670, 151671


@pytest.fixture(scope="module")
def prompter():
    return Prompter(TOKENIZER)


def images(batch: int, views: int = 1, size: int = 224) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (batch, 1, views, size, size, 3), dtype=np.uint8)


def render(segments: list[Segment]) -> str:
    """The prompt as one string, with special tokens spelled out."""
    return "".join(s if isinstance(s, str) else s[0] * s[1] for s in segments)


def test_rendered_prompt():
    text = render(prompt_segments("TEXT", [1, 2], tokens_per_image=2))
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<image 1><img><IMG_CONTEXT><IMG_CONTEXT></img>"
        "<image 2><img><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT><IMG_CONTEXT></img>"
        "TEXT<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(("text", "words"), [(PEAR, 12), ("Perform the default behavior.", 5)])
def test_length_is_19_and_263_per_image_and_the_text(prompter, views, text, words):
    out = prompter(images(1, views), [text])
    assert out["eagle_input_ids"].shape == (1, 19 + 263 * views + words)
    assert (out["eagle_input_ids"] == CONTEXT).sum() == 256 * views


def test_order_of_special_tokens(prompter):
    ids = prompter(images(1, 2), [PEAR])["eagle_input_ids"][0].tolist()
    special = [i for i in ids if i in SPECIAL_TOKENS.values() and i != CONTEXT]
    assert special == [IM_START, IM_END, IM_START, IMG, END_IMG, IMG, END_IMG, IM_END, IM_START]
    start = ids.index(IMG)
    assert ids[start + 1 : start + 257] == [CONTEXT] * 256
    assert ids[start + 257] == END_IMG


def test_ids_are_those_of_the_whole_string(prompter):
    """Encoding piece by piece gives what the tokenizer gives for the rendered prompt."""
    whole = TOKENIZER.encode(render(prompt_segments(PEAR, [1], 256)))
    assert prompter(images(1), [PEAR])["eagle_input_ids"][0].tolist() == whole


def test_shorter_prompts_are_padded_on_the_left(prompter):
    out = prompter(images(2), [PEAR, "go"])
    alone = prompter(images(1), ["go"])["eagle_input_ids"][0]
    missing = out["eagle_input_ids"].shape[1] - len(alone)
    assert missing > 0
    assert out["eagle_input_ids"][1, :missing].tolist() == [PAD] * missing
    torch.testing.assert_close(out["eagle_input_ids"][1, missing:], alone)
    assert out["eagle_attention_mask"][1].tolist() == [0] * missing + [1] * len(alone)
    assert out["eagle_attention_mask"][0].all()
    assert {out[k].dtype for k in ("eagle_input_ids", "eagle_attention_mask", "eagle_image_sizes")} == {torch.int64}


def test_pixels_are_scaled_and_sample_major(prompter):
    frames = images(2, 3)
    out = prompter(frames, ["a", "b"])
    pixels = out["eagle_pixel_values"]
    assert pixels.shape == (6, 3, 224, 224)
    assert pixels.dtype == torch.float32
    expected = (torch.from_numpy(frames[1, 0, 0]).permute(2, 0, 1).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(pixels[3], expected, rtol=0, atol=0)
    assert pixels.min() == -1
    assert pixels.max() == 1
    assert out["eagle_image_sizes"].tolist() == [[224, 224]] * 6


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((224, 224), (1, 1)), ((256, 256), (1, 1)), ((289, 289), (1, 1)), ((290, 290), (2, 2)),
        ((640, 480), (4, 3)), ((480, 640), (3, 4)), ((2000, 20), (12, 1)),
    ],
)  # fmt: skip
def test_grid_of_tiles(size, grid):
    assert tile_grid(*size, tile=224) == grid


def test_large_images_become_tiles_and_a_thumbnail(prompter):
    frames = np.zeros((1, 1, 1, 480, 640, 3), np.uint8)
    frames[..., :240, :, :] = 255
    out = prompter(frames, ["go"])
    assert out["eagle_pixel_values"].shape[0] == 13
    assert (out["eagle_input_ids"] == CONTEXT).sum() == 3328
    assert out["eagle_image_sizes"].tolist() == [[480, 640]]
    means = out["eagle_pixel_values"].mean(dim=(1, 2, 3))
    assert (means[:4] == 1).all(), "tiles go row by row: the first row is white"
    assert (means[8:12] == -1).all()
    assert abs(means[12]) < 0.02, "the thumbnail shows all of it"


def test_images_of_exactly_one_tile_are_not_resampled():
    image = images(1)[0, 0, 0]
    assert np.shares_memory(split_tiles(image, 224), image)


def test_lists_of_images_of_different_sizes(prompter):
    small, large = np.zeros((224, 224, 3), np.uint8), np.zeros((480, 640, 3), np.uint8)
    out = prompter([[small], [small, large]], ["a", "b"])
    assert out["eagle_pixel_values"].shape[0] == 1 + 1 + 13
    assert out["eagle_image_sizes"].tolist() == [[224, 224], [224, 224], [480, 640]]


def test_other_geometries():
    special = {name: 1000 + i for i, name in enumerate(SPECIAL_TOKENS)}
    prompter = Prompter(synthetic_tokenizer(special, 1024), special, image_size=28, tokens_per_image=4)
    out = prompter(images(1, 1, 28), [PEAR])
    assert out["eagle_input_ids"].shape == (1, 19 + 7 + 4 + 12)
    assert int(out["eagle_input_ids"].max()) < 1024


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("the text", "['the text']"),
        ("the robot's cup", '["the robot\'s cup"]'),
        ("a\nb", r"['a\nb']"),
        ("word " * 40, f"['{'word ' * 40}']"),
    ],
)
def test_bracketed_text(prompter, text, rendered):
    assert bracketed(text) == rendered
    ids = prompter(images(1), [text], bracketed_text=True)["eagle_input_ids"]
    torch.testing.assert_close(ids, prompter(images(1), [rendered])["eagle_input_ids"])


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_text_that_spells_a_special_token_is_refused(prompter, token):
    with pytest.raises(ObservationError) as caught:
        prompter(images(1), [f"pick {token} up"])
    assert f"special token {token!r}" in str(caught.value)
    assert f"remove {token}" in str(caught.value)


def test_placeholders_and_fragments_are_ordinary_text(prompter):
    ids = prompter(images(1), ["<image-1> <image 1> <|im_ im_end|>"])["eagle_input_ids"][0].tolist()
    assert ids.count(IMG) == 1
    assert ids.count(IM_END) == 2


def test_hostile_input(prompter):
    with pytest.raises(ObservationError, match="not valid Unicode"):
        prompter(images(1), ["\ud800"])
    with pytest.raises(ObservationError, match="instruction is int"):
        prompter(images(1), [3])
    with pytest.raises(ObservationError, match="2 instructions for 1 samples"):
        prompter(images(1), ["a", "b"])
    with pytest.raises(ObservationError, match="image is float64 of shape"):
        prompter(np.zeros((1, 1, 1, 4, 4, 3)), ["a"])
    with pytest.raises(ObservationError, match="without images"):
        prompter([[]], ["a"])
    with pytest.raises(TokenizerError, match="special token <img> has no id"):
        Prompter(TOKENIZER, {k: v for k, v in SPECIAL_TOKENS.items() if k != "<img>"})


def test_the_same_instruction_is_tokenized_once_and_the_cache_is_bounded(monkeypatch):
    tokenizer = synthetic_tokenizer()
    calls = []
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text: calls.append(text) or encode(text))
    prompter = Prompter(tokenizer)
    small = images(1)
    first = prompter(small, [PEAR])["eagle_input_ids"].clone()
    count = len(calls)
    torch.testing.assert_close(prompter(small, [PEAR])["eagle_input_ids"], first)
    assert len(calls) == count
    for i in range(80):
        prompter(small, [f"go {i}"])
    count = len(calls)
    prompter(small, [PEAR])
    assert len(calls) > count


@pytest.mark.parametrize(
    ("size", "total", "first", "last"),
    [
        ((28, 28), 298428, [0, 0, 0, 5, 31, 60], [248, 189, 121, 66, 36, 23]),
        ((6, 6), 13718, [69, 59, 161, 136, 56, 123], [177, 123, 70, 172, 181, 76]),
    ],
)
def test_images_are_resized_to_the_bytes_of_torchvision(size, total, first, last):
    """Computed by torchvision 0.25, whose bicubic resize of bytes the original's image processor uses."""
    planes = (np.arange(3 * 9 * 7).reshape(3, 9, 7) * 67 % 256).astype(np.uint8)
    resized = _resize(np.ascontiguousarray(planes.transpose(1, 2, 0)), *size)
    assert resized.dtype == np.uint8
    assert int(resized.sum(dtype=np.int64)) == total
    assert resized[0, :6, 0].tolist() == first
    assert resized[-1, -6:, 2].tolist() == last


def test_a_limit_of_one_tile_leaves_the_whole_image_in_it():
    image = np.arange(48 * 64 * 3, dtype=np.uint32).reshape(48, 64, 3).astype(np.uint8)
    assert split_tiles(image, 16).shape[0] > 1
    (tile,) = split_tiles(image, 16, max_tiles=1)
    assert np.array_equal(tile, _resize(image, 16, 16))
