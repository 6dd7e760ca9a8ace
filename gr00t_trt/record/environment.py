"""The machine and the checkout that a result comes from. Never imports torch; names no host and no user."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ..plans.backends import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where this is one: what a record takes its commit from."""


@dataclass(frozen=True)
class Git:
    """`dirty`: uncommitted or untracked files; both are None outside a checkout."""

    commit: str | None = None
    dirty: bool | None = None


@dataclass(frozen=True)
class Environment:
    """Everything about a machine that a latency depends on; None where it is absent or unknown.

    Attributes:
        cpu_cores: That the process may use.
        sm: Compute capability times ten.
        sm_clock_mhz: When the record was started.
        distributions: Python distribution -> version, None for one that is not installed.
    """

    python: str | None = None
    platform: str | None = None
    board: str | None = None
    cpu: str | None = None
    cpu_cores: int | None = None
    memory_bytes: int | None = None
    gpu: str | None = None
    sm: int | None = None
    driver: str | None = None
    gpu_memory_bytes: int | None = None
    sm_clock_mhz: float | None = None
    max_sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    power_limit_w: float | None = None
    distributions: Mapping[str, str | None] = field(default_factory=dict)


_GPU_QUERY: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "gpu": ("name", str),
    "sm": ("compute_cap", lambda text: round(float(text) * 10)),
    "driver": ("driver_version", str),
    "gpu_memory_bytes": ("memory.total", lambda mib: int(float(mib) * 2**20)),
    "sm_clock_mhz": ("clocks.sm", float),
    "max_sm_clock_mhz": ("clocks.max.sm", float),
    "memory_clock_mhz": ("clocks.mem", float),
    "power_limit_w": ("power.limit", float),
}
"""Field of `Environment` -> what nvidia-smi calls it, and how its text is read."""


def distributions() -> tuple[str, ...]:
    """The Python distributions whose versions a record names: ours, and those of the backends."""
    own = [name for row in BACKENDS.values() for name in row.distributions]
    return tuple(dict.fromkeys(("torch", "transformers", "numpy", *own)))


def environment(device: str | None = None) -> Environment:
    """This machine.

    Args:
        device: ``cuda:1`` for the second CUDA device, as PyTorch counts them; anything else means the first.
    """
    match = re.fullmatch(r"cuda:(\d+)", device or "")
    return Environment(
        python=platform.python_version(),
        platform=platform.platform(),
        board=_read("/proc/device-tree/model"),
        cpu=_cpu_model(),
        cpu_cores=usable_cores(),
        memory_bytes=_memory_bytes(),
        distributions={name: version_of(name) for name in distributions()},
        **_gpu(int(match[1]) if match else 0),
    )


def git_state(root: str | Path) -> Git:
    """The checkout that `root` is a tracked folder of.

    Nothing is known outside a checkout, in a folder that the checkout ignores, such as site-packages, and without git.
    """
    # A hook or an alias may have set GIT_DIR, which would answer for another checkout than root's.
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    git = ("git", "--no-optional-locks", "-C", str(root))
    if not _output((*git, "ls-files", "--", "."), clean):
        return Git()
    commit = _output((*git, "rev-parse", "HEAD"), clean)
    status = _output((*git, "status", "--porcelain"), clean)
    if not commit or status is None:
        return Git()
    return Git(commit.strip(), bool(status.strip()))


def _output(command: Sequence[str], env: dict[str, str] | None = None) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, timeout=10, env=env, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def _gpu(device_index: int) -> dict[str, Any]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    identity = str(device_index)
    if visible is not None:
        listed = [entry.strip() for entry in visible.split(",") if entry.strip()]
        if device_index >= len(listed):
            return {}
        identity = listed[device_index]
    query = ",".join(name for name, _ in _GPU_QUERY.values())
    text = _output(("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", identity))
    cells = [cell.strip() for cell in (text or "").strip().split("\n")[0].split(",")]
    if len(cells) != len(_GPU_QUERY):
        return {}
    return {key: _value(cell, read) for (key, (_, read)), cell in zip(_GPU_QUERY.items(), cells, strict=True)}


def _value(text: str, read: Callable[[str], Any]) -> Any:
    try:
        return None if text.startswith("[") else read(text)  # nvidia-smi writes [N/A] and [Not Supported]
    except ValueError:
        return None


def version_of(distribution: str) -> str | None:
    """The installed version; None for a distribution that is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").rstrip("\x00\n") or None
    except OSError:
        return None


def _cpu_model() -> str | None:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model") and value.strip():
            return value.strip()
    if sys.platform == "darwin":
        brand = _output(("sysctl", "-n", "machdep.cpu.brand_string"))
        return brand.strip() if brand else None
    return platform.processor() or platform.machine() or None


def usable_cores() -> int | None:
    """Cores that this process may use, which a container or taskset can make fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    try:
        return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return None
