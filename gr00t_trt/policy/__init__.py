"""Observation in, action out: the model with its data config, statistics and tokenizer.

Importing this package does not import torch; asking it for one of its names does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .policy import Gr00tPolicy, ModelPolicy, TensorPolicy, load_policy

__all__ = ["Gr00tPolicy", "ModelPolicy", "TensorPolicy", "load_policy"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(".policy", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
