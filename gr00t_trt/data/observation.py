"""Validation of observations, and their conversion to one batched form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..common.notice import warn_once
from ..errors import ObservationError, nearest
from .embodiments import DATA_CONFIGS
from .metadata import LARGEST, DatasetMetadata
from .prompt import bracketed
from .transforms import DEFAULT_TEXT

ROBOCASA_VIEWS = ("video.ego_view_pad_res256_freq20", "video.ego_view_bg_crop_pad_res256_freq20")
"""Views that RoboCasa's GR1 environments send along with the one that is read."""


def validate_observation(
    observation: Observation,
    modality_config: Mapping[str, ModalityConfig],
    metadata: DatasetMetadata,
    *,
    bracketed_text: bool = False,
    default_text: str = DEFAULT_TEXT,
) -> tuple[dict[str, Any], bool]:
    """Check an observation and add the batch axis where it lacks one.

    Args:
        observation: ``video.<view>`` uint8 [T, H, W, 3] at the metadata's resolution; ``state.<part>`` numbers [T, D]
            in physical units; one ``annotation...`` key with the instruction: a string, a list of one, or an array of
            one. Or everything with a leading batch axis B, and B strings. Recorded ``action.*`` keys are left out, and
            so are, with a warning, the views and parts of a robot that its data config does not name.
        modality_config: Keys and horizons of the data config.
        metadata: Resolutions and widths.
        default_text: What the model was trained to read where there was no instruction.
        bracketed_text: Render the instruction of an unbatched observation as ``['text']``, as the original does.
    Returns: The observation with ``video.*`` uint8 [B, T, H, W, 3], ``state.*`` float32 or float64 [B, T, D] and the
        annotation as a list of B strings; and whether it came as a batch.
    Raises: ObservationError naming the key, the value and the fix; also for a key that nobody reads, and for no
        instruction where the data config names one.
    """
    if not isinstance(observation, Mapping):
        raise ObservationError(f"observation is {type(observation).__name__}", known="a dict of full keys")
    out: dict[str, Any] = {}
    batch: dict[str, int | None] = {}
    for modality, rank, check in (("video", 4, _video), ("state", 2, _state)):
        config = modality_config.get(modality)
        for key in config.modality_keys if config else ():
            if key not in observation:
                raise _missing(f"key {key!r} is missing", key, observation)
            value = _array(key, observation[key])
            lead = value.shape[0] if value.ndim == rank + 1 else None
            value = check(key, value, len(config.delta_indices), metadata)  # type: ignore[union-attr]
            out[key] = value if lead is not None else value[None]
            batch[key] = lead
    _check_batch(batch)
    size = next(iter(batch.values()), None)
    annotation = _annotation_key(observation, modality_config, default_text)
    _check_unread(observation, modality_config, metadata)
    if annotation is not None:
        language = modality_config.get("language")
        horizon = len(language.delta_indices) if language else 1
        texts = _texts(annotation, observation[annotation], size, horizon)
        out[annotation] = [bracketed(t) for t in texts] if bracketed_text and size is None else texts
    return out, size is not None


def example_observation(
    modality_config: Mapping[str, ModalityConfig],
    metadata: DatasetMetadata,
    *,
    instruction: str = "pick the pear from the counter and place it in the plate",
    batch: int | None = None,
) -> dict[str, Any]:
    """An observation with the right keys, shapes and dtypes, where no dataset is at hand; always the same one.

    Images are noise, which leaves nothing of a vision tower untried; states are the dataset's means.

    Args:
        batch: Samples with a leading batch axis; None for one observation without it.
    Returns: ``video.*`` uint8 [T, H, W, 3], ``state.*`` float64 [T, D], the annotation as a list of one string.
    """
    random = np.random.default_rng(0)
    lead = () if batch is None else (batch,)
    out: dict[str, Any] = {}
    for modality, config in modality_config.items():
        horizon = len(config.delta_indices)
        for key in config.modality_keys:
            if modality == "video":
                width, height = metadata.view(key).resolution
                out[key] = random.integers(0, 256, (*lead, horizon, height, width, 3), dtype=np.uint8)
            elif modality == "state":
                mean = np.asarray(metadata.statistics(key).mean, np.float64)
                out[key] = np.broadcast_to(mean, (*lead, horizon, len(mean))).copy()
            elif modality == "language":
                out[key] = [instruction] * (batch or 1)
    return out


