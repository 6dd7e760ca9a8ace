"""The data config of a GR00T N1.5 that LeRobot saved: what its processors did in training, from their own files.

It differs from Isaac-GR00T's in every step: whole vectors of state and action, images uncropped and in one tile,
cameras in alphabetical order, the instruction as the text of a list.

Source: LeRobot 0.4.4, lerobot/policies/groot/processor_groot.py and lerobot/processor/pipeline.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..data import (
    ComposedModalityTransform,
    ConcatTransform,
    DataConfig,
    DatasetMetadata,
    GR00TTransform,
    PartInfo,
    StateActionToTensor,
    StateActionTransform,
    Statistics,
    VideoInfo,
)
from ..data.metadata import statistics_from
from ..errors import CheckpointError
from ..model import load_config
from ..model.config_section import Section, read_object
from ..model.weight_files import opened

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"
STATE, ACTION = "observation.state", "action"
DEFAULT_TASK = "Perform the task."
_PACK, _UNPACK = "groot_pack_inputs_v3", "groot_action_unpack_unnormalize_v1"
_STEPS = {
    PREPROCESSOR: (
        "rename_observations_processor", "to_batch_processor", _PACK, "groot_eagle_encode_v3",
        "groot_eagle_collate_v3", "device_processor",
    ),
    POSTPROCESSOR: (_UNPACK, "device_processor"),
}  # fmt: skip
"""What is done to an observation and to an action; a file with another step would be misunderstood."""


class LeRobotDataConfig(DataConfig):
    """The keys and the arithmetic of one LeRobot checkpoint.

    Keys are ``video.<camera>``, ``state.state``, ``action.action`` and ``annotation.human.task_description``.

    Args:
        folder: LeRobot's ``pretrained_model``.
    Attributes:
        tag, embodiment: The embodiment tag of the training, and the index of its projector.
    Raises: CheckpointError naming LeRobot's file for what is missing, malformed or not understood.
    """

    name = "of the LeRobot checkpoint"
    state_keys = ("state.state",)
    action_keys = ("action.action",)
    language_keys = ("annotation.human.task_description",)

    def __init__(self, folder: Path):
        self.folder = folder
        self._features = _Features(folder / "config.json")
        self.video_keys = [f"video.{name}" for name in self._features.cameras]
        self._pack, self._pack_state = _step(folder, PREPROCESSOR, _PACK)
        self._unpack, self._unpack_state = _step(folder, POSTPROCESSOR, _UNPACK)
        for section in (self._pack, self._unpack):
            section.only("normalize_min_max", (True,), default=True)
        self._unpack.only("env_action_dim", (self._features.action, 0), default=0, why="the shape of action")
        self._pack.only("state_horizon", (1,), default=1)
        head = load_config(folder).action_head
        self._pack.only("action_horizon", (head.action_horizon,), default=16, why="the model")
        self.action_indices = tuple(range(head.action_horizon))
        self.max_state_dim = self._pack.integer("max_state_dim")
        self.embodiment_tag = self.tag = self._pack.text("embodiment_tag")
        # LeRobot's own rule for a tag that its table lacks: projector 0 is what it has trained.
        table, most = self._pack.section("embodiment_mapping"), head.max_num_embodiments - 1
        self.embodiment = table.integer(self.tag, 0, minimum=0, maximum=most)

    def metadata(self) -> DatasetMetadata:
        """Statistics and cameras of the training. Raises: CheckpointError where LeRobot has not saved them."""
        state = _statistics(self._pack_state, STATE, self._features.state, self.folder / PREPROCESSOR)
        action = _statistics(self._unpack_state, ACTION, self._features.action, self.folder / POSTPROCESSOR)
        return DatasetMetadata(
            embodiment_tag=self.tag,
            video={name: VideoInfo(size) for name, size in self._features.cameras.items()},
            state={"state": PartInfo(self._features.state)},
            action={"action": PartInfo(self._features.action)},
            state_statistics={"state": state},
            action_statistics={"action": action},
            source=str(self.folder / PREPROCESSOR),
        )

    def transform(self) -> ComposedModalityTransform:
        modes = dict.fromkeys((*self.state_keys, *self.action_keys), "min_max")
        return ComposedModalityTransform(
            [
                # LeRobot's datasets and robots give float32, and its processors compute in the dtype that they get.
                StateActionToTensor(self.state_keys, output_dtypes=dict.fromkeys(self.state_keys, torch.float32)),
                StateActionToTensor(self.action_keys),
                StateActionTransform([*self.state_keys, *self.action_keys], normalization_modes=modes),
                ConcatTransform(
                    video_concat_order=self.video_keys,
                    state_concat_order=self.state_keys,
                    action_concat_order=self.action_keys,
                ),
                GR00TTransform(
                    action_horizon=len(self.action_indices),
                    max_state_dim=self.max_state_dim,
                    default_instruction=DEFAULT_TASK,
                    render=self.prompt_text,
                    max_tiles=1,
                    embodiment=self.embodiment,
                ),
            ]
        )

    def prompt_text(self, task: str) -> str:
        """An instruction as LeRobot puts it into the prompt: the text of a list that holds it."""
        task = task or DEFAULT_TASK
        if self._pack.flag("formalize_language", False):
            task = "".join(c for c in task.lower() if c.isalnum() or c.isspace())
        return str([task])

    def tokenizer_folder(self) -> Path | None:
        """Where LeRobot keeps the tokenizer's files on this machine; None where it has not been."""
        name = Section.read(self.folder / "config.json").text(
            "tokenizer_assets_repo", "lerobot/eagle2hg-processor-groot-n1p5"
        )
        hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
        home = os.path.expanduser(os.environ.get("HF_LEROBOT_HOME", f"{hub}/lerobot"))
        folder = Path(home) / name
        return folder if os.path.isfile(folder / "vocab.json") and os.path.isfile(folder / "merges.txt") else None


