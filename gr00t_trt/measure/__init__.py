"""The measuring command: one model in many forms, each against eager PyTorch, in one record."""

from .program import main

__all__ = ["main"]