def _missing(what: str, key: str, observation: Observation, hint: str = "") -> ObservationError:
    given = sorted(str(k) for k in observation)
    nested = [str(k) for k, value in observation.items() if isinstance(value, Mapping)]
    if nested:
        fix = (
            f"{nested[0]!r} is nested, as N1.6 and later generations send it; N1.5 takes one flat map, {key} and so on"
        )
        return ObservationError(what, known=given, fix=fix)
    close = nearest(key, [k for k in given if not k.startswith(("video.", "state.", "action.")) or k[:5] == key[:5]])
    fix = f"add {key} to the observation" + (f" (did you mean it by {close}?)" if close else "") + hint
    return ObservationError(what, known=given or "an empty observation", fix=fix)


def _check_unread(
    observation: Observation, modality_config: Mapping[str, ModalityConfig], metadata: DatasetMetadata
) -> None:
    """Refuse keys that mean nothing to this robot; say which of its own are not read."""
    read = {key for name, own in modality_config.items() if name != "action" for key in own.modality_keys}
    for key in observation:
        if key in read or (isinstance(key, str) and ("annotation" in key or key.startswith("action."))):
            continue
        if key not in _robot_keys(read, metadata):
            close = nearest(str(key), read)
            raise ObservationError(
                f"key {key!r} is not read",
                known=sorted(read),
                fix=f"did you mean {close}? Else leave it out" if close else "leave it out",
            )
        warn_once(f"{key} of the observation is not read: the data config does not name it")


def _robot_keys(read: set[str], metadata: DatasetMetadata) -> set[str]:
    """Keys of this robot: of its metadata, of built-in data configs that read more of it, and of its simulation."""
    own = {f"{section}.{name}" for section in ("video", "state") for name in getattr(metadata, section)}
    needed = {key for key in read if key.startswith(("video.", "state."))}
    each = ({*config.video_keys, *config.state_keys} for config in DATA_CONFIGS.values())
    return own.union(ROBOCASA_VIEWS, *(keys for keys in each if keys >= needed))


def _array(key: str, value: Any) -> np.ndarray:
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ObservationError(
            f"{key} is a masked array with missing values", fix="fill them in, or send the last ones"
        )
    try:
        array = np.asarray(value)
    except Exception as error:  # ragged lists, tensors on a GPU, objects with a failing __array__
        raise ObservationError(f"{key} is no array: {error}", fix="send a numpy array") from error
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # torch takes no view that runs backwards, such as a camera's BGR turned round.
    return array.copy() if any(stride < 0 for stride in array.strides) else array


def _video(key: str, value: np.ndarray, horizon: int, metadata: DatasetMetadata) -> np.ndarray:
    width, height = metadata.view(key).resolution
    known = f"uint8 [{horizon}, {height}, {width}, 3], or with a leading batch axis"
    if value.dtype != np.uint8:
        raise ObservationError(f"{key} is {value.dtype}", known=known, fix="send RGB bytes, 0 to 255")
    if value.ndim not in (4, 5):
        fix = f"add the time axis: {key}[None]" if value.ndim == 3 else "send one array per view"
        raise ObservationError(f"{key} has shape {value.shape}", known=known, fix=fix)
    if value.shape[-1] != 3:
        raise ObservationError(f"{key} has shape {value.shape}", known=known, fix="put the 3 colour channels last")
    if value.shape[-3:-1] != (height, width):
        raise ObservationError(
            f"{key} is {value.shape[-2]} x {value.shape[-3]} pixels (width x height)",
            known=f"{width} x {height}, the resolution that this checkpoint was trained with",
            fix=f"resize the frames to {width} x {height}, or use a checkpoint of this camera",
        )
    if value.shape[-4] != horizon:
        raise ObservationError(f"{key} holds {value.shape[-4]} frames", known=known, fix=f"send {horizon} per request")
    return value


