"""The samples of a training: datasets opened, held against the model, and made into its inputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..common.interface import ModalityConfig
from ..data import DatasetMetadata, GR00TTransform, LeRobotDataset, Prompter, data_config, synthetic_dataset
from ..data.dataset_statistics import Advance
from ..data.transforms import Draw
from ..errors import PlanError, UsageError, unknown
from ..model import Gr00tConfig
from ..policy.fit import fitted
from .draws import generator
from .frame_cache import FrameCache, open_frame_cache
from .mixture import constant_columns, episode_shares, merge, shares
from .order import ORDERS, Mixture, Order
from .recording import EPISODES, Recording, open_recording

Value = TypeVar("Value")


@dataclass(frozen=True)
class Source:
    """One dataset and what it is trained as.

    Attributes:
        path: A LeRobot dataset's folder, or ``synthetic``.
        config: A data config, or its name.
        tag: Embodiment tag.
        weight: Raw weight in the mixture.
    """

    path: str | Path
    config: Any
    tag: str
    weight: float = 1.0

    @property
    def data_config(self) -> Any:
        """The data config itself. Raises: PlanError for an unknown name."""
        return data_config(self.config) if isinstance(self.config, str) else self.config


def read_sources(
    paths: Sequence[str], configs: Sequence[Any], tags: Sequence[str], weights: Sequence[float] = ()
) -> list[Source]:
    """Sources from the values of flags, each one for all datasets or as many as there are datasets.

    Raises: UsageError for another number, and for a dataset that is named twice.
    """
    columns = [
        _spread("--data_config", configs, len(paths)),
        _spread("--embodiment_tag", tags, len(paths)),
        _spread("--dataset_weights", weights or (1.0,), len(paths)),
    ]
    sources = [Source(*row) for row in zip(paths, *columns, strict=True)]
    for number, source in enumerate(sources):
        if (source.path, source.config) in [(other.path, other.config) for other in sources[:number]]:
            raise UsageError(f"--dataset_path: {source.path} is named twice", fix="--dataset_weights sets its share")
    return sources


def _spread(flag: str, values: Sequence[Value], count: int) -> list[Value]:
    if len(values) not in (1, count):
        raise UsageError(f"{flag}: {len(values)} values for {count} datasets", known="one for all, or one for each")
    return list(values) * (count if len(values) == 1 else 1)


@dataclass(frozen=True)
class DataOptions:
    """What a training reads and how.

    Attributes:
        geometry: Of the model that is trained: widths of state and action, size of images.
        prompter: Turns images and instructions into the model's inputs.
        balance_dataset_weights, balance_trajectory_weights: Shares by number of frames; else by weight alone, and
            equal shares for the episodes of a dataset.
        eval_episodes: So many last episodes of every dataset are held out.
        frame_lookup: As `LeRobotDataset` takes it.
        augment: Random crops and colours, as the data configs have them.
        sampling: One of `order.ORDERS`.
        episodes: ``all``: a listed episode that is missing is refused; ``present``: it is left out, and statistics
            are those of the rows that are here.
        frame_cache, frame_cache_gb: As `open_frame_cache` takes them.
    """

    sources: Sequence[Source]
    geometry: Gr00tConfig
    prompter: Prompter
    balance_dataset_weights: bool = True
    balance_trajectory_weights: bool = True
    eval_episodes: int = 0
    frame_lookup: str = "index"
    augment: bool = True
    sampling: str = "permuted"
    episodes: str = "all"
    frame_cache: str | Path | None = None
    frame_cache_gb: float | None = None


class Frame(NamedTuple):
    """A frame of a training: number of the dataset, its own number of the episode, and row."""

    dataset: int
    episode: int
    row: int


@dataclass(frozen=True)
class TrainingData:
    """Datasets, ready to give samples.

    Attributes:
        metadata: Embodiment tag -> statistics of all its datasets together: what a policy of the result needs.
        modality_configs: Embodiment tag -> keys and row offsets.
        embodiment_ids: Embodiment tag -> index of the projector that it is trained in.
        steps: Frames that are trained on.
        pass_length: Samples after which every frame has been drawn.
        held_out: Frames that are not trained on, in order.
        notes: What a user should know, in whole sentences.
        description: What the order and the content of samples depend on, to be compared when a run is resumed.
    """

    metadata: Mapping[str, DatasetMetadata]
    modality_configs: Mapping[str, Mapping[str, ModalityConfig]]
    embodiment_ids: Mapping[str, int]
    steps: int
    pass_length: int
    held_out: Sequence[Frame]
    notes: Sequence[str]
    description: Mapping[str, object]
    recordings: Sequence[Recording]
    order: Order
    prompter: Prompter
    augment: bool

    def frame(self, seed: int, position: int) -> Frame:
        """The frame of a training's sample.

        Args:
            position: Number of the sample since step 0, over all ranks.
        """
        pick = self.order.pick(seed, position)
        return Frame(pick.dataset, self.recordings[pick.dataset].trained[pick.episode].index, pick.row)

    def name(self, frame: Frame) -> str:
        """A frame in words, for errors."""
        return f"{self.recordings[frame.dataset].path}: episode {frame.episode}, row {frame.row}"

    def inputs(self, frames: Sequence[Frame], positions: Sequence[int], seed: int | None) -> dict[str, torch.Tensor]:
        """Model inputs of some frames as one batch, as `GR00TTransform.apply_training` gives them.

        Args:
            seed: With the positions it decides all augmentation; None: there is none, as for held-out frames.
        Raises: DatasetError, ObservationError.
        """
        samples = []
        for frame, position in zip(frames, positions, strict=True):
            draw = _draws(seed, position) if self.augment and seed is not None else None
            samples.append(self.recordings[frame.dataset].sample(frame.episode, frame.row, draw))
        images = [sample.pop("images")[0] for sample in samples]
        texts = [text for sample in samples for text in sample.pop("texts")]
        # In one piece where all have the same form, which is the quick way.
        alike = len({image.shape for image in images}) == 1
        pixels = np.stack(images) if alike else images
        prompt = self.prompter(pixels, texts, max_tiles=self.recordings[0].model_inputs.max_tiles)
        return {**prompt, **{name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}}


def _draws(seed: int, position: int) -> Draw:
    """Generators of one sample's augmentation."""
    return lambda purpose: generator(seed, purpose, position)


