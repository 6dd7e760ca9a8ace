"""RoboCasa's GR1 tasks: found under either name, seeded whole, drawn only when looked at. Never imports torch."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from ..common.install import install_extra
from ..common.interface import Observation
from ..errors import PlanError
from .graphics import load_mujoco
from .gym import gymnasium

NAMESPACES = ("robocasa", "robocasa_gr1")
"""The original's, and that of the package index."""
PREFIXES = ("gr1_unified/", "robocasa_")
"""What its environment ids start with."""
FPS = 20
MISSING = (OSError, ValueError, IndexError)
"""What it raises for an asset that is not there: no file, one that MuJoCo cannot open, no object to choose from."""
LONG_VIEW, VIEW = "video.ego_view_bg_crop_pad_res256_freq20", "video.ego_view"
"""What RoboCasa calls the ego view, and what the GR1 data configs do."""


def is_robocasa(env_id: str) -> bool:
    """Whether an id looks like one of RoboCasa's."""
    return env_id.startswith(PREFIXES)


def register() -> str:
    """Import RoboCasa, which registers its environments. Returns: its namespace.

    Raises: PlanError where it is missing, or refuses the versions of what it needs.
    """
    load_mujoco()
    found = [name for name in NAMESPACES if importlib.util.find_spec(name) is not None]
    if not found:
        what = "RoboCasa is not installed: neither robocasa nor robocasa_gr1 can be imported"
        raise PlanError(what, fix=f"in an environment of its own, for its versions: {install_extra('robocasa')}")
    logging.disable(logging.WARNING)  # robosuite has a dozen things to say about what nobody asked for
    try:
        importlib.import_module(f"{found[0]}.utils.gym_utils")
    except Exception as error:  # it asserts the versions of MuJoCo, numpy and robosuite
        what = f"RoboCasa ({found[0]}) cannot be imported: {type(error).__name__}: {error}"
        known = "it wants exactly the versions of MuJoCo, numpy and robosuite that it was written for"
        raise PlanError(what, known=known, fix=f"in an environment of its own: {install_extra('robocasa')}") from error
    finally:
        logging.disable(logging.NOTSET)
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)  # and three of them again at every reset
    return found[0]


def assets_missing(namespace: str, error: Exception) -> PlanError:
    """What to raise when a scene cannot be built."""
    return PlanError(
        f"RoboCasa cannot build its scene: {type(error).__name__}: {error}",
        known="meshes and textures are no part of its package, and are downloaded once, some gigabytes",
        fix=f"python -m {namespace}.scripts.download_tabletop_assets -y",
    )


class RoboCasa(gymnasium.Wrapper):
    """One of RoboCasa's environments, with the keys of the GR1 data configs.

    Observation and action are as RoboCasa has them, but for the ego view, which is called ``video.ego_view``. A seed
    decides everything: scene, objects and their places; RoboCasa itself hands none to the generator it draws from.

    Attributes:
        pictures_wanted: Set to False before a step, its observation has no pictures and none are drawn: 94 % of a
            step's time on a CPU. State and later pictures are the same, bit for bit.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FPS}  # noqa: RUF012

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.pictures_wanted = True
        self._robosuite: Any = env.unwrapped.env  # type: ignore[attr-defined]
        self._make_sensors: Callable[..., Any] = self._robosuite._create_camera_sensors
        self._robosuite._create_camera_sensors = self._sensors
        spaces = {_renamed(key): own for key, own in env.observation_space.items()}  # type: ignore[attr-defined]
        self.observation_space = gymnasium.spaces.Dict(spaces)

    def reset(
        self, *, seed: int | None = None, options: dict[str, object] | None = None
    ) -> tuple[Observation, dict[str, object]]:
        random.seed(seed)
        self._robosuite.rng = np.random.default_rng(seed)
        self.pictures_wanted = True
        observation, info = self.env.reset(seed=seed, options=options)
        return self._shown(observation), info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, object]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._shown(observation), float(reward), terminated, truncated, info

    def _shown(self, observation: Observation) -> Observation:
        pictures = self.pictures_wanted
        return {_renamed(key): value for key, value in observation.items() if pictures or not key.startswith("video.")}

    def _sensors(self, *args: Any, **settings: Any) -> tuple[list[Any], list[str]]:
        """robosuite's cameras, but they draw only what will be seen."""
        sensors, names = self._make_sensors(*args, **settings)
        size = settings.get("cam_h"), settings.get("cam_w")
        return [self._lazy(sensor, (*size, 3)) for sensor in sensors], names

    def _lazy(self, sensor: Any, shape: Any) -> Any:
        blank = np.zeros(shape, np.uint8)

        def camera(obs_cache: Observation) -> np.ndarray:
            # robosuite also calls a sensor to learn its shape, with a cache of its own.
            asked = self.pictures_wanted and obs_cache is self._robosuite._obs_cache
            return np.asarray(sensor(obs_cache)) if asked else blank

        camera.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return camera


def _renamed(key: str) -> str:
    return VIEW if key == LONG_VIEW else key
