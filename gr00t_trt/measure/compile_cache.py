"""What torch.compile has made, carried from one run to the next: in a folder on one machine, in a file between them.

The file holds what `torch.compiler.save_cache_artifacts` gives, and loading it unpickles: use no one else's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from ..common.files import prepare_file
from ..record.environment import version_of

HEAD = b"gr00t_trt compile cache "
LARGEST_BYTES = 16 * 10**6
"""A larger file is written too, with a note: some ways of copying it to another machine end there."""

FOLDERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Environment variable -> where in the folder of compiled code that compiler keeps its own."""


def keep_in(folder: Path) -> None:
    """Let compilers keep what they make under `folder`, unless the environment names another place."""
    for variable, name in FOLDERS.items():
        os.environ.setdefault(variable, str(folder / name))


class CompileCache:
    """One file of compiled code; of no use to another PyTorch, Triton or GPU, and then left alone.

    Args:
        path: Made where it is not there yet.
        device: What is compiled for.
    Raises: RecordError for a path that cannot be written.
    """

    def __init__(self, path: Path, device: torch.device):
        self._path = path
        self._key = _key(device)
        prepare_file(path, "compile cache", "--cache")

    def load(self) -> str:
        """Read the file. Returns: What became of it, in a sentence."""
        if not self._path.is_file():
            return "none was there: everything is compiled anew"
        try:
            head, _, artifacts = self._path.read_bytes().partition(b"\n")
        except OSError as error:
            return f"ignored: it cannot be read: {error.strerror or error}"
        other = _other(head, self._key)
        if other is not None:
            return f"ignored: {other}"
        try:
            found = torch.compiler.load_cache_artifacts(artifacts)
        except Exception as error:  # a damaged file may fail in any way, and costs no more than compiling
            return f"ignored: it cannot be loaded: {type(error).__name__}"
        return "ignored: it holds nothing" if found is None else f"loaded, {len(artifacts) / 1e6:.1f} MB"

    def save(self) -> str | None:
        """Write what this process has compiled or found. Returns: What to know of it, or None for nothing to know."""
        made = torch.compiler.save_cache_artifacts()
        if made is None:
            return None
        whole = HEAD + json.dumps(self._key).encode() + b"\n" + made[0]
        beside = self._path.with_name(self._path.name + ".part")
        try:
            beside.write_bytes(whole)
            beside.replace(self._path)
        except OSError as error:  # a full disk, after everything was measured: not worth the record
            return f"not written: {error.strerror or error}"
        if len(whole) <= LARGEST_BYTES:
            return None
        return f"the file has {len(whole) / 1e6:.1f} MB, above the {LARGEST_BYTES / 1e6:.0f} MB it is meant to have"


def _key(device: torch.device) -> dict[str, str | None]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"torch": str(torch.__version__), "triton": version_of("triton"), "gpu": gpu}


def _other(head: bytes, key: dict[str, str | None]) -> str | None:
    """What a file was made with that is another here; None where all is the same."""
    if not head.startswith(HEAD):
        return "it is no compile cache"
    try:
        made = json.loads(head.removeprefix(HEAD))
        differ = [f"{name} {made.get(name) or 'none'}, not {own or 'none'}" for name, own in key.items()
                  if made.get(name) != own]  # fmt: skip
    except (ValueError, AttributeError):
        return "it is no compile cache"
    return f"it was made with {'; '.join(differ)}" if differ else None
