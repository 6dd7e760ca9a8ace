"""Statistics and layout of one embodiment's state and action, from a checkpoint or a dataset."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..common.files import parse_json, write_whole
from ..errors import CheckpointError, Gr00tError, PlanError, nearest, unknown

EMBODIMENT_TAGS: Mapping[str, int] = {"gr1": 24, "oxe_droid": 17, "agibot_genie1": 26, "new_embodiment": 31}
"""Embodiment tag -> index of its projector among the model's 32."""

STATISTICS = ("max", "min", "mean", "std", "q01", "q99")
_EULER_ORDERS = ("rpy", "ryp", "pry", "pyr", "yrp", "ypr")
ROTATIONS = ("axis_angle", "quaternion", "rotation_6d", "matrix", *(f"euler_angles_{o}" for o in _EULER_ORDERS))
_WRITTEN_WITH_IT = "use the metadata.json that was written with this checkpoint"
_MADE = "`gr00t-trt metadata DATASET --embodiment_tag TAG` makes one from the dataset that it was trained on"
LARGEST = 1e9
"""Largest magnitude that a statistic or a state may have, in its unit: beyond it nothing physical is measured."""
WIDEST, LARGEST_SIDE = 10_000, 16_384
"""Most values of one part, and most pixels along one side of a frame."""

Entry = TypeVar("Entry")


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
    extra: Mapping[str, object] = field(default_factory=dict)
    """Further keys found inside ``statistics``, kept when written back (public files carry counts there)."""
    broken: Mapping[str, Gr00tError] = field(default_factory=dict)
    """Full key -> what is wrong with an entry that could not be read; raised when the key is asked for."""
    source: str = "metadata"
    """What errors call the file."""

    def part(self, key: str) -> PartInfo:
        """The layout of a full key, ``state.left_arm`` or ``action.left_arm``. Raises: PlanError."""
        return self._look_up(key, {"state": self.state, "action": self.action})

    def statistics(self, key: str) -> Statistics:
        """The statistics of a full key. Raises: PlanError."""
        return self._look_up(key, {"state": self.state_statistics, "action": self.action_statistics})

    def view(self, key: str) -> VideoInfo:
        """The camera of a full key, ``video.ego_view``. Raises: PlanError."""
        return self._look_up(key, {"video": self.video})

    def check(self, keys: Iterable[str]) -> None:
        """Refuse statistics that no recording can have, of the parts named by full keys; others decide nothing.

        Raises: CheckpointError naming file, part, statistic and value; PlanError for a key that is not there.
        """
        for key in keys:
            if key.startswith("video."):
                self.view(key)
                continue
            width, statistics = self.part(key).width, self.statistics(key)
            where = f"{self.source}: statistics of {key}"
            if statistics.min.size != width:
                what = f"{where} are {statistics.min.size} wide"
                raise CheckpointError(what, known=f"its modality declares width {width}", fix=_WRITTEN_WITH_IT)
            if (problem := impossible(statistics)) is not None:
                raise CheckpointError(f"{where}: {problem}", fix=f"{_WRITTEN_WITH_IT}; {_MADE}")

    def _look_up(self, key: str, sections: Mapping[str, Mapping[str, Entry]]) -> Entry:
        if key in self.broken:
            raise self.broken[key]
        section, _, name = key.partition(".")
        if section not in sections or name not in sections[section]:
            known = [f"{section}.{name}" for section, names in sections.items() for name in names]
            raise unknown(PlanError, f"{self.source} has no key that the data config asks for", key, known)
        return sections[section][name]

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

        A part or view that cannot be read goes to `broken`: it is an error only for whoever needs it.

        Raises: CheckpointError for an entry of another form, or one that says it is another tag's.
        """
        where, broken = f"{source}: {tag}", dict[str, Gr00tError]()
        sections = {name: _child(entry, name, where) for name in ("statistics", "modalities")}
        own = entry.get("embodiment_tag", tag)
        if own != tag:
            what = f"{source}: the entry {tag!r} says that its embodiment_tag is {own!r}"
            raise CheckpointError(
                what, known="the tag chooses the weights as well as the statistics", fix=_WRITTEN_WITH_IT
            )

        def read(within: str, modality: str, one: Callable[[Any, str], Entry]) -> dict[str, Entry]:
            own = _child(sections[within], modality, f"{where}.{within}")
            return read_each(own, modality, f"{where}.{within}.", one, broken)

        values = partial(statistics_from, error=CheckpointError)
        state, state_statistics = read("modalities", "state", _part_from_dict), read("statistics", "state", values)
        action, action_statistics = read("modalities", "action", _part_from_dict), read("statistics", "action", values)
        video = read("modalities", "video", _view_from_dict)
        extra = {k: v for k, v in sections["statistics"].items() if k not in ("state", "action")}
        return cls(tag, video, state, action, state_statistics, action_statistics, extra, broken, source)

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
            close = nearest(tag, entries)
            meant = f"did you mean {close}? Else: " if close else ""
            raise PlanError(
                f"{path}: --embodiment_tag: no statistics for {tag!r}",
                known=entries,
                fix=f"{meant}use the tag of the fine-tuning, or --metadata FILE; {_MADE}",
            )
        return cls.from_dict(tag, entries[tag], str(path))

    def write(self, path: str | Path) -> Path:
        """Write this entry into ``metadata.json``, keeping the entries of other tags; returns the file.

        Args:
            path: The file, or a checkpoint folder (then ``experiment_cfg/metadata.json`` inside it).
        """
        path = metadata_path(path)
        entries = _read(path) if path.exists() else {}
        entries[self.embodiment_tag] = self.to_dict()
        return write_whole(json.dumps(entries, indent=4) + "\n", path, "metadata", "--out")


def metadata_path(path: str | Path) -> Path:
    """The metadata file that a path means: itself when it ends in ``.json``, else inside the checkpoint folder."""
    path = Path(path)
    return path if path.suffix == ".json" else path / "experiment_cfg" / "metadata.json"


def statistics_from(entry: Any, where: str, error: type[Gr00tError]) -> Statistics:
    """Statistics from a dict of six equally long lists of numbers, which `impossible` judges.

    Raises: `error` naming `where` for another form.
    """
    fix = f"every entry needs {', '.join(STATISTICS)} as lists of equal length"
    if not isinstance(entry, Mapping):
        raise error(f"{where}: statistics are {type(entry).__name__}, not an object", fix=fix)
    missing = [name for name in STATISTICS if name not in entry]
    if missing:
        raise error(f"{where}: statistic {missing[0]!r} is missing", known=sorted(entry), fix=fix)
    try:
        values = {name: _numbers(entry[name]) for name in STATISTICS}
    except (TypeError, ValueError, OverflowError) as cause:
        raise error(f"{where}: statistics are not lists of numbers", fix=fix) from cause
    if len({v.shape for v in values.values()}) != 1 or values["min"].ndim != 1:
        raise error(f"{where}: statistics differ in length: {[v.shape for v in values.values()]}", fix=fix)
    return Statistics(**values)


def _numbers(value: Any) -> np.ndarray:
    """float64 [D]. Raises: ValueError, TypeError for text and booleans, which numpy would take for numbers."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"not numbers: {str(value)[:40]}")
    return np.atleast_1d(array.astype(np.float64))


