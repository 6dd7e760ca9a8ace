"""One dataset of a training: which of its episodes are used, and one sample of it, out of the frame cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from ..common.devices import one_thread
from ..common.video_file import pyav
from ..data import ComposedModalityTransform, GR00TTransform, LeRobotDataset
from ..data.layout import Episode
from ..data.storage import present
from ..data.transforms import Data, Draw
from ..errors import DatasetError, PlanError
from . import frame_cache
from .frame_cache import Column, FrameCache, name_of

EPISODES = ("all", "present")
_BLOCK_ROWS = 32
_META = ("info.json", "modality.json", "tasks.jsonl", "tasks.parquet")


@dataclass(frozen=True)
class Entry:
    """What the frame cache may keep of an episode.

    Attributes:
        keys: Those that it holds.
        frames: Whether views are among them.
    """

    name: str
    episode: int
    keys: tuple[str, ...]
    bytes: int
    frames: bool


class Recording:
    """A dataset of a training.

    Attributes:
        trained, held: Episodes that are trained on, and that are not.
        missing: Whether listed episodes are not here.
        transform: From a row to model inputs, with the statistics of the training; set before the first sample.
    """

    def __init__(
        self,
        dataset: LeRobotDataset,
        trained: Sequence[Episode],
        held: Sequence[Episode],
        missing: bool,
        cache: FrameCache | None,
    ):
        self.dataset, self.trained, self.held, self.missing = dataset, trained, held, missing
        self.transform = ComposedModalityTransform([])
        self._cache = cache
        self._kept: dict[int, Entry] = {}
        self._lengths = {episode.index: episode.length for episode in [*trained, *held]}

    @property
    def path(self) -> Path:
        return self.dataset.path

    @property
    def model_inputs(self) -> GR00TTransform:
        """The end of the transforms. Raises: PlanError for a data config without one."""
        own = next(self.transform.model_inputs(), None)
        if own is None:
            raise PlanError("the data config's transform() has no GR00TTransform", known="one at its end")
        return own

    def sample(self, episode: int, row: int, draw: Draw | None) -> Data:
        """Model inputs of one row with ``images`` and ``texts`` instead of a prompt; a batch of one.

        Args:
            episode: The dataset's own number.
            draw: None augments nothing.
        Raises: DatasetError, ObservationError.
        """
        data = self._observe(episode, row)
        self.transform.check(data)
        return self.transform.apply_training(data, draw)

    def try_first(self, draw: Draw | None) -> None:
        """Make one sample without the cache, so that what cannot be trained on is found before a model is loaded.

        Raises: Gr00tError.
        """
        with one_thread():
            self.transform.apply_training(dict(self.dataset.step(self.trained[0].index, 0)), draw)
        # Open decoders must not be shared with the processes that are started next.
        self.dataset.close()

    @cached_property
    def entries(self) -> list[Entry]:
        """What the cache may keep: of every episode the rows, which are small, and the rows with frames."""
        views = self.dataset.modality_config["video"].modality_keys
        every = list(self.dataset.rows(0))
        rows = [key for key in every if key not in views]
        return [
            Entry(name_of(self._key(e, keys)), e.index, tuple(keys), self._bytes(e, keys), keys is not rows)
            for keys in (rows, every)
            for e in [*self.trained, *self.held]
        ]

    def keep(self, names: set[str]) -> None:
        """Take what the cache keeps from it; of two entries of an episode, the one with frames."""
        self._kept = {entry.episode: entry for entry in self.entries if entry.name in names}

    def _observe(self, episode: int, row: int) -> Data:
        """The row as `LeRobotDataset.step` gives it, rows beyond the episode's end as there."""
        asked = self.dataset.rows(row)
        found = self._read(episode, asked)
        return {
            key: found[key] if key in found else self.dataset.values(episode, key, rows) for key, rows in asked.items()
        }

    def _read(self, episode: int, asked: dict[str, np.ndarray]) -> Data:
        """What the cache has of some rows."""
        entry = self._kept.get(episode)
        if entry is None or self._cache is None:
            return {}
        last = self._lengths[episode] - 1
        inside = {key: np.clip(asked[key], 0, last) for key in entry.keys}
        read = self._cache.read(entry.name, inside, partial(self._content, episode, entry.keys))
        if read is None:
            return {}
        values, texts = read
        out: Data = {}
        for key, value in values.items():
            if key in texts:
                out[key] = [texts[key][number] for number in value.tolist()]
            else:
                out[key] = self.dataset.blank_outside(key, value, inside[key] != asked[key])
        return out

    def _content(self, episode: int, keys: Sequence[str]) -> frame_cache.Episode:
        """All rows of an episode, as the dataset's own reader gives them."""
        columns, texts = {}, {}
        rows = np.arange(self._lengths[episode])
        for key in keys:
            if key.startswith("video."):
                height, width = self._size(key)
                shape = (len(rows), height, width, 3)
                columns[key] = Column("|u1", shape, partial(self._blocks, episode, key, rows))
                continue
            values = self.dataset.values(episode, key, rows)
            if isinstance(values, list):
                texts[key] = sorted(set(values))
                numbers = {text: number for number, text in enumerate(texts[key])}
                values = np.array([numbers[text] for text in values], np.int64)
            columns[key] = Column(values.dtype.str, values.shape, partial(_once, values))
        return frame_cache.Episode(columns, texts)

    def _blocks(self, episode: int, key: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        for first in range(0, len(rows), _BLOCK_ROWS):
            yield self.dataset.values(episode, key, rows[first : first + _BLOCK_ROWS])

    def _size(self, view: str) -> tuple[int, int]:
        """Height and width in pixels."""
        width, height = self.dataset.info.view(self.dataset.layout.video[view.partition(".")[2]]).resolution
        return height, width

    def _bytes(self, episode: Episode, keys: Sequence[str]) -> int:
        """Size of the cache's file, near enough."""
        views = [key for key in keys if key.startswith("video.")]
        pixels = sum(3 * height * width for height, width in map(self._size, views))
        return episode.length * (pixels + 64 * (len(keys) - len(views))) + 4096 * (len(keys) + 1)

    def _key(self, episode: Episode, keys: Sequence[str]) -> dict[str, object]:
        """What the content of an episode's file depends on."""
        files = [*self.dataset.files(episode.index), *(self.path / "meta" / name for name in _META)]
        return {
            "dataset": str(self.path.resolve()),
            "episode": [episode.index, episode.length],
            "files": [_state(path) for path in files],
            "keys": list(keys),
            "frame_lookup": self.dataset.frame_lookup,
            "decoder": pyav().__version__,
        }


def open_recording(dataset: LeRobotDataset, episodes: str, eval_episodes: int, cache: FrameCache | None) -> Recording:
    """A dataset, its last `eval_episodes` episodes held out.

    Args:
        episodes: One of `EPISODES`: whether every listed episode has to be here.
    Raises: DatasetError for one that is not, or where nothing is left to train on.
    """
    listed = [episode for episode in dataset.episodes if episode.length]
    files = {episode.index: dataset.files(episode.index) for episode in listed}
    here = set(present(list(dict.fromkeys(path for paths in files.values() for path in paths))))
    found = [episode for episode in listed if here.issuperset(files[episode.index])]
    if len(found) < len(listed) and (episodes == "all" or not found):
        raise _incomplete(dataset, [e for e in listed if e not in found], files, here, len(listed))
    if eval_episodes >= len(found):
        what = f"--eval_episodes {eval_episodes}: {dataset.path} has {len(found)} episodes"
        raise DatasetError(what, known="at least one is left to train on")
    split = len(found) - eval_episodes
    return Recording(dataset, found[:split], found[split:], len(found) < len(listed), cache)


def _incomplete(
    dataset: LeRobotDataset, missing: Sequence[Episode], files: dict[int, list[Path]], here: set[Path], listed: int
) -> DatasetError:
    numbers = ", ".join(str(episode.index) for episode in missing[:8]) + (", ..." if len(missing) > 8 else "")
    first = next(path for path in files[missing[0].index] if path not in here)
    return DatasetError(
        f"{dataset.path}: {len(missing)} of {listed} listed episodes are not here: {numbers}",
        known=f"{first}, for one; meta/stats.json has the statistics of all listed episodes",
        fix="fetch them; or --episodes present trains on those that are here, with statistics of their rows",
    )


def _state(path: Path) -> list[Any]:
    """What changes when a file does."""
    try:
        found = os.stat(path)
    except OSError:
        return [path.name]
    return [str(path), found.st_size, found.st_mtime_ns]


def _once(values: np.ndarray) -> list[np.ndarray]:
    return [values]
