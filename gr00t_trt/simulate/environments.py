"""Making environments: our own table top, RoboCasa's GR1 tasks where it is installed, any gymnasium id otherwise."""

from __future__ import annotations

import importlib
import multiprocessing
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..common.install import install_extra
from ..errors import PlanError, unknown

try:
    import gymnasium
    from gymnasium.wrappers import TimeLimit
except ImportError as error:
    raise PlanError("simulated worlds need gymnasium: not installed", fix=install_extra("sim")) from error

from . import tabletop
from .wrappers import EpisodeVideo, MultiStep

ROBOCASA = ("robosuite", "robocasa", "robocasa.utils.gym_utils")
"""Importing these registers RoboCasa's environments."""
LONG_VIEW, VIEW = tabletop.VIEW, "video.ego_view"
"""What RoboCasa calls the ego view, and what the GR1 data configs do."""


def find(env_id: str) -> None:
    """Make sure that an id is registered, importing RoboCasa for ids that are not ours.

    Raises: PlanError for an id that nobody registers, with the nearest one and how to install RoboCasa.
    """
    if env_id in gymnasium.registry:
        return
    try:
        for module in ROBOCASA:
            importlib.import_module(module)
    except ImportError as error:
        raise PlanError(
            f"{env_id}: no such environment, and RoboCasa cannot be imported: {error}",
            known=f"{tabletop.ENV_ID}; with RoboCasa gr1_unified/..._GR1ArmsAndWaistFourierHands_Env",
            fix="install NVIDIA's robocasa-gr1-tabletop-tasks and robosuite for the GR1 tasks",
        ) from error
    if env_id not in gymnasium.registry:
        raise unknown(PlanError, "environment", env_id, [name for name in gymnasium.registry if "/" in name])


def make_plain(env_id: str) -> Any:
    """One environment as gymnasium makes it. Raises: PlanError for one that is unknown or cannot be made."""
    find(env_id)
    try:
        return gymnasium.make(env_id, enable_render=True, disable_env_checker=True)
    except Exception as error:  # simulators fail in their own ways: a missing asset, no display, a refused argument
        raise PlanError(f"environment {env_id} cannot be made: {type(error).__name__}: {error}") from error


def make(
    env_id: str, recorded: Sequence[int], *, max_episode_steps: int, video_dir: Path | None, **several: Any
) -> gymnasium.Env[Any, Any]:
    """One environment, wrapped: time limit, then a video of its first episodes, then several steps at once.

    Args:
        recorded: The numbers of the episodes that are recorded.
        max_episode_steps: Limit in low-level steps.
        video_dir: Where videos go; None records none.
        several: As for `MultiStep`.
    Raises: PlanError for an environment that cannot be made.
    """
    if multiprocessing.parent_process() is not None:
        # Ctrl-C reaches all processes of a terminal; the first one closes the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    env: Any = TimeLimit(make_plain(env_id), max_episode_steps)
    if video_dir is not None:
        env = EpisodeVideo(env, video_dir, recorded)
    return MultiStep(env, **several)


def numbers(environment: int, quota: int, environments: int) -> list[int]:
    """The numbers of the episodes that one environment plays, of all that are played side by side."""
    return [environment + environments * played for played in range(quota)]


def abandon(envs: gymnasium.vector.VectorEnv) -> None:
    """Close environments after an error or an interruption, when their processes may be stuck, or gone already."""
    for settings in ({"timeout": 2.0}, {"terminate": True}):
        with suppress(Exception):
            envs.close(**settings)
            return
    envs.closed = True  # else it would be tried once more when Python ends


def make_vector(env_id: str, quotas: Sequence[int], **settings: Any) -> gymnasium.vector.VectorEnv:
    """Environments side by side: one in this process, several in processes of their own.

    Args:
        quotas: Per environment, how many of its episodes count and are recorded.
        settings: As for `make`.
    """
    makers = [partial(make, env_id, numbers(i, quota, len(quotas)), **settings) for i, quota in enumerate(quotas)]
    if len(makers) == 1:
        return gymnasium.vector.SyncVectorEnv(makers)
    return gymnasium.vector.AsyncVectorEnv(makers, shared_memory=False, context="spawn")
