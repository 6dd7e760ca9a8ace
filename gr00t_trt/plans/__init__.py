"""Compile plans: what is compiled, by which backend, in which precision. Never imports torch."""

from .load import load_plan
from .schema import Plan

__all__ = ["Plan", "load_plan"]
