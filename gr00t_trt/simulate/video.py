"""A video of every episode, named by what was to be done and how it ended. Never imports torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..common.interface import Observation
from ..common.video_file import VideoWriter
from ..errors import ObservationError
from .caption import caption
from .gym import gymnasium
from .multistep import instruction_of, succeeded, with_attribute

VIDEO_FPS = 10
DEFAULT_FPS = 20
"""Low-level steps per second of an environment that does not say: RoboCasa's."""
LONGEST_NAME = 80
"""Characters of an instruction in a file name."""
GREEN = (90, 230, 120)
H264 = {"crf": "22", "profile": "high"}


def steps_per_second(env: gymnasium.Env) -> float:
    """Low-level steps of an environment per second of its time."""
    return float(env.metadata.get("render_fps") or DEFAULT_FPS)


class EpisodeVideo(gymnasium.Wrapper):
    """Videos such as ``episode0003_pick-up-the-purple-cube_success1.mp4``, or ``..._success0.mp4``.

    10 frames per second of the environment's time and the last one, each with its step below, and SUCCESS where that
    step is one. An episode that nobody calls finished leaves no file.

    Args:
        env: Renders uint8 [H, W, 3], says in ``info`` whether it succeeded, and the instruction under an
            ``annotation.`` key.
    """

    def __init__(self, env: gymnasium.Env, folder: Path):
        super().__init__(env)
        self.folder = folder
        self._video: VideoWriter | None = None
        self._every = max(1, round(steps_per_second(env) / VIDEO_FPS))
        self._camera = with_attribute(env, "pictures_wanted")

    def reset(self, *, seed: int | None = None, options: Mapping[str, float] | None = None) -> tuple[Observation, dict]:
        """Option ``episode``, which goes no further: the number of the episode that begins, in its file's name."""
        self._drop()
        further = dict(options or {})
        self._number, self._success, self._steps = int(further.pop("episode", 0)), False, 0
        result = self.env.reset(seed=seed, options=further or None)
        self._name = "_".join(filter(None, (f"episode{self._number:04d}", _slug(instruction_of(result[0])))))
        # Another run into the same folder has another process.
        self._video = VideoWriter(self.folder / f"{self._name}{unfinished(os.getpid())}", VIDEO_FPS, H264)
        self._video.add(self._frame())
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self._steps += 1
        shown = self._steps % self._every == 0
        if shown and self._camera is not None:
            self._camera.pictures_wanted = True
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._success = succeeded(info)
        if self._video is not None and (shown or terminated or truncated):
            self._video.add(self._frame())
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._drop()
        super().close()

    def finish_video(self, success: bool) -> None:
        """The episode is over: give its video the name that says how it ended."""
        if self._video is not None:
            self._video.close()
            self._video.path.replace(self.folder / f"{self._name}_success{int(success)}.mp4")
            self._video = None

    def _drop(self) -> None:
        if self._video is not None:
            self._video.close()
            self._video.path.unlink(missing_ok=True)
            self._video = None

    def _frame(self) -> np.ndarray:
        image = self.env.render()
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise ObservationError("the environment renders no picture", fix="leave --video_dir out")
        even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]  # yuv420p halves colour both ways
        where = f"EPISODE {self._number} STEP {self._steps}"
        return caption(even, f"{where} SUCCESS", GREEN) if self._success else caption(even, where)


def unfinished(process: int) -> str:
    """How a video's name ends while a process still writes it."""
    return f".{process}.mp4"


def _slug(instruction: str) -> str:
    """An instruction, fit for a file name; nothing where there is none."""
    return re.sub(r"[^a-z0-9]+", "-", instruction.lower())[:LONGEST_NAME].strip("-")
