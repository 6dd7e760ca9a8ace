"""Several steps of an environment at once: chunks of actions in, what a data config wants to see out. No torch."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..common.interface import ModalityConfig, Observation
from ..errors import ObservationError
from .gym import gymnasium, spaces
from .step import Step

SUCCESS_KEYS = ("success", "is_success", "succeed")
"""Keys of `info` under which simulators report success."""
SEEN = ("video", "state", "language")


class MultiStep(gymnasium.Wrapper):
    """Carries out the rows of an action one after another, until the episode ends or its time is up.

    A video (`EpisodeVideo`) is told how its episode ended. An environment with an attribute ``pictures_wanted`` is
    told before each step whether its pictures will be looked at, and may leave them out; only the last row's are,
    unless the policy looks back.

    Args:
        env: Observations under ``video.``, ``state.`` and ``annotation.`` keys, actions in a dict.
        config: Which of them are seen, and at which offsets back from now; before the first step, its frame repeats.
        limit: Low-level steps after which `env` ends an episode, whose last picture is looked at.
        keep_frames: Keep what was seen before each row.
    Raises: ObservationError for an environment that lacks what the data config names.

    Attributes:
        parts: What a row of an action holds: ``action.<part>`` -> its width.
    """

    def __init__(
        self,
        env: gymnasium.Env,
        config: Mapping[str, ModalityConfig],
        *,
        n_action_steps: int,
        limit: int,
        keep_frames: bool = False,
    ):
        super().__init__(env)
        self.n_action_steps, self.limit, self.keep_frames = n_action_steps, limit, keep_frames
        self._config = {kind: config[kind] for kind in SEEN if kind in config}
        check_keys(env, self._config)
        self.parts = action_widths(env)
        self._camera, self._video = with_attribute(env, "pictures_wanted"), with_attribute(env, "finish_video")
        self._expert = with_attribute(env, "expert_action")
        offsets = [offset for own in self._config.values() for offset in own.delta_indices]
        self._past: deque[Observation] = deque(maxlen=1 - min(offsets, default=0))
        looks_back = "video" in config and list(config["video"].delta_indices) != [0]
        self._only_last = not (keep_frames or looks_back)

    def begin(self, seed: int | None, options: dict[str, float] | None = None) -> tuple[Observation, str]:
        """Begin an episode. Returns: the first observation, as `Step` has it, and the instruction."""
        self._want_picture(True)
        observation, _ = self.env.reset(seed=seed, options=options)
        self._past.clear()
        self._past.extend([observation] * (self._past.maxlen or 1))
        self._steps, self._reward, self._success, self._any_row = 0, -np.inf, False, False
        return self._stacked(), instruction_of(observation)

    def act(self, action: Mapping[str, np.ndarray] | None) -> Step:
        """Carry out the rows of an action, each part [n_action_steps, D]; None lets the environment's expert act.

        Raises: ObservationError without such an expert, and where the environment does not say whether it succeeded.
        """
        if action is None and self._expert is None:
            raise ObservationError("this environment has no expert")
        rows: list[dict[str, np.ndarray]] = []
        frames: list[Observation] = []
        over = success = False
        for number in range(self.n_action_steps):
            if action is None:
                row = self._expert.expert_action()
            else:  # as a dataset would store it: what is recorded is then exactly what was done
                row = {key: np.asarray(value[number], np.float32) for key, value in action.items()}
            if self.keep_frames:
                frames.append(self._named(self._past[-1]))
            last = number == self.n_action_steps - 1 or self._steps + 1 >= self.limit
            success, over = self._advance(row, picture=last or not self._only_last)
            rows.append(row)
            if over:
                break
        self._success |= success
        if over and self._video is not None:
            self._video.finish_video(self._success)
        taken = {key: np.stack([row[key] for row in rows]) for key in rows[0]}
        return Step(
            self._stacked(), len(rows), self._steps, over, self._success, self._any_row, self._reward, taken, frames
        )

    def has_expert(self) -> bool:
        return self._expert is not None

    def _advance(self, row: Mapping[str, np.ndarray], *, picture: bool) -> tuple[bool, bool]:
        """One low-level step. Returns: whether it is a success, and whether the episode is over."""
        self._want_picture(picture)
        observation, reward, terminated, truncated, info = self.env.step(dict(row))
        self._past.append(observation)
        self._steps += 1
        self._reward = max(self._reward, float(reward))
        success = succeeded(info)
        self._any_row |= success
        return success, bool(terminated or truncated)

    def _want_picture(self, wanted: bool) -> None:
        if self._camera is not None:
            self._camera.pictures_wanted = wanted

    def _named(self, observation: Observation) -> Observation:
        """What the data config names of one observation."""
        keys = [key for own in self._config.values() for key in own.modality_keys]
        return {key: _value(observation, key) for key in keys if _has(observation, key)}

    def _stacked(self) -> Observation:
        out: dict[str, np.ndarray | str] = {}
        for kind, own in self._config.items():
            past = [self._past[len(self._past) - 1 + offset] for offset in own.delta_indices]
            for key in own.modality_keys:
                if kind == "language":
                    out[key] = _value(self._past[-1], key)
                elif all(key in observation for observation in past):
                    out[key] = np.stack([observation[key] for observation in past])
        return out


def succeeded(info: Mapping[str, object]) -> bool:
    """Whether a step's `info` speaks of success. Raises: ObservationError where it does not speak of it."""
    for key in SUCCESS_KEYS:
        if key in info:
            return bool(np.asarray(info[key]).any())
    what = "the environment does not say whether it succeeded"
    raise ObservationError(what, known=f"a truth value in its info, called {', '.join(SUCCESS_KEYS)}")