def impossible(statistics: Statistics) -> str | None:
    """Why these cannot be the statistics of any recording, in words; None where they can."""
    values = {name: getattr(statistics, name) for name in STATISTICS}
    for name, value in values.items():
        bad = ~(np.abs(value) <= LARGEST)
        if bad.any():
            return _at(bad, f"{name} is {{}}", value)
    low, high, spread = values["min"], values["max"], values["std"]
    # Float32 leaves a constant column a standard deviation of a few of its last bits.
    moves = spread > 1e-4 * np.maximum(1.0, np.abs(high))
    quantiles = values["q99"] - values["q01"]
    checks = (
        (low > high, "min {} exceeds max {}", (low, high)),
        (quantiles < 0, "q01 {} exceeds q99 {}", (values["q01"], values["q99"])),
        (spread < 0, "std {} is negative", (spread,)),
        ((low == high) & moves, "min and max are both {}, but std is {}", (low, spread)),
        # With 98 % of the values in one point, no more than 2 % can lie elsewhere.
        (
            (quantiles == 0) & (spread > 0.15 * (high - low)) & moves,
            "q01 and q99 are both {}, but std is {}",
            (values["q01"], spread),
        ),
    )
    return next((_at(bad, text, *shown) for bad, text, shown in checks if bad.any()), None)


def _at(bad: np.ndarray, text: str, *values: np.ndarray) -> str:
    index = int(np.flatnonzero(bad)[0])
    return f"{text.format(*(f'{value[index]:.6g}' for value in values))} at index {index}"


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: no such file",
            known="a checkpoint holds experiment_cfg/metadata.json, with statistics per embodiment tag",
            fix=f"copy experiment_cfg from the training run, or pass --metadata FILE; {_MADE}",
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}", fix="fetch the file again") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: holds {type(entries).__name__}", known='{"<embodiment tag>": {...}}')
    return entries


def _child(entry: Any, name: str, where: str) -> Mapping[str, object]:
    child = entry.get(name) if isinstance(entry, Mapping) else None
    if not isinstance(child, Mapping):
        raise CheckpointError(
            f"{where}.{name} is missing or not an object",
            known=sorted(entry) if isinstance(entry, Mapping) else None,
            fix=_WRITTEN_WITH_IT,
        )
    return child


def read_each(
    entries: Mapping[str, object],
    section: str,
    where: str,
    read: Callable[[Any, str], Entry],
    broken: dict[str, Gr00tError],
) -> dict[str, Entry]:
    """Every entry of a section that can be read; the others' errors go to `broken` under their full keys.

    Args:
        where: What errors put in front of the full key.
    """
    out = {}
    for name, entry in entries.items():
        try:
            out[name] = read(entry, f"{where}{section}.{name}")
        except Gr00tError as error:
            broken.setdefault(f"{section}.{name}", error)
    return out


def _view_from_dict(info: Any, where: str) -> VideoInfo:
    try:
        width, height = (int(v) for v in info["resolution"])
        if not (0 < width <= LARGEST_SIDE and 0 < height <= LARGEST_SIDE):
            raise ValueError(f"{width} x {height} pixels")
        return VideoInfo((width, height), int(info.get("channels", 3)), float(info.get("fps", 0.0)))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{where} is malformed: {str(info)[:200]}",
            known='{"resolution": [width, height], "channels": 3, "fps": 20.0}',
            fix=_WRITTEN_WITH_IT,
        ) from error


def _part_to_dict(part: PartInfo) -> dict[str, object]:
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
        if not 0 < part.width <= WIDEST:
            raise ValueError(f"width {part.width}")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{where} is malformed: {str(info)[:200]}",
            known='{"absolute": true, "rotation_type": null, "shape": [7], "continuous": true}',
            fix=_WRITTEN_WITH_IT,
        ) from error
    if part.rotation_type is not None and part.rotation_type not in ROTATIONS:
        raise unknown(CheckpointError, f"{where}.rotation_type", part.rotation_type, ROTATIONS)
    return part
