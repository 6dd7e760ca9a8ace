"""Statistics and layout of one embodiment's state and action, from a checkpoint or a dataset."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, Gr00tError, PlanError, unknown

EMBODIMENT_TAGS: Mapping[str, int] = {"gr1": 24, "oxe_droid": 17, "agibot_genie1": 26, "new_embodiment": 31}
"""Embodiment tag -> index of its projector among the model's 32."""

STATISTICS = ("max", "min", "mean", "std", "q01", "q99")
_EULER_ORDERS = ("rpy", "ryp", "pry", "pyr", "yrp", "ypr")
ROTATIONS = ("axis_angle", "quaternion", "rotation_6d", "matrix", *(f"euler_angles_{o}" for o in _EULER_ORDERS))
_WRITTEN_WITH_IT = "use the metadata.json that was written with this checkpoint"


def embodiment_index(tag: str) -> int:
    """The projector index of an embodiment tag, in [0, 32).

    Raises: PlanError for a tag that the model does not know.
    """
    if tag not in EMBODIMENT_TAGS:
        raise unknown(PlanError, "--embodiment_tag", tag, EMBODIMENT_TAGS)
    return EMBODIMENT_TAGS[tag]


@dataclass(frozen=True)
class Statistics:
    """Statistics of one part; each field is float64 [D] in the part's physical units."""

    max: np.ndarray
    min: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    def to_dict(self) -> dict[str, list[float]]:
        return {name: getattr(self, name).tolist() for name in STATISTICS}


@dataclass(frozen=True)
class VideoInfo:
    """One camera view; `resolution` is (width, height) in pixels, `fps` in frames per second."""

    resolution: tuple[int, int]
    channels: int = 3
    fps: float = 20.0


@dataclass(frozen=True)
class PartInfo:
    """One named slice of the state or action vector.

    Attributes:
        width: Number of values.
        absolute: False for values relative to the present state, such as deltas.
        rotation_type: One of `ROTATIONS`, or None when the part is no rotation.
        continuous: False for integer parts; those can only be normalised as ``binary``.
    """

    width: int
    absolute: bool = True
    rotation_type: str | None = None
    continuous: bool = True


