"""How to install what is missing, as a command that works from where the user stands. Never imports torch."""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path

PACKAGE = "gr00t_trt"


def install_extra(*extras: str) -> str:
    """The command that installs extras of this package.

    In its checkout that is an editable install; where it is installed, pip adds to that, whatever index it asks.

    Args:
        extras: Of pyproject.toml, such as ``serve``.
    """
    checkout = Path(__file__).resolve().parents[2]
    named = f"[{','.join(extras)}]"
    if checkout == Path.cwd() and (checkout / "pyproject.toml").is_file():
        return f"{_pip()} -e {shlex.quote('.' + named)}"
    try:
        importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return f"{_pip()} -e {shlex.quote(str(checkout) + named)}"
    return f"{_pip()} {shlex.quote(PACKAGE + named)}"


def install(*distributions: str) -> str:
    """The command that installs other distributions, such as ``triton``."""
    return f"{_pip()} {shlex.join(distributions)}"


def _pip() -> str:
    """An environment that uv made has no pip in it."""
    try:
        # Not find_spec: setuptools takes that for pip running, and torch.compile then fails on its distutils.
        importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError:
        return "uv pip install"
    return "pip install"
