"""Models in plain PyTorch, with the public checkpoints' own key names; one folder a generation.

Importing the package does not import torch: the functions load it on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .architecture import Architecture
from .n1_5.architecture import N1_5

if TYPE_CHECKING:
    from .checkpoint import load_config as load_config
    from .checkpoint import load_model as load_model
    from .checkpoint import model_from_tensors as model_from_tensors
    from .checkpoint import resolve_checkpoint as resolve_checkpoint
    from .n1_5.config import Gr00tConfig as Gr00tConfig
    from .n1_5.gr00t import Gr00tN1d5 as Gr00tN1d5
    from .n1_5.inputs import example_inputs as example_inputs

ARCHITECTURES: dict[str, Architecture] = {N1_5.name: N1_5}
"""Generation -> what the package knows of it. The checkpoints that can be loaded are of the first."""

_HOMES = {
    "Gr00tConfig": "n1_5.config",
    "Gr00tN1d5": "n1_5.gr00t",
    "example_inputs": "n1_5.inputs",
    "load_config": "checkpoint",
    "load_model": "checkpoint",
    "model_from_tensors": "checkpoint",
    "resolve_checkpoint": "checkpoint",
}

__all__ = ["ARCHITECTURES", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