class _Features:
    """What LeRobot's config.json says of the robot.

    Attributes:
        cameras: Name -> width and height in pixels, in the order of the model's views.
        state, action: Widths.
    """

    def __init__(self, file: Path):
        inputs, outputs = (_features(file, key) for key in ("input_features", "output_features"))
        prefix = "observation.images."
        images = {key: shape for key, (kind, shape) in inputs.items() if kind == "VISUAL"}
        # A single camera without a name counts only where there is none with one.
        named = {key: shape for key, shape in images.items() if key.startswith(prefix)}
        chosen = named or {key: shape for key, shape in images.items() if key == "observation.image"}
        self.cameras = {key.removeprefix(prefix).removeprefix("observation."): _size(file, key, chosen[key])
                        for key in sorted(chosen)}  # fmt: skip
        if not self.cameras:
            raise _refused(file, "input_features names no camera", f"{prefix}<camera>, of type VISUAL")
        self.state, self.action = _width(file, inputs, STATE), _width(file, outputs, ACTION)


def _refused(file: Path, what: str, known: str | None = None, *, fix: str | None = None) -> CheckpointError:
    return CheckpointError(f"LeRobot's {file}: {what}", known=known, fix=fix)


def _features(file: Path, key: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Feature -> type and shape."""
    entries, out = read_object(file).get(key), {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n <= 8192 for n in shape):
            known = '{"type": "VISUAL", "shape": [3, 480, 640]}'
            raise _refused(file, f"{key}.{name} is malformed: {str(entry)[:80]}", known)
        out[name] = (str(entry.get("type")), tuple(shape))
    return out


def _size(file: Path, key: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) != 3 or shape[0] != 3:
        raise _refused(file, f"input_features.{key}.shape: {list(shape)}", "[3, height, width]")
    return shape[2], shape[1]


def _width(file: Path, features: Mapping[str, tuple[str, tuple[int, ...]]], key: str) -> int:
    _, shape = features.get(key, ("", ()))
    if len(shape) != 1:
        raise _refused(file, f"no feature {key} with a width: {list(shape)}", f'"{key}": shape [D]')
    return shape[0]


def _step(folder: Path, name: str, wanted: str) -> tuple[Section, dict[str, torch.Tensor]]:
    """The settings and the stored tensors of one step of a processor."""
    file = folder / name
    if not file.is_file():
        what = f"{folder}: {name} is missing, which says how LeRobot prepared the model's inputs"
        raise CheckpointError(what, fix="copy the whole pretrained_model folder; LeRobot 0.4 and later save it there")
    steps = read_object(file).get("steps")
    known = ", ".join(_STEPS[name])
    found: Mapping[str, Any] | None = None
    for step in steps if isinstance(steps, list) else ():
        kind = step.get("registry_name", step.get("class")) if isinstance(step, dict) else step
        if kind not in _STEPS[name]:
            raise _refused(file, f"step {str(kind)[:80]!r} is not understood", known)
        found = step if kind == wanted else found
    if found is None:
        raise _refused(file, f"step {wanted} is missing", f"LeRobot 0.4 to 0.5.1 writes the steps {known}")
    settings = found.get("config")
    section = Section(file, settings if isinstance(settings, dict) else {}, f"{wanted}.")
    return section, _stored(folder, file, found.get("state_file"))


def _stored(folder: Path, file: Path, name: Any) -> dict[str, torch.Tensor]:
    if name is None:
        return {}
    if not isinstance(name, str) or Path(name).name != name or not os.path.isfile(folder / name):
        raise _refused(file, f"names {str(name)[:200]!r}, which is not in {folder}", fix="copy it there")
    with opened(folder / name) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  a file handle, not a dict


def _statistics(state: Mapping[str, torch.Tensor], key: str, width: int, file: Path) -> Statistics:
    names = ("min", "max", "mean", "std")
    missing = [name for name in names if f"{key}.{name}" not in state]
    if missing:
        raise _refused(
            file,
            f"no statistics of {key} are saved with it: {', '.join(missing)} missing",
            "a state_file beside it with those of the training data",
            fix="save the processors again with LeRobot, from the training dataset: make_pre_post_processors(config, "
            "dataset_stats=dataset.meta.stats), then save_pretrained of both",
        )
    values = {name: state[f"{key}.{name}"].double().flatten().tolist() for name in names}
    # Quantiles are kept by later versions only, and nothing here is normalised by them.
    found = statistics_from({**values, "q01": values["min"], "q99": values["max"]}, f"{file}: {key}", CheckpointError)
    if found.min.size != width:
        raise _refused(file, f"statistics of {key} are {found.min.size} wide", f"{width} in config.json")
    return found
