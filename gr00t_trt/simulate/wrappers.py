"""gymnasium wrappers: action chunks, stacked observations, and a video of every episode."""

from __future__ import annotations

import re
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from ..common.video_file import VideoWriter
from ..errors import ObservationError
from .caption import caption

VIDEO_FPS = 10
STEPS_PER_FRAME = 2
LONGEST_NAME = 80
"""Characters of an instruction in a file name."""
GREEN = (90, 230, 120)
H264 = {"crf": "22", "profile": "high"}


class MultiStep(gymnasium.Wrapper):
    """Chunks of actions in, the latest observations out.

    Observations gain a leading time axis with the frames at the offsets; texts stay as they are. An action holds
    [n_action_steps, D] per part, and its rows are carried out one after another until the episode ends. The reward is
    the largest of the whole episode so far. ``info`` holds the last value of everything as an array of one, but for
    ``success``, which is true when any row of the action said so; the number of low-level steps so far under
    ``steps``; and lists of the rows' ``states``, ``rewards``, ``dones`` and ``actions``.

    Args:
        env: Observations under ``video.``, ``state.`` and ``annotation.`` keys, actions in a dict.
        video_offsets, state_offsets: Rows back from now, ending in 0; before the first step, its frame is repeated.
    Raises: ObservationError for an observation key of another kind.
    """

    def __init__(
        self, env: gymnasium.Env, *, n_action_steps: int, video_offsets: Sequence[int], state_offsets: Sequence[int]
    ):
        super().__init__(env)
        self.n_action_steps = n_action_steps
        self._offsets = {"video": list(video_offsets), "state": list(state_offsets), "annotation": None}
        self._past: deque[dict[str, Any]] = deque(maxlen=1 - min(*video_offsets, *state_offsets))
        inner, actions = env.observation_space, env.action_space
        if not isinstance(inner, spaces.Dict) or not isinstance(actions, spaces.Dict):
            what = "the environment's observations and actions are no dicts"
            raise ObservationError(what, known="keys such as video.")
        self.observation_space = spaces.Dict({key: self._space(key, own) for key, own in inner.items()})
        self.action_space = spaces.Dict({key: _repeated(own, n_action_steps) for key, own in actions.items()})
        self._rewards: list[float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        observation, info = self.env.reset(seed=seed, options=options)
        self._past.clear()
        self._past.extend([observation] * (self._past.maxlen or 1))
        self._rewards = []
        return self._stacked(), {**_last(info), "steps": np.array([0])}

    def step(self, action: Mapping[str, np.ndarray]) -> tuple[dict, float, bool, bool, dict]:
        rows: dict[str, list] = {"states": [], "rewards": [], "dones": [], "actions": []}
        terminated = truncated = success = False
        for number in range(self.n_action_steps):
            row = {key: value[number] for key, value in action.items()}
            observation, reward, terminated, truncated, info = self.env.step(row)
            self._past.append(observation)
            self._rewards.append(float(reward))
            success |= bool(np.any(info.get("success", False)))
            rows["states"].append({key: value for key, value in observation.items() if key.startswith("state.")})
            rows["rewards"].append(float(reward))
            rows["dones"].append(bool(terminated or truncated))
            rows["actions"].append(row)
            if terminated or truncated:
                break
        if "success" in info:
            info = {**info, "success": success}
        info = {**_last(info), "steps": np.array([len(self._rewards)]), **rows}
        return self._stacked(), max(self._rewards), bool(terminated), bool(truncated), info

    def _stacked(self) -> dict[str, Any]:
        latest = len(self._past) - 1
        out = {}
        for key, value in self._past[-1].items():
            offsets = self._offsets_of(key)
            out[key] = value if offsets is None else np.stack([self._past[latest + o][key] for o in offsets])
        return out

    def _space(self, key: str, own: spaces.Space) -> spaces.Space:
        offsets = self._offsets_of(key)
        return own if offsets is None else _repeated(own, len(offsets))

    def _offsets_of(self, key: str) -> list[int] | None:
        kind = key.partition(".")[0]
        if kind not in self._offsets:
            known = "keys that start with video., state. or annotation."
            raise ObservationError(f"the environment observes {key!r}", known=known)
        return self._offsets[kind]


def _repeated(space: spaces.Space, times: int) -> spaces.Box:
    if not isinstance(space, spaces.Box):
        raise ObservationError(f"the environment has a {type(space).__name__} for numbers", known="Box")
    low, high = (np.repeat(bound[None], times, axis=0) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=space.dtype)


def _last(info: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {key: np.array([value]) for key, value in info.items()}


class EpisodeVideo(gymnasium.Wrapper):
    """A video of every episode, named by its number, what was to be done and how it ended.

    Such as ``episode0003_place-the-pear-on-the-plate_success1.mp4``, or ``..._success0.mp4``. 10 frames per second, one
    every two low-level steps and the last one, each with its step below, and SUCCESS from when it is one. An episode
    that is left unfinished leaves no file.

    Args:
        env: Renders uint8 [H, W, 3], says ``success`` in ``info``, and the instruction under an ``annotation.`` key.
        episodes: The numbers of those to record; what is played beyond is not.
    """

    def __init__(self, env: gymnasium.Env, folder: Path, episodes: Sequence[int]):
        super().__init__(env)
        self.folder, self.episodes = folder, list(episodes)
        self._video: VideoWriter | None = None
        self._over = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        self._finish()
        result = self.env.reset(seed=seed, options=options)
        self._success, self._steps, self._over = False, 0, False
        if self.episodes:
            self._number = self.episodes.pop(0)
            name = "_".join(filter(None, (f"episode{self._number:04d}", _slug(result[0]))))
            # The id keeps two runs into one folder apart until the name says how it ended.
            self._video = VideoWriter(self.folder / f"{name}.{uuid.uuid4()}.mp4", VIDEO_FPS, H264)
            self._video.add(self._frame())
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._success |= bool(np.any(info.get("success", False)))
        self._steps += 1
        self._over = self._over or terminated or truncated
        if self._video is not None and (self._steps % STEPS_PER_FRAME == 0 or terminated or truncated):
            self._video.add(self._frame())
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        self._finish()
        super().close()

    def _finish(self) -> None:
        if self._video is None:
            return
        self._video.close()
        path = self._video.path
        if self._over:
            path.replace(path.with_name(f"{Path(path.stem).stem}_success{int(self._success)}.mp4"))
        else:
            path.unlink()
        self._video = None

    def _frame(self) -> np.ndarray:
        image = self.env.render()
        if not isinstance(image, np.ndarray) or image.ndim != 3:
            raise ObservationError("the environment renders no picture", fix="leave --video_dir out")
        even = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]  # yuv420p halves colour both ways
        where = f"EPISODE {self._number} STEP {self._steps}"
        return caption(even, f"{where} SUCCESS", GREEN) if self._success else caption(even, where)


def _slug(observation: Any) -> str:
    """The instruction of an observation, fit for a file name; nothing where there is none."""
    seen = observation if isinstance(observation, Mapping) else {}
    text = next((str(value) for key, value in seen.items() if str(key).startswith("annotation.")), "")
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:LONGEST_NAME].strip("-")
