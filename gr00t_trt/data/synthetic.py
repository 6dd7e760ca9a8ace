"""A made-up LeRobot v2 dataset for any built-in data config, for tests, demonstrations and first runs."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from ..common.private_folder import distrust, make_private
from ..errors import DatasetError, PlanError
from . import embodiments
from .layout import DEFAULT_COLUMNS, read_info, read_modality
from .layout_v2 import StorageV2
from .parquet import column_statistics, write_table
from .rotations import convert
from .video import write_video
from .writer import CHUNK, DATA_PATH, VIDEO_PATH, described, slices, write_meta

FPS = 20
TASKS = (
    "pick the pear from the counter and place it in the plate",
    "push the red block to the left",
    "open the top drawer",
    "valid",
)
VERSION = 1
"""Raise when the content changes, so that folders of an older version are not reused."""

_WIDTHS = {
    "left_arm": 7, "right_arm": 7, "left_hand": 6, "right_hand": 6, "left_leg": 6, "right_leg": 6,
    "waist": 3, "neck": 3, "single_arm": 5, "gripper": 1,
    "gripper_qpos": 2, "right_gripper_qpos": 2, "left_gripper_qpos": 2, "base_motion": 4,
    "left_arm_joint_position": 7, "right_arm_joint_position": 7, "left_effector_position": 1,
    "right_effector_position": 1, "head_position": 2, "waist_position": 2, "robot_velocity": 2,
    "gripper_close": 1, "right_gripper_close": 1, "left_gripper_close": 1, "control_mode": 1, "gripper_position": 1,
}  # fmt: skip
_QUATERNIONS = ("right_arm_eef_quat", "left_arm_eef_quat", "end_effector_rotation_relative", "base_rotation")
_SWITCHES = ("gripper_close", "right_gripper_close", "left_gripper_close", "control_mode")


def synthetic_dataset(
    cache: str | Path | None = None,
    *,
    data_config: str = "fourier_gr1_arms_only",
    episodes: int = 2,
    length: int = 32,
    seed: int = 0,
    resolution: tuple[int, int] = (256, 256),
) -> Path:
    """The folder of a synthetic dataset, written on first use and reused afterwards.

    The dataset is built beside its place and renamed into it, so processes that start together cannot see a part of
    it, or spoil each other's.

    Args:
        cache: Folder to keep it in; a folder of this user alone in the system's temporary directory when None.
        data_config, episodes, length, seed, resolution: As in `write_synthetic_dataset`.
    Raises: DatasetError for a folder that another user made, or can write to; PlanError as `write_synthetic_dataset`.
    """
    if cache is None:
        user = os.getuid() if hasattr(os, "getuid") else "user"
        cache = Path(tempfile.gettempdir()) / f"gr00t_trt-{user}"
    width, height = resolution
    label = data_config
    if ":" in data_config:
        # A class of one's own, module:Class or file.py:Class: no folder name, and its keys may change between runs.
        modalities = embodiments.data_config(data_config).modality_config()
        keys = json.dumps({name: list(each.modality_keys) for name, each in modalities.items()})
        label = f"{re.sub('[^A-Za-z0-9_.]+', '-', data_config)[-60:]}-{zlib.crc32(keys.encode()):08x}"
    folder = Path(cache) / f"synthetic-{label}-{episodes}x{length}-{width}x{height}-seed{seed}-v{VERSION}"
    make_private(Path(cache))
    for each in (Path(cache), folder):
        if (why := distrust(each)) is not None:
            fix = f"remove it, or make it yours: chmod go-w {each}"
            raise DatasetError(f"synthetic dataset: {each}: {why}", known="a folder of this user alone", fix=fix)
    if _is_complete(folder):
        return folder
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=cache))
    try:
        write_synthetic_dataset(
            building, data_config=data_config, episodes=episodes, length=length, seed=seed, resolution=resolution
        )
        _move_into_place(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def write_synthetic_dataset(
    folder: str | Path,
    *,
    data_config: str = "fourier_gr1_arms_only",
    episodes: int = 2,
    length: int = 32,
    seed: int = 0,
    resolution: tuple[int, int] = (256, 256),
) -> Path:
    """Write a LeRobot v2 dataset with the keys of a data config: parquet, H.264 videos and all of ``meta``.

    Joints follow smooth curves, actions are the next row's state where both have the part, quaternions have unit
    length, switches are 0 or 1; each camera sees coloured shapes that move.

    Args:
        folder: Made if absent; files in it are overwritten.
        data_config: Built-in name (or ``module:Class``).
        episodes: Number of episodes.
        length: Rows per episode.
        seed: Of all random choices.
        resolution: Width and height of every view in pixels, both even.
    Returns: The folder.
    Raises: PlanError for an unknown data config or sizes that cannot be written.
    """
    config = embodiments.data_config(data_config)
    if episodes < 1 or length < 1 or any(side < 16 or side % 2 for side in resolution):
        raise PlanError(
            f"synthetic dataset: {episodes} episodes of {length} rows at {resolution[0]} x {resolution[1]}",
            known="at least 1 episode and 1 row; width and height even, at least 16",
        )
    folder = Path(folder)
    keys = {name: [k.partition(".")[2] for k in c.modality_keys] for name, c in config.modality_config().items()}
    missing = [name for name in ("video", "state", "action") if not keys.get(name)]
    if missing:
        raise PlanError(f"synthetic dataset: data config {data_config} has no {missing[0]} key to make up", known=keys)
    random = np.random.default_rng(seed)
    # One set of curves per part and episode, shared by state and action, makes actions track the state.
    curves = {name: random.uniform(0.2, 1.0, size=(3, 8)) for name in sorted({*keys["state"], *keys["action"]})}
    annotations = keys.get("language") or ["human.task_description"]
    files = []
    for episode in range(episodes):
        place = {"episode_chunk": episode // CHUNK, "episode_index": episode}
        columns: dict[str, np.ndarray] = {}
        for section, column in DEFAULT_COLUMNS.items():
            shift = 1 if section == "action" else 0
            rows = np.arange(length) + shift
            parts = [_trajectory(part, section, curves[part], episode, rows) for part in keys[section]]
            columns[column] = np.concatenate(parts, axis=1)
        columns |= _bookkeeping(episode, length, annotations)
        files.append(folder / DATA_PATH.format(**place))
        write_table(files[-1], columns)
        for number, view in enumerate(keys["video"]):
            path = folder / VIDEO_PATH.format(video_key=f"observation.images.{view}", **place)
            write_video(path, _scene(random.spawn(1)[0], number, length, resolution), FPS)
    robot = getattr(config, "name", "") or "synthetic"
    _write_meta(folder, robot, {**keys, "language": annotations}, files, length, resolution)
    return folder


def _layout(name: str) -> tuple[int, dict[str, str | bool]]:
    """Width of a part, and what modality.json says of it beside its place."""
    if name in _QUATERNIONS:
        return 4, {"rotation_type": "quaternion"}
    if name.endswith(("eef_rot", "end_effector_rotation")):
        return 3, {"rotation_type": "axis_angle"}
    absolute = "delta" not in name
    if name.startswith("eef_rotation"):
        return 3, {"rotation_type": "euler_angles_rpy", "absolute": absolute}
    return _WIDTHS.get(name, 3), {"absolute": absolute}


def _trajectory(name: str, section: str, curve: np.ndarray, episode: int, rows: np.ndarray) -> np.ndarray:
    """float64 [len(rows), D] in plausible physical units."""
    width, _ = _layout(name)
    amplitude, speed, phase = curve[0], curve[1], 2 * np.pi * curve[2] + 0.7 * episode
    time = rows[:, None] / FPS
    wave = amplitude * np.sin(2 * np.pi * speed * time + phase)
    if name in _QUATERNIONS:
        return np.asarray(convert(torch.from_numpy(wave[:, :3]), "axis_angle", "quaternion"))
    if name in _SWITCHES or (section == "action" and name == "gripper_position"):
        return (wave[:, :width] > 0).astype(np.float64)
    if "delta" in name:
        return 0.05 * wave[:, :width]
    return wave[:, :width]


def _bookkeeping(episode: int, length: int, annotations: list[str]) -> dict[str, np.ndarray]:
    rows = np.arange(length)
    task = np.full(length, episode % (len(TASKS) - 1))
    return {
        "timestamp": rows / FPS,
        **{f"annotation.{name}": task for name in annotations},
        "task_index": task,
        "episode_index": np.full(length, episode),
        "frame_index": rows,
        "index": rows + episode * length,
        "next.reward": np.zeros(length),
        "next.done": rows == length - 1,
    }


def _scene(random: np.random.Generator, view: int, length: int, resolution: tuple[int, int]) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] frames: a graded background, a square that slides and a disc that circles."""
    width, height = resolution
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    background = np.stack([x * (160 / width), y * (160 / height), (x + y) * (160 / (width + height))], axis=-1)
    background = np.roll(background, view, axis=-1) + 40
    colours = random.uniform(0, 255, size=(2, 3))
    offset = random.uniform(0, 2 * np.pi)
    side, radius = 0.1 * min(width, height), 0.08 * min(width, height)
    for row in range(length):
        turn = 2 * np.pi * row / 40 + offset
        image = background.copy()
        left, top = width * (0.5 + 0.3 * np.sin(turn)), height * 0.7
        image[(abs(x - left) < side) & (abs(y - top) < side)] = colours[0]
        centre = width * (0.5 + 0.25 * np.cos(turn)), height * (0.35 + 0.2 * np.sin(turn))
        image[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2] = colours[1]
        yield image.astype(np.uint8)


