"""Instruction and images to token ids and pixel values, as the Eagle processor of GR00T N1.5 prepares them.

Source: Isaac-GR00T, gr00t/model/backbone/eagle2_hg_model (processing and image processing).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from ..errors import ObservationError, TokenizerError
from .device import unit_interval
from .tokenizer import SPECIAL_TOKENS, Tokenizer

MAX_TILES = 12
CACHED_PROMPTS = 64

Segment = str | tuple[str, int]
"""Ordinary text, or a special token and how often it is repeated."""


def prompt_segments(text: str, tiles: Sequence[int], tokens_per_image: int) -> list[Segment]:
    """The conversation as runs of ordinary text and special tokens.

    One user turn holds all images, numbered from one, then the instruction; the assistant's turn is opened.

    Args:
        text: The instruction, used verbatim.
        tiles: Number of tiles of each image.
        tokens_per_image: Image tokens per tile.
    """
    out: list[Segment] = [("<|im_start|>", 1), "system\nYou are a helpful assistant.", ("<|im_end|>", 1), "\n"]
    out += [("<|im_start|>", 1)]
    lead = "user\n"
    for number, count in enumerate(tiles, start=1):
        out += [f"{lead}<image {number}>", ("<img>", 1), ("<IMG_CONTEXT>", count * tokens_per_image), ("</img>", 1)]
        lead = ""
    return [*out, lead + text, ("<|im_end|>", 1), "\n", ("<|im_start|>", 1), "assistant\n"]


def bracketed(text: str) -> str:
    """How the original policy renders an unbatched instruction: ``['text']``, the text form of a numpy array.

    An apostrophe in the text switches to double quotes; line breaks are escaped.
    """
    return str(np.array([text]))


def tile_grid(width: int, height: int, tile: int, max_tiles: int = MAX_TILES) -> tuple[int, int]:
    """(columns, rows) of tiles for an image of width x height pixels.

    Grids are scored by how much of the image's area they cover (no more than 0.6 counts) times how well the aspect
    ratios agree; among equal scores the one with fewest tiles wins. 224 x 224 gives (1, 1), 640 x 480 gives (4, 3).
    """
    grids = [(i, j) for i in range(1, max_tiles + 1) for j in range(1, max_tiles + 1) if i * j <= max_tiles]
    area, aspect = width * height, width / height
    best, best_score = (1, 1), 0.0
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        ratio = columns / rows
        score = min(columns * rows * tile * tile / area, 0.6) * min(ratio / aspect, aspect / ratio)
        if score > best_score:
            best, best_score = (columns, rows), score
    return best


def split_tiles(image: np.ndarray, tile: int, max_tiles: int = MAX_TILES) -> np.ndarray:
    """Cut an image into tiles.

    Args:
        image: uint8 [H, W, 3].
        tile: Side of a tile in pixels.
        max_tiles: Most tiles, without the thumbnail; 1 makes one tile of the whole image.
    Returns: uint8 [N, tile, tile, 3], row by row; with more than one tile a thumbnail of the whole image comes last.
        An image of exactly tile x tile is returned as it is, any other is resized (bicubic, antialiased).
    """
    height, width = image.shape[:2]
    columns, rows = tile_grid(width, height, tile, max_tiles)
    grid = _resize(image, rows * tile, columns * tile).reshape(rows, tile, columns, tile, 3)
    tiles = grid.swapaxes(1, 2).reshape(rows * columns, tile, tile, 3)
    return tiles if len(tiles) == 1 else np.concatenate([tiles, _resize(image, tile, tile)[None]])


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # In bytes throughout, as the original: between the two directions, levels are rounded and cut off at 0 and 255.
    planes = torch.tensor(image).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        planes, size=(height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0).numpy()


class Prompter:
    """Makes the vision-language inputs of the model.

    Args:
        tokenizer: Turns ordinary text into ids.
        special_tokens: Name -> id in the model, of the six names in `SPECIAL_TOKENS`.
        image_size: Side of a tile in pixels.
        tokens_per_image: Image tokens per tile.
    Raises: TokenizerError when a special token has no id.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        special_tokens: Mapping[str, int] = SPECIAL_TOKENS,
        image_size: int = 224,
        tokens_per_image: int = 256,
    ):
        missing = [name for name in SPECIAL_TOKENS if name not in special_tokens]
        if missing:
            raise TokenizerError(f"special token {missing[0]} has no id", known=list(SPECIAL_TOKENS))
        self.tokenizer = tokenizer
        self.special_tokens = dict(special_tokens)
        self.image_size = image_size
        self.tokens_per_image = tokens_per_image
        self._forbidden = sorted({*special_tokens, *tokenizer.special_strings}, key=len, reverse=True)
        # The same instruction arrives at every step of an episode.
        self._cached_ids = lru_cache(maxsize=CACHED_PROMPTS)(self._encode)

    def __call__(
        self,
        images: np.ndarray | torch.Tensor | Sequence[Any],
        texts: Sequence[str],
        *,
        bracketed_text: bool = False,
        max_tiles: int = MAX_TILES,
    ) -> dict[str, torch.Tensor]:
        """Prepare a batch.

        Args:
            images: uint8 [B, T, V, H, W, 3], an array or a tensor on any device; or a list with one array
                [..., H, W, 3] or list of images per sample.
            texts: B instructions, put into the prompt verbatim. One that spells out a special token is refused:
                it would be read as the end of the turn, or as an image.
            bracketed_text: Wrap each text as ``['text']``, as the original does for unbatched requests.
            max_tiles: Most tiles of an image that is not of a tile's size; see `split_tiles`.
        Returns: ``eagle_input_ids`` and ``eagle_attention_mask`` int64 [B, L], padded on the left;
            ``eagle_pixel_values`` float32 [N, 3, S, S] in [-1, 1], N tiles of all samples in order, on the device
            of the images; and ``eagle_image_sizes`` int64 [M, 2], height and width of all M images.
        Raises: ObservationError.
        """
        if len(images) != len(texts) or not len(texts):
            raise ObservationError(f"{len(texts)} instructions for {len(images)} samples", known="one per sample")
        for text in texts:
            self._check(text)
        pixels, counts, sizes = self._tiles(images, max_tiles)
        verbatim = [bracketed(text) for text in texts] if bracketed_text else texts
        rows = [self._cached_ids(text, count) for text, count in zip(verbatim, counts, strict=True)]
        length = max(len(row) for row in rows)
        ids = np.full((len(rows), length), self.special_tokens["<|endoftext|>"], dtype=np.int64)
        mask = np.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, length - len(row) :] = row
            mask[index, length - len(row) :] = 1
        return {
            "eagle_input_ids": torch.from_numpy(ids),
            "eagle_attention_mask": torch.from_numpy(mask),
            "eagle_pixel_values": unit_interval(pixels).sub_(0.5).div_(0.5),
            "eagle_image_sizes": torch.tensor(sizes, dtype=torch.int64),
        }

    def _tiles(self, images: Any, max_tiles: int) -> tuple[torch.Tensor, list[tuple[int, ...]], list[tuple[int, int]]]:
        """All tiles uint8 [N, 3, S, S]; per sample, how many of them each image has; sizes of all images."""
        side = self.image_size
        uniform = isinstance(images, np.ndarray | torch.Tensor)
        ready = uniform and images.ndim == 6 and images.dtype in (np.uint8, torch.uint8)
        if ready and tuple(images.shape[3:]) == (side, side, 3):
            planes = torch.as_tensor(images).movedim(-1, -3).reshape(-1, 3, side, side).contiguous()
            views = images.shape[1] * images.shape[2]
            return planes, [(1,) * views] * len(images), [(side, side)] * len(planes)
        device = images.device if isinstance(images, torch.Tensor) else None
        pixels, counts, sizes = [], [], []
        for sample in images.cpu().numpy() if isinstance(images, torch.Tensor) else images:
            found = self._views(sample)
            tiles = [split_tiles(view, side, max_tiles) for view in found]
            pixels += tiles
            counts.append(tuple(len(t) for t in tiles))
            sizes += [(view.shape[0], view.shape[1]) for view in found]
        stacked = np.ascontiguousarray(np.concatenate(pixels).transpose(0, 3, 1, 2))
        return torch.from_numpy(stacked).to(device), counts, sizes

    def _views(self, sample: Any) -> list[np.ndarray]:
        views: list[np.ndarray] = []
        for image in sample if isinstance(sample, list | tuple) else [sample]:
            image = np.asarray(image)
            if image.dtype != np.uint8 or image.ndim < 3 or image.shape[-1] != 3 or not image.size:
                raise ObservationError(f"image is {image.dtype} of shape {image.shape}", known="uint8 [..., H, W, 3]")
            views += list(image.reshape(-1, *image.shape[-3:]))
        if not views:
            raise ObservationError("a sample without images", known="at least one view")
        return views

    def _check(self, text: str) -> None:
        if not isinstance(text, str):
            raise ObservationError(f"instruction is {type(text).__name__}", known="str")
        for token in self._forbidden:
            if token in text:
                raise ObservationError(
                    f"instruction contains the special token {token!r}: {text[:80]!r}",
                    known="instructions are plain text; special tokens would change the structure of the prompt",
                    fix=f"remove {token} from the instruction",
                )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ObservationError(f"instruction is not valid Unicode: {text[:80]!r}: {error}") from error

    def _encode(self, text: str, tiles: tuple[int, ...]) -> np.ndarray:
        ids: list[int] = []
        for segment in prompt_segments(text, tiles, self.tokens_per_image):
            # Special tokens split text before it is tokenized, so each run can be encoded by itself.
            if isinstance(segment, str):
                ids += self.tokenizer.encode(segment)
            else:
                ids += [self.special_tokens[segment[0]]] * segment[1]
        return np.array(ids, dtype=np.int64)
