"""The reference's actions, kept between starts: what eager fp32 makes of a request depends on nothing that changes.

A file is found by the weights' files or the code that generates them, the request, the code of the networks and
PyTorch's release. It can only save time: a policy that misses its gate against kept actions is held against new ones
before it is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..common.files import parse_json, write_whole
from ..common.paths import user_cache
from ..errors import RecordError
from ..model.protocol import Model
from ..model.stored import source_of
from .workloads import Request

VARIABLE = "GR00T_TRT_REFERENCES"
OFF = "off"


@dataclass(frozen=True)
class KeptActions:
    """Where the actions of one request to one checkpoint are kept.

    Attributes:
        key: What they depend on.
    """

    path: Path
    key: Mapping[str, Any]

    def read(self) -> Tensor | None:
        """Normalised actions [B, T, action_dim] in fp32; None where there are none, or the file is not whole."""
        try:
            found = parse_json(self.path.read_text(encoding="utf-8"))
            values, shape = found["actions"], found["shape"]
            if found["key"] != self.key or found["sha256"] != _digest(values, shape):
                return None
            return torch.tensor(values, dtype=torch.float32).view(shape)
        except (OSError, ValueError, TypeError, KeyError, RuntimeError):
            return None

    def write(self, actions: Tensor) -> None:
        """Keep actions for the next start; nothing happens where they cannot be written."""
        values, shape = actions.flatten().tolist(), list(actions.shape)
        content = {"key": self.key, "shape": shape, "actions": values, "sha256": _digest(values, shape)}
        try:
            write_whole(json.dumps(content), self.path, "reference", VARIABLE)
        except (RecordError, OSError):
            return


def kept_actions(model: Model, request: Request) -> KeptActions | None:
    """Where the reference of this request is kept; None for weights whose source is unknown, or where none is to be.

    The environment variable GR00T_TRT_REFERENCES names the folder, or ``off``; without it, it is
    ``$XDG_CACHE_HOME/gr00t_trt/references`` or ``~/.cache/gr00t_trt/references``.
    """
    folder, source = os.environ.get(VARIABLE), source_of(cast(nn.Module, model))
    if not source or (folder or "").lower() == OFF:
        return None
    key = {
        "weights": source if isinstance(source, str) else [_state(file) for file in source],
        "config": repr(model.config),
        "request": {name: _content(value) for name, value in sorted(request.inputs.items())},
        "noise": _content(request.noise),
        "steps": request.workload.steps,
        "code": _code(),
        "torch": str(torch.__version__),
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    return KeptActions((Path(folder).expanduser() if folder else user_cache() / "references") / f"{name}.json", key)


@cache
def _code() -> str:
    """What changes when the networks do."""
    folder = Path(__file__).resolve().parent.parent / "model"
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _state(file: Path) -> list[str | int]:
    """What changes when a file does."""
    state = file.stat()
    return [str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ino]


def _content(value: Tensor) -> str:
    data = value.detach().cpu().contiguous()
    return hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode() + data.numpy().tobytes()).hexdigest()


def _digest(values: list[float], shape: list[int]) -> str:
    return hashlib.sha256(json.dumps([values, shape]).encode()).hexdigest()
