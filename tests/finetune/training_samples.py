"""Datasets and options that the tests of a training's data share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gr00t_trt.data import Prompter, synthetic_tokenizer
from gr00t_trt.finetune.samples import DataOptions, read_sources
from gr00t_trt.model import load_config

GR1, SO100 = "fourier_gr1_arms_only", "so100"


def options(
    paths: Sequence[Path | str],
    cache: Path | str = "off",
    *,
    configs: Sequence[Any] = (GR1,),
    tags: Sequence[str] = ("gr1",),
    weights: Sequence[float] = (),
    **more: Any,
) -> DataOptions:
    """Options for the synthetic model."""
    geometry = load_config("synthetic")
    words = synthetic_tokenizer(geometry.special_tokens, geometry.vocab_size)
    size, tokens = geometry.image_size, geometry.tokens_per_image
    prompter = Prompter(words, words.special_tokens, image_size=size, tokens_per_image=tokens)
    sources = read_sources([str(path) for path in paths], configs, tags, weights)
    return DataOptions(sources, geometry, prompter, frame_cache=cache, **more)


def part_of(dataset: Path, target: Path, episodes: Sequence[int]) -> Path:
    """A dataset with some of another one's episodes, listed as all that there are, and without statistics."""
    shutil.copytree(dataset / "meta", target / "meta", copy_function=shutil.copyfile)
    (target / "meta" / "stats.json").unlink(missing_ok=True)
    for kind in ("data", "videos"):
        for path in (dataset / kind).rglob("episode_*"):
            if int(path.stem.removeprefix("episode_")) in episodes:
                copy = target / path.relative_to(dataset)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
    listing = target / "meta" / "episodes.jsonl"
    lines = listing.read_text().splitlines()
    listing.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["episode_index"] in episodes))
    return target


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """Whether two batches of inputs are equal, bit for bit."""
    return set(left) == set(right) and all(torch.equal(left[name], right[name]) for name in left)
