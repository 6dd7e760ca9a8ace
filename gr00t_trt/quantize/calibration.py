"""A calibration: what the inputs of every linear layer reach in real requests, in one safetensors file.

Provenance lies in the file's metadata: weights, dataset, frames, seed, steps, data config, package version.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..common.files import parse_json
from ..common.notice import warn_once
from ..errors import PlanError, RecordError, unknown
from ..model.weight_writer import tensor_bytes
from ..plans.schema import CALIBRATE

KEY, VERSION = "gr00t_trt_calibration", 1
MOST_BYTES = 1 << 28
_HALVES = (torch.bfloat16, torch.float16)

Frame = tuple[int, int]
"""Episode and row."""


@dataclass(frozen=True)
class Provenance:
    """Where a calibration comes from.

    Attributes:
        dataset_id: As `dataset_id` gives it: the same recording in another folder has the same.
        frames: Those that were asked about, in this order; nobody should judge the result by them.
        data_config: Its name; the scales hold for its cameras and its parts of state and action.
    """

    model: str
    dataset: str
    dataset_id: str
    frames: tuple[Frame, ...]
    seed: int
    denoising_steps: int
    data_config: str
    embodiment_tag: str
    package: str


@dataclass(frozen=True, eq=False)
class Observed:
    """The inputs of one layer.

    Attributes:
        channels: fp32 [K], the largest magnitude of every input channel over all frames.
        amax: fp32 [frames], the largest magnitude of all after each frame: it only grows.
        weight: Hashes of the layer's weight in half precision, see `weight_hashes`.
        noise: Format -> noise power over signal power of the stage's output, with only this layer quantised.
    """

    channels: Tensor
    amax: Tensor
    weight: tuple[str, ...]
    noise: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was observed, by ``stage/layer`` in the order of a request."""

    provenance: Provenance
    layers: Mapping[str, Observed]

    @property
    def weights(self) -> str:
        """One hash of all calibrated weights, in 16 digits."""
        return _digest("".join(f"{name} {own.weight}" for name, own in self.layers.items()).encode())

    @property
    def digest(self) -> str:
        """What tells it from another, in 16 digits: the ranges that were seen, and of which weights."""
        seen = b"".join(own.channels.cpu().numpy().tobytes() for own in self.layers.values())
        return _digest(seen + self.weights.encode())

    def ranked(self, noise: Mapping[str, Mapping[str, float]]) -> Calibration:
        """The same with a ranking.

        Args:
            noise: Layer -> format -> share of the stage's output that becomes noise.
        """
        layers = {name: replace(own, noise={**own.noise, **noise.get(name, {})}) for name, own in self.layers.items()}
        return replace(self, layers=layers)

    def observed(self, layer: str) -> Observed:
        """Raises: PlanError for a layer that was not seen."""
        if layer not in self.layers:
            raise unknown(PlanError, "calibration: layer", layer, self.layers)
        return self.layers[layer]

    def refuse_other_weights(self, layers: Mapping[str, nn.Linear], where: str) -> None:
        """Raises: PlanError for a layer whose weight is not the calibrated one.

        Args:
            layers: ``stage/layer`` -> the layer of the model that is to be quantised.
            where: The calibration's file, for the message.
        """
        for name, layer in layers.items():
            seen = self.observed(name)
            if len(seen.channels) != layer.in_features or weight_hash(layer.weight) not in seen.weight:
                raise PlanError(
                    f"calibration {where}: it was taken with other weights: {name} of this model differs",
                    known=f"the weights of {self.provenance.model}, {self.weights}",
                    fix=f"calibrate this model: {CALIBRATE}",
                )

    def refuse_its_frames(self, dataset: Any, frames: Iterable[Frame]) -> None:
        """For an evaluation: an accuracy on frames that were calibrated on flatters, and of another dataset is warned.

        Args:
            dataset: A `data.LeRobotDataset`. frames: Those that a policy is to be asked about.
        Raises: PlanError naming the first that was calibrated on.
        """
        taken = self.provenance
        if dataset_id(dataset) != taken.dataset_id:
            warn_once(
                f"the calibration was taken of the dataset {taken.dataset}, and {dataset.path.name} is another: "
                "its scales may not fit other scenes and motions; calibrate on this one's episodes"
            )
            return
        used = set(taken.frames)
        shared = next((frame for frame in frames if frame in used), None)
        if shared is not None:
            episodes = sorted({episode for episode, _ in used})
            raise PlanError(
                f"episode {shared[0]}, row {shared[1]} was calibrated on: an accuracy measured on it flatters",
                known=f"calibrated on frames of the episodes {', '.join(map(str, episodes))} of {dataset.path}",
                fix="evaluate other episodes, or calibrate on others",
            )


