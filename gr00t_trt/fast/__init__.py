"""GR00T N1.5 restructured for speed without loss, from the plain model's own parameters."""

from ..settings import LOOPS, OPTIMISATIONS
from .model import FastGr00tN1d5, Prepared, restructure
from .stages import registry
from .targets import record, target

__all__ = ["LOOPS", "OPTIMISATIONS", "FastGr00tN1d5", "Prepared", "record", "registry", "restructure", "target"]
