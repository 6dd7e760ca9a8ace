"""GR00T N1.5 restructured for speed without loss, from the plain model's own parameters."""

from .captured import Capturer
from .cuda_graphs import CudaCapturer
from .graphs import RequestGraphs
from .model import FastGr00tN1d5, Prepared, restructure
from .stages import registry

__all__ = ["Capturer", "CudaCapturer", "FastGr00tN1d5", "Prepared", "RequestGraphs", "registry", "restructure"]
