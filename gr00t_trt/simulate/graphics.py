"""MuJoCo and what it draws with: imported here, with an error that says what is missing. Never imports torch."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ..common.install import install, install_extra
from ..errors import PlanError

DISPLAYS = ("DISPLAY", "WAYLAND_DISPLAY")


def choose_gl() -> None:
    """Let MuJoCo draw without a display where there is none. It reads the choice when it is imported, and only then."""
    headless = sys.platform == "linux" and not any(os.environ.get(name) for name in DISPLAYS)
    if headless and "mujoco" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "egl")


def load_mujoco() -> Any:
    """The module mujoco. Raises: PlanError where it, or what it draws with, is missing, and for a release too new."""
    choose_gl()
    try:
        mujoco = importlib.import_module("mujoco")
    except ModuleNotFoundError as error:
        if error.name != "mujoco":
            raise cannot_draw(error) from error
        raise PlanError("simulated arms need MuJoCo: not installed", fix=install_extra("sim")) from error
    except Exception as error:  # its OpenGL loader fails in many ways, none of them a class of its own
        raise cannot_draw(error) from error
    check_version(mujoco)
    return mujoco


def check_version(mujoco: Any) -> None:
    """Raises: PlanError for a release whose interface robosuite and the SO-101 package do not know."""
    if int(mujoco.__version__.partition(".")[0]) >= 4:
        what = f"MuJoCo {mujoco.__version__} is installed, and no simulator here works with 4 or later"
        raise PlanError(what, known="MuJoCo from 3.3 on, below 4", fix=install("mujoco>=3.3,<4"))


def cannot_draw(error: Exception) -> PlanError:
    """What to raise when OpenGL fails."""
    chosen = os.environ.get("MUJOCO_GL", "not set, or was set after MuJoCo was imported")
    return PlanError(
        f"MuJoCo cannot draw here: {type(error).__name__}: {error}",
        known=f"MUJOCO_GL is {chosen}; egl or osmesa draw without a display, glfw needs one",
        fix="set MUJOCO_GL=egl (apt-get install libegl1 libgl1-mesa-dri), or MUJOCO_GL=osmesa (libosmesa6)",
    )


def gl_renderer() -> str | None:
    """What draws in this process, such as ``llvmpipe (LLVM 15.0.6, 256 bits)``; None before anything was drawn."""
    try:
        gl = importlib.import_module("OpenGL.GL")
        name = gl.glGetString(gl.GL_RENDERER)
    except Exception:  # without a context PyOpenGL raises errors of its own making, or none at all
        return None
    return name.decode() if isinstance(name, bytes) else None