@dataclass(frozen=True)
class DatasetMetadata:
    """Statistics and layout of one embodiment. All dicts are keyed by short part or view name."""

    embodiment_tag: str
    video: Mapping[str, VideoInfo]
    state: Mapping[str, PartInfo]
    action: Mapping[str, PartInfo]
    state_statistics: Mapping[str, Statistics]
    action_statistics: Mapping[str, Statistics]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further keys found inside ``statistics``, kept when written back (public files carry counts there)."""

    def part(self, key: str) -> PartInfo:
        """The layout of a full key, ``state.left_arm`` or ``action.left_arm``. Raises: PlanError."""
        return _look_up(key, {"state": self.state, "action": self.action})

    def statistics(self, key: str) -> Statistics:
        """The statistics of a full key. Raises: PlanError."""
        return _look_up(key, {"state": self.state_statistics, "action": self.action_statistics})

    def view(self, key: str) -> VideoInfo:
        """The camera of a full key, ``video.ego_view``. Raises: PlanError."""
        return _look_up(key, {"video": self.video})

    def to_dict(self) -> dict[str, Any]:
        """The entry of this embodiment in ``experiment_cfg/metadata.json``."""
        return {
            "statistics": {
                **self.extra,
                "state": {k: v.to_dict() for k, v in self.state_statistics.items()},
                "action": {k: v.to_dict() for k, v in self.action_statistics.items()},
            },
            "modalities": {
                "video": {k: {**vars(v), "resolution": list(v.resolution)} for k, v in self.video.items()},
                "state": {k: _part_to_dict(v) for k, v in self.state.items()},
                "action": {k: _part_to_dict(v) for k, v in self.action.items()},
            },
            "embodiment_tag": self.embodiment_tag,
        }

    @classmethod
    def from_dict(cls, tag: str, entry: Mapping[str, Any], source: str = "metadata.json") -> DatasetMetadata:
        """Read one entry of ``metadata.json``; `source` is what errors call the file.

        Raises: CheckpointError naming the key that is missing or malformed.
        """
        statistics, modalities = _child(entry, "statistics", source, tag), _child(entry, "modalities", source, tag)
        parts: dict[str, dict[str, PartInfo]] = {}
        values: dict[str, dict[str, Statistics]] = {}
        for modality in ("state", "action"):
            declared, measured = f"{tag}.modalities.{modality}", f"{tag}.statistics.{modality}"
            infos = _child(modalities, modality, source, f"{tag}.modalities")
            parts[modality] = {n: _part_from_dict(info, f"{source}: {declared}.{n}") for n, info in infos.items()}
            entries = _child(statistics, modality, source, f"{tag}.statistics")
            values[modality] = {
                n: statistics_from(each, f"{source}: {measured}.{n}", CheckpointError) for n, each in entries.items()
            }
            for name, info in parts[modality].items():
                found = values[modality].get(name)
                if found is not None and found.min.size != info.width:
                    what = f"{source}: {measured}.{name} has width {found.min.size}"
                    known = f"{declared}.{name} declares width {info.width}"
                    raise CheckpointError(what, known=known, fix=_WRITTEN_WITH_IT)
        video = {}
        for name, info in _child(modalities, "video", source, f"{tag}.modalities").items():
            try:
                width, height = (int(v) for v in info["resolution"])
                video[name] = VideoInfo((width, height), int(info.get("channels", 3)), float(info.get("fps", 0.0)))
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise CheckpointError(
                    f"{source}: {tag}.modalities.video.{name} is malformed: {info!r}",
                    known='{"resolution": [width, height], "channels": 3, "fps": 20.0}',
                    fix=_WRITTEN_WITH_IT,
                ) from error
        extra = {k: v for k, v in statistics.items() if k not in ("state", "action")}
        return cls(tag, video, parts["state"], parts["action"], values["state"], values["action"], extra)

    @classmethod
    def load(cls, path: str | Path, tag: str) -> DatasetMetadata:
        """Read the entry of `tag` from ``metadata.json``.

        Args:
            path: The file, or the checkpoint folder that holds ``experiment_cfg/metadata.json``.
            tag: Embodiment tag.
        Raises: CheckpointError for a missing or malformed file, PlanError for a tag that it does not hold.
        """
        path = metadata_path(path)
        entries = _read(path)
        if tag not in entries:
            raise unknown(PlanError, f"{path}: --embodiment_tag", tag, entries)
        return cls.from_dict(tag, entries[tag], str(path))

    def write(self, path: str | Path) -> Path:
        """Write this entry into ``metadata.json``, keeping the entries of other tags; returns the file.

        Args:
            path: The file, or a checkpoint folder (then ``experiment_cfg/metadata.json`` inside it).
        """
        path = metadata_path(path)
        entries = _read(path) if path.exists() else {}
        entries[self.embodiment_tag] = self.to_dict()
        path.parent.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that a reader never sees half a file.
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(entries, indent=4) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path


def metadata_path(path: str | Path) -> Path:
    """The metadata file that a path means: itself when it ends in ``.json``, else inside the checkpoint folder."""
    path = Path(path)
    return path if path.suffix == ".json" else path / "experiment_cfg" / "metadata.json"


def statistics_from(entry: Any, where: str, error: type[Gr00tError]) -> Statistics:
    """Statistics from a dict of six equally long lists of finite numbers; raises `error` naming `where`."""
    fix = f"every entry needs {', '.join(STATISTICS)} as lists of equal length"
    if not isinstance(entry, Mapping):
        raise error(f"{where}: statistics are {type(entry).__name__}, not an object", fix=fix)
    missing = [name for name in STATISTICS if name not in entry]
    if missing:
        raise error(f"{where}: statistic {missing[0]!r} is missing", known=sorted(entry), fix=fix)
    try:
        values = {name: np.atleast_1d(np.asarray(entry[name], dtype=np.float64)) for name in STATISTICS}
    except (TypeError, ValueError) as cause:
        raise error(f"{where}: statistics are not lists of numbers", fix=fix) from cause
    if len({v.shape for v in values.values()}) != 1 or values["min"].ndim != 1:
        raise error(f"{where}: statistics differ in length: {[v.shape for v in values.values()]}", fix=fix)
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise error(f"{where}: statistic {name!r} holds {value[~np.isfinite(value)][0]}", fix=fix)
    return Statistics(**values)


def _look_up(key: str, sections: Mapping[str, Mapping[str, Any]]) -> Any:
    section, _, name = key.partition(".")
    if section not in sections or name not in sections[section]:
        known = [f"{section}.{name}" for section, names in sections.items() for name in names]
        raise unknown(PlanError, "data config against metadata", key, known)
    return sections[section][name]


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file",
            known="a checkpoint holds experiment_cfg/metadata.json, with statistics per embodiment tag",
            fix="fetch it with the checkpoint, or write a dataset's: LeRobotDataset.metadata(tag).write()",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}", fix="fetch the file again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: holds {type(entries).__name__}", known='{"<embodiment tag>": {...}}')
    return entries


def _child(entry: Any, name: str, source: str, where: str) -> Mapping[str, Any]:
    child = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(child, Mapping):
        raise CheckpointError(
            f"{source}: {where}.{name} is missing or not an object",
            known=sorted(entry) if isinstance(entry, Mapping) else None,
            fix=_WRITTEN_WITH_IT,
        )
    return child


def _part_to_dict(part: PartInfo) -> dict[str, Any]:
    return {
        "absolute": part.absolute,
        "rotation_type": part.rotation_type,
        "shape": [part.width],
        "continuous": part.continuous,
    }


def _part_from_dict(info: Any, where: str) -> PartInfo:
    try:
        (width,) = info["shape"]
        part = PartInfo(int(width), bool(info["absolute"]), info.get("rotation_type"), bool(info["continuous"]))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{where} is malformed: {info!r}",
            known='{"absolute": true, "rotation_type": null, "shape": [7], "continuous": true}',
            fix=_WRITTEN_WITH_IT,
        ) from error
    if part.rotation_type is not None and part.rotation_type not in ROTATIONS:
        raise unknown(CheckpointError, f"{where}.rotation_type", part.rotation_type, ROTATIONS)
    return part