def instruction_of(observation: Observation) -> str:
    """The text under the first ``annotation.`` key; empty where there is none."""
    return next((str(value) for key, value in observation.items() if key.startswith("annotation.")), "")


def check_keys(env: gymnasium.Env, config: Mapping[str, ModalityConfig]) -> None:
    """Raises: ObservationError for an environment without what the data config names, naming both sides."""
    known = env.observation_space
    if not isinstance(known, spaces.Dict):
        what = f"the environment observes a {type(known).__name__} without keys"
        raise ObservationError(what, known="a dict with keys such as video.ego_view and state.left_arm")
    wanted = [key for own in config.values() for key in own.modality_keys]
    missing = [key for key in wanted if not _has(known.spaces, key)]
    if missing:
        raise ObservationError(
            f"the environment shows no {', '.join(missing)}",
            known=f"it shows {', '.join(known)}; the policy wants {', '.join(wanted)}",
            fix="choose the data config of this environment's robot, or a server that has it",
        )


def action_widths(env: gymnasium.Env) -> dict[str, int]:
    """``action.<part>`` -> its width. Raises: ObservationError for actions that are no dict of flat boxes."""
    known = env.action_space
    parts = known.spaces if isinstance(known, spaces.Dict) else {}
    widths = {key: own.shape[0] for key, own in parts.items() if isinstance(own, spaces.Box) and len(own.shape) == 1}
    if not parts or len(widths) != len(parts):
        raise ObservationError(f"the environment takes {known}", known="a dict of boxes, such as action.left_arm [7]")
    return widths


def _has(known: Mapping[str, object], key: str) -> bool:
    return key in known or (key.startswith("annotation.") and _only_text(known) is not None)


def _value(observation: Observation, key: str) -> Any:
    """An instruction is handed over under the name that the data config has for it."""
    if key in observation or not key.startswith("annotation."):
        return observation[key]
    return observation[str(_only_text(observation))]


def _only_text(known: Mapping[str, object]) -> str | None:
    texts = [key for key in known if key.startswith("annotation.")]
    return texts[0] if len(texts) == 1 else None


def with_attribute(env: Any, name: str) -> Any:
    """The environment, among those wrapped in one another, that has an attribute of its own; None where none has."""
    while True:
        if name in dir(type(env)) or name in vars(env):
            return env
        if not isinstance(env, gymnasium.Wrapper):
            return None
        env = env.env