def _state(key: str, value: np.ndarray, horizon: int, metadata: DatasetMetadata) -> np.ndarray:
    width = metadata.part(key).width
    known = f"numbers [{horizon}, {width}], or with a leading batch axis"
    if value.dtype.kind not in "fiub":
        raise ObservationError(f"{key} is {value.dtype}", known=known, fix="send float64 or float32")
    if value.ndim not in (2, 3):
        fix = f"add the time axis: {key}[None]" if value.ndim == 1 else "send one array per part"
        raise ObservationError(f"{key} has shape {value.shape}", known=known, fix=fix)
    if value.shape[-1] != width:
        raise ObservationError(f"{key} is {value.shape[-1]} wide", known=known, fix=f"send {width} values per row")
    if value.shape[-2] != horizon:
        raise ObservationError(f"{key} holds {value.shape[-2]} rows", known=known, fix=f"send {horizon} per request")
    if value.dtype not in (np.float32, np.float64):
        value = value.astype(np.float64)
    if not np.isfinite(value).all():
        position = tuple(int(i) for i in np.argwhere(~np.isfinite(value))[0])
        raise ObservationError(
            f"{key} holds {value[position]} at {list(position)}",
            known="finite numbers",
            fix="check the sensor, or repeat its last good reading",
        )
    if (np.abs(value) > LARGEST).any():
        what = f"{key} holds {value.flat[np.abs(value).argmax()]:g}"
        raise ObservationError(what, known=f"magnitudes up to {LARGEST:g}", fix="check the sensor and its unit")
    return value


def _check_batch(batch: Mapping[str, int | None]) -> None:
    sizes = set(batch.values())
    if len(sizes) > 1:
        given = ", ".join(f"{k}: {'no batch axis' if n is None else f'batch {n}'}" for k, n in batch.items())
        raise ObservationError(
            f"batch sizes differ: {given}",
            known="all keys with the same leading batch axis, or all without",
            fix="add or remove the first axis of the odd ones",
        )
    if 0 in sizes:
        raise ObservationError("the batch is empty", known="a leading axis of at least 1")


def _annotation_key(
    observation: Observation, modality_config: Mapping[str, ModalityConfig], default_text: str
) -> str | None:
    keys = [k for k in observation if isinstance(k, str) and "annotation" in k]
    language = modality_config.get("language")
    named = language.modality_keys if language else []
    if len(keys) > 1:
        known = ", ".join(named) or "one annotation key"
        raise ObservationError(
            f"{len(keys)} instructions: {', '.join(keys)}", known=known, fix="send exactly one annotation key"
        )
    if not keys and named:
        hint = f"; for no particular task, send {default_text!r}"
        raise _missing(f"no instruction: key {named[0]!r} is missing", named[0], observation, hint)
    return keys[0] if keys else None


def _texts(key: str, value: Any, batch: int | None, horizon: int) -> list[str]:
    if isinstance(value, str):
        return [str(value)] * (batch or 1)
    items = list(np.asarray(value, dtype=object).reshape(-1)) if value is not None else [value]
    for item in items:
        if not isinstance(item, str):
            raise ObservationError(
                f"{key} holds {type(item).__name__}: {str(item)[:60]!r}",
                known="a string, or a list of strings",
                fix="send the instruction as text",
            )
    if batch is None and len(items) == horizon:
        # A step of a dataset carries one text per observed row; the first is the instruction.
        items = items[:1]
    if len(items) != (batch or 1):
        raise ObservationError(
            f"{key} holds {len(items)} strings",
            known=f"one per sample of the batch: {batch}" if batch else "one string",
            fix="send one instruction per sample",
        )
    return [str(item) for item in items]
