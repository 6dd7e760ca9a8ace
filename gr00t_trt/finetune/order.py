"""Which frame each sample of a training is, as a function of the sample's number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ..errors import UsageError
from .draws import generator

MOST_SAMPLES = 200_000_000
"""Longest pass; its order is held in memory, 8 bytes a sample."""


class Pick(NamedTuple):
    """One frame: number of the dataset, place of the episode among those trained on, and row."""

    dataset: int
    episode: int
    row: int


@dataclass(frozen=True)
class Mixture:
    """What is trained on.

    Attributes:
        lengths: Rows of every episode of every dataset.
        shares: Of each dataset; they sum to 1.
        episode_shares: Of each episode in its dataset; they sum to 1.
        weights: Raw weights.
    """

    lengths: Sequence[Sequence[int]]
    shares: np.ndarray
    episode_shares: Sequence[np.ndarray]
    weights: Sequence[float]


class Order(Protocol):
    """A sampling rule.

    Attributes:
        pass_length: Samples after which every frame has been drawn, where the rule sees to that.
    """

    pass_length: int

    def pick(self, seed: int, position: int) -> Pick:
        """The frame of a sample.

        Args:
            position: Number of the sample since step 0, over all ranks.
        """


class Permuted:
    """Without replacement: in each pass every frame is drawn, as often as its share asks, in a random order.

    An episode of `length` rows with share s of a pass of N samples gets round(s N) of them: each row as often as
    possible, and the rest from rows drawn anew for every pass. N is the smallest number for which nobody gets fewer
    samples than it has rows; with shares by size, a pass is every frame once.
    """

    def __init__(self, mixture: Mixture):
        self._lengths = np.concatenate([np.asarray(each, np.int64) for each in mixture.lengths])
        share = np.concatenate([s * each for s, each in zip(mixture.shares, mixture.episode_shares, strict=True)])
        # Shares are rounded: a pass must not get longer by one for the last bit of a quotient.
        samples = float(np.max(np.round(self._lengths / share, 6)))
        if samples > MOST_SAMPLES:
            raise UsageError(
                f"a pass over every frame takes {samples:.3g} samples with these shares",
                known=f"at most {MOST_SAMPLES:.0e}",
                fix="give large datasets larger --dataset_weights, or choose --sampling upstream",
            )
        self._counts = np.maximum(self._lengths, np.rint(share * np.ceil(samples)).astype(np.int64))
        self.pass_length = int(self._counts.sum())
        self._ends = np.cumsum(self._lengths)
        sizes = [len(each) for each in mixture.lengths]
        self._dataset = np.repeat(np.arange(len(sizes)), sizes)
        self._first = np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
        self._shuffled: tuple[tuple[int, int], np.ndarray] | None = None

    def pick(self, seed: int, position: int) -> Pick:
        number, place = divmod(position, self.pass_length)
        flat = int(self._pass(seed, number)[place])
        episode = int(np.searchsorted(self._ends, flat, side="right"))
        row = flat - int(self._ends[episode] - self._lengths[episode])
        return Pick(int(self._dataset[episode]), episode - int(self._first[episode]), row)

    def _pass(self, seed: int, number: int) -> np.ndarray:
        """Frames of one pass in order, int64 [pass_length], numbered over all episodes."""
        if self._shuffled is None or self._shuffled[0] != (seed, number):
            frames = self._frames(seed, number)
            order = torch.randperm(len(frames), generator=generator(seed, "order", number)).numpy()
            self._shuffled = ((seed, number), frames[order])
        return self._shuffled[1]

    def _frames(self, seed: int, number: int) -> np.ndarray:
        whole, rest = np.divmod(self._counts, self._lengths)
        frames = [np.repeat(np.arange(self._ends[-1]), np.repeat(whole, self._lengths))]
        for episode in np.flatnonzero(rest).tolist():
            rows = torch.randperm(int(self._lengths[episode]), generator=generator(seed, "extra", number, episode))
            begin = int(self._ends[episode] - self._lengths[episode])
            frames.append(begin + rows[: int(rest[episode])].numpy())
        return np.concatenate(frames)


class Upstream:
    """The original's draws of a mixture: with replacement, dataset by share, then episode, then row.

    Its epochs are those that its rule defines; with worker processes, it draws those of epoch 0 again and again.

    Raises: UsageError where no raw weight is 1, which the length of an epoch counts on.
    """

    def __init__(self, mixture: Mixture):
        self._mixture = mixture
        primary = [number for number, weight in enumerate(mixture.weights) if weight == 1.0]
        if not primary:
            raise UsageError("--sampling upstream: no dataset has the weight 1", known="--dataset_weights 1 0.5")
        steps = [sum(each) for each in mixture.lengths]
        self.pass_length = int(max(steps[number] / mixture.shares[number] for number in primary))

    def pick(self, seed: int, position: int) -> Pick:
        epoch, item = divmod(position, self.pass_length)
        digest = hashlib.sha256(repr((epoch, item, seed)).encode()).digest()
        random = np.random.default_rng(int.from_bytes(digest[16:], "big"))
        dataset = int(random.choice(len(self._mixture.shares), p=self._mixture.shares))
        shares = self._mixture.episode_shares[dataset]
        episode = int(random.choice(len(shares), p=shares))
        return Pick(dataset, episode, int(random.choice(self._mixture.lengths[dataset][episode])))


ORDERS: Mapping[str, Callable[[Mixture], Order]] = {"permuted": Permuted, "upstream": Upstream}
"""Value of --sampling -> the rule."""
