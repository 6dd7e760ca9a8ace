"""An environment whose every number is known, which gymnasium finds as ``counting:counting/Counting-v0``."""

from __future__ import annotations

import os
import signal
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from gr00t_trt.common.interface import ModalityConfig

ENV_ID = "counting:counting/Counting-v0"
KILLED, RAISING, UNBUILT = 13, 14, 15
"""Seeds of episodes whose second step ends the process, or raises; and of one whose reset raises."""
CONFIG = {
    "video": ModalityConfig([0], ["video.ego_view"]),
    "state": ModalityConfig([0], ["state.part"]),
    "action": ModalityConfig([0], ["action.part"]),
    "language": ModalityConfig([0], ["annotation.human.task_description"]),
}


class Counting(gymnasium.Env):
    """Step n shows n, pays n for n up to 3 and 0 afterwards, and ends after `length` steps; succeeds in the third.

    Its pictures are left out when nobody wants them.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(
        self,
        length: int = 5,
        *,
        success: bool = True,
        text: str = "count",
        key: str = "success",
        render_mode: Any = None,
    ):
        self.length, self.success, self.text, self.key, self.render_mode = length, success, text, key, render_mode
        self.pictures_wanted, self.drawn = True, 0
        self.observation_space = spaces.Dict(
            {
                "video.ego_view": spaces.Box(0, 255, (32, 32, 3), np.uint8),
                "video.behind": spaces.Box(0, 255, (32, 32, 3), np.uint8),
                "state.part": spaces.Box(-99, 99, (2,), np.float64),
                "annotation.task": spaces.Text(20),
            }
        )
        self.action_space = spaces.Dict({"action.part": spaces.Box(-1, 1, (2,), np.float32)})

    def _observation(self) -> dict[str, Any]:
        state = {"state.part": np.full(2, float(self.n)), "annotation.task": self.text}
        if not self.pictures_wanted:
            return state
        self.drawn += 1
        return {"video.ego_view": self.render(), "video.behind": self.render(), **state}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert options is None
        self.n, self.seed, self.done = 0, seed, []
        if seed == UNBUILT:
            raise ValueError("no place found for the cup")
        return self._observation(), {self.key: False}

    def step(self, action):
        self.n += 1
        self.done.append(action["action.part"])
        if self.n == 2 and self.seed == KILLED:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.n == 2 and self.seed == RAISING:
            raise FloatingPointError("physics exploded\nat length")
        success = self.success and self.n == 3
        return (
            self._observation(),
            float(self.n if self.n < 4 else 0),
            self.n >= self.length,
            False,
            {self.key: success},
        )

    def render(self):
        return np.full((32, 32, 3), 40 * self.n % 256, np.uint8)


class Silent(Counting):
    """Never says whether it succeeded."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self):
        super().__init__(key="speed")


class Broken(Counting):
    """Cannot be made."""

    def __init__(self, render_mode: Any = None):
        super().__init__(length=1 // 0)


gymnasium.register("counting/Counting-v0", entry_point="counting:Counting")
gymnasium.register("counting/Silent-v0", entry_point="counting:Silent")
gymnasium.register("counting/Broken-v0", entry_point="counting:Broken")