def open_training_data(options: DataOptions, advance: Advance = lambda done, total: None) -> TrainingData:
    """Open all datasets and find out what could go wrong before a model is loaded.

    Args:
        advance: Told how many of how many files of a dataset are read for statistics.
    Raises: DatasetError, PlanError, CheckpointError naming dataset and key.
    """
    for flag, value, known in (("--episodes", options.episodes, EPISODES), ("--sampling", options.sampling, ORDERS)):
        if value not in known:
            raise unknown(UsageError, flag, value, known)
    if options.eval_episodes < 0:
        raise UsageError(f"--eval_episodes {options.eval_episodes}", known="0 or more")
    cache = open_frame_cache(options.frame_cache, options.frame_cache_gb)
    recordings = [
        open_recording(_dataset(source, options.frame_lookup), options.episodes, options.eval_episodes, cache)
        for source in options.sources
    ]
    mixture = _mixture(options, recordings)
    _check_tags(options.sources)
    metadata = _metadata(options, recordings, mixture.shares, advance)
    for source, recording in zip(options.sources, recordings, strict=True):
        _, transform = fitted(source.data_config, metadata[source.tag], options.geometry)
        transform.set_action_dim(options.geometry.action_head.action_dim)
        recording.transform = transform
    _check_alike(recordings)
    kept = _keep(cache, recordings)
    for recording in recordings:
        recording.try_first(_draws(0, 0) if options.augment else None)
    order = ORDERS[options.sampling](mixture)
    tags = {source.tag: recording for source, recording in zip(options.sources, recordings, strict=True)}
    return TrainingData(
        metadata=metadata,
        modality_configs={tag: recording.dataset.modality_config for tag, recording in tags.items()},
        embodiment_ids={tag: recording.model_inputs.embodiment for tag, recording in tags.items()},
        steps=sum(map(sum, mixture.lengths)),
        pass_length=order.pass_length,
        held_out=[
            Frame(number, episode.index, row)
            for number, recording in enumerate(recordings)
            for episode in recording.held
            for row in range(episode.length)
        ],
        notes=[*_notes(recordings, mixture), *_constant(metadata, tags), *kept],
        description=_description(options, recordings, metadata),
        recordings=recordings,
        order=order,
        prompter=options.prompter,
        augment=options.augment,
    )


def _dataset(source: Source, frame_lookup: str) -> LeRobotDataset:
    config, path = source.config, source.path
    if path == "synthetic":
        path = synthetic_dataset(data_config=config if isinstance(config, str) else getattr(config, "name", ""))
    return LeRobotDataset(path, source.data_config.modality_config(), frame_lookup=frame_lookup)


def _mixture(options: DataOptions, recordings: Sequence[Recording]) -> Mixture:
    lengths = [[episode.length for episode in recording.trained] for recording in recordings]
    weights = [source.weight for source in options.sources]
    return Mixture(
        lengths,
        shares(weights, [sum(each) for each in lengths], balanced=options.balance_dataset_weights),
        [episode_shares(each, balanced=options.balance_trajectory_weights) for each in lengths],
        weights,
    )