def dataset_id(dataset: Any) -> str:
    """Hash of what tells a `data.LeRobotDataset` from another: its info and the lengths of its episodes."""
    lengths = [(episode.index, episode.length) for episode in dataset.episodes]
    return _digest((dataset.path / "meta" / "info.json").read_bytes() + json.dumps(lengths).encode())


def weight_hashes(weight: Tensor) -> tuple[str, ...]:
    """Of its values in bf16 and in fp16, and in each after the other: a model may be loaded in one and cast to another.

    So the same weight is known again in any dtype, see `weight_hash`.
    """
    once = [weight.to(dtype) for dtype in _HALVES]
    twice = [weight.to(dtype) for weight, dtype in zip(once, reversed(_HALVES), strict=True)]
    return tuple(_digest(tensor_bytes(rounded)) for rounded in (*once, *twice))


def weight_hash(weight: Tensor) -> str:
    """Of a weight in half precision as it is; of one in fp32 as bf16."""
    return _digest(tensor_bytes(weight if weight.dtype in _HALVES else weight.to(_HALVES[0])))


def _digest(data: Any) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write it whole or not at all. Raises: RecordError."""
    from safetensors.torch import save

    path, tensors = Path(path), {}
    for name, own in calibration.layers.items():
        tensors[f"{name}:channels"], tensors[f"{name}:amax"] = own.channels.cpu(), own.amax.cpu()
    about = {
        "version": VERSION,
        "provenance": asdict(calibration.provenance),
        "layers": {name: {"weight": own.weight, "noise": own.noise} for name, own in calibration.layers.items()},
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(save(tensors, {KEY: json.dumps(about)}))
        os.replace(temporary, path)
    except OSError as error:
        why = error.strerror or str(error)
        raise RecordError(f"{path}: the calibration cannot be written: {why}", fix="name another --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_calibration(path: str | Path) -> Calibration:
    """Read what `write_calibration` wrote. Raises: PlanError for a file that is missing, or no calibration."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise _no_calibration(path, f"larger than {MOST_BYTES} bytes")
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if KEY not in metadata:
                raise _no_calibration(path, "safetensors of another kind")
            names: list[str] = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        return _calibration(parse_json(metadata[KEY]), tensors)
    except FileNotFoundError:
        raise PlanError(f"calibration: {path}: no such file", fix=f"make one: {CALIBRATE}") from None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_calibration(path, f"it cannot be read: {type(error).__name__}: {error}") from error


def _no_calibration(path: Path, why: str) -> PlanError:
    return PlanError(
        f"calibration: {path}: {why}", known="a file that gr00t-trt calibrate wrote", fix=f"make one: {CALIBRATE}"
    )


def _calibration(about: Any, tensors: Mapping[str, Tensor]) -> Calibration:
    """Raises: ValueError, KeyError or TypeError for what `write_calibration` never writes."""
    if about["version"] != VERSION:
        raise ValueError(f"version {about['version']}, and this release reads {VERSION}")
    raw = dict(about["provenance"])
    raw["frames"] = tuple((int(episode), int(row)) for episode, row in raw["frames"])
    if not raw["frames"]:
        raise ValueError("no frame")
    layers = {}
    for name, own in about["layers"].items():
        channels, amax = tensors[f"{name}:channels"], tensors[f"{name}:amax"]
        if channels.dim() != 1 or amax.shape != (len(raw["frames"]),):
            raise ValueError(f"{name}: shapes {tuple(channels.shape)} and {tuple(amax.shape)}")
        if {channels.dtype, amax.dtype} != {torch.float32}:
            raise ValueError(f"{name}: {channels.dtype} and {amax.dtype}, not float32")
        if not (channels.isfinite().all() and amax.isfinite().all() and (channels >= 0).all()):
            raise ValueError(f"{name}: a magnitude that is negative or not finite")
        noise = {form: float(share) for form, share in own["noise"].items()}
        if not all(math.isfinite(share) and share >= 0 for share in noise.values()):
            raise ValueError(f"{name}: a noise that is negative or not finite")
        layers[name] = Observed(channels, amax, tuple(map(str, own["weight"])), noise)
    return Calibration(Provenance(**raw), layers)
