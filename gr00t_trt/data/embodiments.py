"""Data configs: for each robot, its cameras, state and action parts, what is done to them, and its instruction key.

Source: Isaac-GR00T, gr00t/experiment/data_config.py.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ..common.interface import ModalityConfig
from ..errors import Gr00tError, PlanError, unknown
from .concat_transform import ConcatTransform
from .metadata import EMBODIMENT_TAGS, embodiment_index
from .state_action_transforms import StateActionSinCosTransform, StateActionToTensor, StateActionTransform
from .transforms import ComposedModalityTransform, GR00TTransform, ModalityTransform
from .video_transforms import VideoColorJitter, VideoCrop, VideoResize, VideoToNumpy, VideoToTensor

__all__ = ["DATA_CONFIGS", "EMBODIMENT_TAGS", "DataConfig", "Processing", "data_config", "embodiment_index"]


@dataclass(frozen=True)
class Processing:
    """What happens to the parts of a state or an action.

    Attributes:
        mode: Normalisation of every part without an entry in `modes`; ``sin_cos`` is for whole states; None: untouched.
        modes: Part -> its own mode, or None for untouched.
        rotations: Part -> rotation type that it is converted to.
    """

    mode: str | None = "min_max"
    modes: Mapping[str, str | None] = field(default_factory=dict)
    rotations: Mapping[str, str] = field(default_factory=dict)


class DataConfig:
    """One data config. Subclass a built-in one and override attributes, or write a class with the same two methods.

    Keys are full (``video.ego_view``); part names in the two `Processing` are short.
    """

    name: str = ""
    embodiment_tag: str | None = None
    """The pretrained embodiment that it was made for; None for robots that a checkpoint is fine-tuned to."""
    video_keys: Sequence[str] = ()
    state_keys: Sequence[str] = ()
    action_keys: Sequence[str] = ()
    language_keys: Sequence[str] = ()
    observation_indices: Sequence[int] = (0,)
    action_indices: Sequence[int] = tuple(range(16))
    state_processing: Processing = Processing()
    action_processing: Processing = Processing()

    def modality_config(self) -> dict[str, ModalityConfig]:
        """Keys and row offsets of video, state, action and language."""
        return {
            "video": ModalityConfig(list(self.observation_indices), list(self.video_keys)),
            "state": ModalityConfig(list(self.observation_indices), list(self.state_keys)),
            "action": ModalityConfig(list(self.action_indices), list(self.action_keys)),
            "language": ModalityConfig(list(self.observation_indices), list(self.language_keys)),
        }

    def transform(self) -> ComposedModalityTransform:
        """The chain from an observation to model inputs, and back for actions."""
        return ComposedModalityTransform(
            transforms=[
                VideoToTensor(apply_to=self.video_keys),
                VideoCrop(apply_to=self.video_keys, scale=0.95),
                VideoResize(apply_to=self.video_keys, height=224, width=224, interpolation="linear"),
                VideoColorJitter(apply_to=self.video_keys, brightness=0.3, contrast=0.4, saturation=0.5, hue=0.08),
                VideoToNumpy(apply_to=self.video_keys),
                *_vector_transforms(self.state_keys, self.state_processing),
                *_vector_transforms(self.action_keys, self.action_processing),
                ConcatTransform(
                    video_concat_order=self.video_keys,
                    state_concat_order=self.state_keys,
                    action_concat_order=self.action_keys,
                ),
                GR00TTransform(
                    state_horizon=len(self.observation_indices),
                    action_horizon=len(self.action_indices),
                    max_state_dim=64,
                    max_action_dim=32,
                ),
            ]
        )


def _vector_transforms(keys: Sequence[str], processing: Processing) -> list[ModalityTransform]:
    if processing.mode == "sin_cos":
        return [StateActionToTensor(apply_to=keys), StateActionSinCosTransform(apply_to=keys)]
    names = {key: key.partition(".")[2] for key in keys}
    modes = {k: m for k, n in names.items() if (m := processing.modes.get(n, processing.mode)) is not None}
    rotations = {k: processing.rotations[n] for k, n in names.items() if n in processing.rotations}
    return [
        StateActionToTensor(apply_to=keys),
        StateActionTransform(apply_to=keys, normalization_modes=modes, target_rotations=rotations),
    ]


@dataclass(frozen=True)
class _Row:
    """One line of the table; names are short and separated by spaces."""

    class_name: str
    video: str
    state: str
    action: str
    language: str
    state_processing: Processing = Processing()
    action_processing: Processing = Processing()
    tag: str | None = None


_SIN_COS = Processing("sin_cos")
_GR1 = "left_arm right_arm left_hand right_hand"
_G1 = "left_leg right_leg waist left_arm right_arm left_hand right_hand"
_TASK = "human.action.task_description"
_PANDA_QUATERNIONS = Processing(
    modes={"right_arm_eef_quat": None, "left_arm_eef_quat": None},
    rotations={"right_arm_eef_quat": "rotation_6d", "left_arm_eef_quat": "rotation_6d"},
)
_AGIBOT = (
    "left_arm_joint_position right_arm_joint_position left_effector_position right_effector_position "
    "head_position waist_position"
)

_TABLE: Mapping[str, _Row] = {
    "fourier_gr1_arms_only": _Row("FourierGr1ArmsOnlyDataConfig", "ego_view", _GR1, _GR1, _TASK, _SIN_COS, tag="gr1"),
    "fourier_gr1_arms_waist": _Row(
        "FourierGr1ArmsWaistDataConfig",
        "ego_view",
        f"{_GR1} waist",
        f"{_GR1} waist",
        "human.coarse_action",
        _SIN_COS,
        tag="gr1",
    ),
    "fourier_gr1_full_upper_body": _Row(
        "FourierGr1FullUpperBodyDataConfig", "front_view", f"{_GR1} waist neck", f"{_GR1} waist neck", _TASK, tag="gr1"
    ),
    "bimanual_panda_gripper": _Row(
        "BimanualPandaGripperDataConfig",
        "right_wrist_view left_wrist_view front_view",
        "right_arm_eef_pos right_arm_eef_quat right_gripper_qpos left_arm_eef_pos left_arm_eef_quat left_gripper_qpos",
        "right_arm_eef_pos right_arm_eef_rot right_gripper_close left_arm_eef_pos left_arm_eef_rot left_gripper_close",
        _TASK,
        _PANDA_QUATERNIONS,
        Processing(None, {"right_gripper_close": "binary", "left_gripper_close": "binary"}),
    ),
    "bimanual_panda_hand": _Row(
        "BimanualPandaHandDataConfig",
        "right_wrist_view left_wrist_view ego_view",
        "right_arm_eef_pos right_arm_eef_quat right_hand left_arm_eef_pos left_arm_eef_quat left_hand",
        "right_arm_eef_pos right_arm_eef_rot right_hand left_arm_eef_pos left_arm_eef_rot left_hand",
        _TASK,
        _PANDA_QUATERNIONS,
        Processing(None, {"right_hand": "min_max", "left_hand": "min_max"}),
    ),
    "single_panda_gripper": _Row(
        "SinglePandaGripperDataConfig",
        "left_view right_view wrist_view",
        "end_effector_position_relative end_effector_rotation_relative gripper_qpos base_position base_rotation",
        "end_effector_position end_effector_rotation gripper_close base_motion control_mode",
        _TASK,
        Processing(rotations={"end_effector_rotation_relative": "rotation_6d", "base_rotation": "rotation_6d"}),
        Processing(modes={"gripper_close": "binary", "control_mode": "binary"}),
    ),
    "so100": _Row("So100DataConfig", "webcam", "single_arm gripper", "single_arm gripper", "human.task_description"),
    "so100_dualcam": _Row(
        "So100DualCamDataConfig", "front wrist", "single_arm gripper", "single_arm gripper", "human.task_description"
    ),
    "unitree_g1": _Row("UnitreeG1DataConfig", "rs_view", _GR1, _GR1, "human.task_description"),
    "unitree_g1_full_body": _Row("UnitreeG1FullBodyDataConfig", "rs_view", _G1, _GR1, "human.task_description"),
    "oxe_droid": _Row(
        "OxeDroidDataConfig",
        "exterior_image_1 exterior_image_2 wrist_image",
        "eef_position eef_rotation gripper_position",
        "eef_position_delta eef_rotation_delta gripper_position",
        "language.language_instruction",
        Processing(modes={"eef_rotation": None}, rotations={"eef_rotation": "rotation_6d"}),
        Processing(None, {"gripper_position": "binary"}, {"eef_rotation_delta": "axis_angle"}),
        tag="oxe_droid",
    ),
    "agibot_genie1": _Row(
        "AgibotGenie1DataConfig",
        "top_head hand_left hand_right",
        _AGIBOT,
        f"{_AGIBOT} robot_velocity",
        "language.action_text",
        tag="agibot_genie1",
    ),
}


def _class_of(name: str, row: _Row) -> type[DataConfig]:
    def keys(section: str, names: str) -> list[str]:
        return [f"{section}.{n}" for n in names.split()]

    attributes = {
        "__module__": __name__,
        "__doc__": f"The built-in data config `{name}`.",
        "name": name,
        "embodiment_tag": row.tag,
        "video_keys": keys("video", row.video),
        "state_keys": keys("state", row.state),
        "action_keys": keys("action", row.action),
        "language_keys": keys("annotation", row.language),
        "state_processing": row.state_processing,
        "action_processing": row.action_processing,
    }
    return type(row.class_name, (DataConfig,), attributes)


DATA_CONFIGS: Mapping[str, type[DataConfig]] = {name: _class_of(name, row) for name, row in _TABLE.items()}
"""Built-in data configs by name. Their classes can also be imported from here, as `So100DataConfig` and so on."""


def __getattr__(name: str) -> Any:
    for cls in DATA_CONFIGS.values():
        if cls.__name__ == name:
            return cls
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def data_config(name: str) -> Any:
    """A data config: an object with `modality_config()` and `transform()`.

    Args:
        name: A built-in name; ``module.path:ClassName``, searched first in the working directory; or
            ``path/to/file.py:ClassName``. The class is made without arguments.
    Raises: PlanError for an unknown name, or a class that cannot be imported, made or used.
    """
    if ":" in name:
        return _external(name)
    if name not in DATA_CONFIGS:
        raise unknown(PlanError, "--data_config", name, DATA_CONFIGS)
    return DATA_CONFIGS[name]()


def check_tag(config: Any, tag: str) -> None:
    """Refuse the weights of one pretrained robot for the data config of another. Raises: PlanError."""
    own = getattr(config, "embodiment_tag", None)
    if own is not None and tag not in (own, "new_embodiment"):
        raise PlanError(
            f"--embodiment_tag {tag} with the data config {getattr(config, 'name', type(config).__name__)}, "
            f"which was made for {own}",
            known=f"{own}, or new_embodiment for a checkpoint that was fine-tuned under it",
            fix=f"pass --embodiment_tag {own}, or the data config of {tag}",
        )


def _external(name: str) -> Any:
    module_name, _, class_name = name.rpartition(":")
    where = f"--data_config {name}"
    try:
        if module_name.endswith(".py"):
            module = _module_of_file(Path(module_name))
        else:
            with _searched_first(Path.cwd()):
                module = importlib.import_module(module_name)
    except FileNotFoundError as error:
        raise PlanError(f"{where}: no such file: {module_name}", fix="the form is path/to/file.py:ClassName") from error
    except (Exception, SystemExit) as error:  # the module is the user's: anything can happen while it runs
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "gr00t":
            raise _written_for_isaac(where, str(error)) from error
        raise PlanError(
            f"{where}: module {module_name!r} cannot be imported: {type(error).__name__}: {error}",
            known=f"searched in {Path.cwd()}, then in Python's path",
            fix="the form is module.path:ClassName, or path/to/file.py:ClassName",
        ) from error
    cls = getattr(module, class_name, None)
    if not callable(cls):
        classes = [k for k, v in vars(module).items() if isinstance(v, type)]
        raise unknown(PlanError, f"{where}: class in {module_name}", class_name, classes)
    missing = [method for method in ("modality_config", "transform") if not callable(getattr(cls, method, None))]
    if missing:
        raise PlanError(
            f"{where}: {class_name} has no {' and no '.join(missing)}",
            known="a data config has modality_config() and transform()",
        )
    step = f"{class_name}()"
    try:
        config = cls()
        step = "modality_config()"
        keys = {name: list(each.modality_keys) for name, each in config.modality_config().items()}
        step = "transform()"
        transform = config.transform()
    except Gr00tError:
        raise
    except Exception as error:
        raise PlanError(
            f"{where}: {step} failed: {type(error).__name__}: {error}",
            known="a class made without arguments, whose modality_config() maps modalities to ModalityConfig",
        ) from error
    if not {"video", "action"} <= set(keys):
        raise PlanError(f"{where}: modality_config() lacks video or action", known=list(keys))
    for name, own in keys.items():
        start = "annotation." if name == "language" else f"{name}."
        for key in own:
            if not str(key).startswith(start):
                raise PlanError(f"{where}: {name} key {key!r}", known=f"keys that start with {start!r}")
    if type(transform).__module__.partition(".")[0] == "gr00t":
        raise _written_for_isaac(where, f"its transform is {type(transform).__module__}'s")
    if not isinstance(transform, ComposedModalityTransform):
        raise PlanError(f"{where}: transform() gives {type(transform).__name__}", known="ComposedModalityTransform")
    return config


def _written_for_isaac(where: str, why: str) -> PlanError:
    return PlanError(
        f"{where} was written for Isaac-GR00T: {why}",
        known="the same classes under the same names, with the same arguments, in gr00t_trt.data",
        fix="replace its imports from gr00t.data.dataset, gr00t.data.transform.… and gr00t.model.transforms by "
        "`from gr00t_trt.data import ModalityConfig, ComposedModalityTransform, …`",
    )


def _module_of_file(path: Path) -> ModuleType:
    """A module from its file, which may import its neighbours."""
    path = path.expanduser().resolve(strict=True)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None  # the name ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _searched_first(path.parent):
        spec.loader.exec_module(module)
    return module


@contextmanager
def _searched_first(folder: Path) -> Iterator[None]:
    """Inside, modules are looked for in a folder before the rest of Python's path."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