def _check_tags(sources: Sequence[Source]) -> None:
    """Raises: PlanError for two data configs under one embodiment tag."""
    first: dict[str, Source] = {}
    for source in sources:
        other = first.setdefault(source.tag, source)
        if not _same_config(other.config, source.config):
            both = " and ".join(str(getattr(each.config, "name", each.config)) for each in (other, source))
            raise PlanError(
                f"--embodiment_tag {source.tag}: two data configs, {both}",
                known="statistics and projector of a tag belong to one robot",
                fix="give each data config its own tag",
            )


def _same_config(one: Any, other: Any) -> bool:
    if isinstance(one, str) or isinstance(other, str) or type(one) is not type(other):
        return bool(one == other)
    return bool(one.modality_config() == other.modality_config())


def _metadata(
    options: DataOptions, recordings: Sequence[Recording], share: np.ndarray, advance: Advance
) -> dict[str, DatasetMetadata]:
    """Merged statistics of each embodiment tag."""
    found = [
        recording.dataset.metadata(source.tag, advance, from_rows=recording.missing)
        for source, recording in zip(options.sources, recordings, strict=True)
    ]
    out = {}
    for tag in dict.fromkeys(source.tag for source in options.sources):
        own = [number for number, source in enumerate(options.sources) if source.tag == tag]
        keys = recordings[own[0]].dataset.keys("video", "state", "action")
        out[tag] = merge([found[number] for number in own], [float(share[number]) for number in own], keys)
    return out


def _check_alike(recordings: Sequence[Recording]) -> None:
    """What has to be the same in all samples, for them to be in one batch. Raises: PlanError."""
    facts: Mapping[str, Callable[[GR00TTransform], int]] = {
        "action rows": lambda own: own.action_horizon,
        "state rows": lambda own: own.state_horizon,
        "tiles an image": lambda own: own.max_tiles,
    }
    for what, value in facts.items():
        found = [value(recording.model_inputs) for recording in recordings]
        if len(set(found)) > 1:
            raise PlanError(f"data configs with {' and '.join(map(str, found))} {what} in one training", known="one")


def _keep(cache: FrameCache | None, recordings: Sequence[Recording]) -> list[str]:
    """Choose which episodes the frame cache keeps, and say so."""
    if cache is None:
        return ["No frame cache: every frame is decoded each time it is drawn."]
    wanted = sorted((e for recording in recordings for e in recording.entries), key=lambda entry: entry.frames)
    kept = cache.make_room([(entry.name, entry.bytes) for entry in wanted])
    for recording in recordings:
        recording.keep(kept)
    frames = [entry for entry in wanted if entry.frames]
    sizes = [entry.bytes for entry in frames if entry.name in kept]
    note = f"Frame cache: {cache.folder} keeps {len(sizes)} of {len(frames)} episodes, {sum(sizes) / 1e9:.2f} GB."
    if len(sizes) < len(frames):
        note += " The others' frames are decoded each time; --frame_cache_gb sets the limit."
    return [note]


def _notes(recordings: Sequence[Recording], mixture: Mixture) -> list[str]:
    out = []
    for recording, share in zip(recordings, mixture.shares, strict=True):
        rows = sum(episode.length for episode in recording.trained)
        held = f", {len(recording.held)} held out" if recording.held else ""
        share_words = f", {100 * share:.1f} % of the samples" if len(recordings) > 1 else ""
        out.append(f"{recording.path}: {len(recording.trained)} episodes, {rows} frames{held}{share_words}.")
        out += recording.dataset.notes
    return out


def _constant(metadata: Mapping[str, DatasetMetadata], tags: Mapping[str, Recording]) -> list[str]:
    out = []
    for tag, recording in tags.items():
        if still := constant_columns(metadata[tag], recording.dataset.keys("state", "action")):
            out.append(f"{tag}: these columns never change, and nothing is learned of them: {', '.join(still)}.")
    return out


def _description(
    options: DataOptions, recordings: Sequence[Recording], metadata: Mapping[str, DatasetMetadata]
) -> dict[str, object]:
    return {
        "datasets": [
            {
                "tag": source.tag,
                "weight": source.weight,
                "episodes": len(recording.trained),
                "held_out": len(recording.held),
                "lengths": _digest([[episode.index, episode.length] for episode in recording.trained]),
                "keys": {k: list(v.modality_keys) for k, v in recording.dataset.modality_config.items()},
            }
            for source, recording in zip(options.sources, recordings, strict=True)
        ],
        "statistics": {tag: _digest(found.to_dict()["statistics"]) for tag, found in metadata.items()},
        "balance_dataset_weights": options.balance_dataset_weights,
        "balance_trajectory_weights": options.balance_trajectory_weights,
        "frame_lookup": options.frame_lookup,
        "augment": options.augment,
        "sampling": options.sampling,
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