def _write_meta(
    folder: Path, robot: str, keys: dict[str, list[str]], files: list[Path], length: int, size: tuple[int, int]
) -> None:
    layouts = {section: {name: _layout(name) for name in keys[section]} for section in DEFAULT_COLUMNS}
    modality: dict[str, Mapping[str, object]] = {}
    for section, own in layouts.items():
        places = slices({name: width for name, (width, _) in own.items()})
        modality[section] = {name: {**places[name], **said} for name, (_, said) in own.items()}
    modality["video"] = {view: {"original_key": f"observation.images.{view}"} for view in keys["video"]}
    modality["annotation"] = {name: {} for name in keys["language"]}
    width, height = size
    video = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
        "video_info": {"video.fps": float(FPS), "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False},
    }
    features: dict[str, object] = {f"observation.images.{view}": video for view in keys["video"]}
    for section, column in DEFAULT_COLUMNS.items():
        features[column] = {"dtype": "float64", "shape": [sum(width for width, _ in layouts[section].values())]}
    lengths = [length] * len(files)
    objects = {
        "info": described("v2.0", robot, float(FPS), lengths, len(TASKS), len(keys["video"]), features),
        "modality": modality,
        "stats": {name: found.to_dict() for name, found in column_statistics(files).items()},
    }
    lists = {
        "tasks": [{"task_index": i, "task": task} for i, task in enumerate(TASKS)],
        "episodes": [
            {"episode_index": i, "tasks": [TASKS[i % (len(TASKS) - 1)]], "length": n} for i, n in enumerate(lengths)
        ],
    }
    write_meta(folder, objects, lists)


def _is_complete(folder: Path) -> bool:
    """True unless a cleaner of temporary files has removed something."""
    needed = [folder / "meta" / "tasks.jsonl", folder / "meta" / "stats.json"]
    try:
        storage, views = StorageV2(folder, read_info(folder)), read_modality(folder).video.values()
        needed += [*storage.files(), *(storage.clip(each, view).path for each in storage.episodes for view in views)]
    except Exception:
        return False
    return all(path.is_file() for path in needed)


def _move_into_place(building: Path, folder: Path) -> None:
    while True:
        try:
            os.rename(building, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if _is_complete(folder):  # another process was first
                return
        aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.old.", dir=folder.parent))
        # Of several processes that find the same damaged folder, one moves it away and the others find it gone.
        with suppress(FileNotFoundError):
            os.rename(folder, aside / "damaged")
        shutil.rmtree(aside, ignore_errors=True)
