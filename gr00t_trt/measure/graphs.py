"""Requests of one form replayed as CUDA graphs, one per workload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..backends import get_backend
from ..compile.capture import capturer_for
from ..errors import BackendError
from ..model.n1_5.fast import FastGr00tN1d5, RequestGraphs
from .rows import Workload


class Graphs:
    """The graphs of one form; each is captured, and compared with the uncaptured model, before its first timed call.

    Attributes:
        answer: What `FastGr00tN1d5.graphs` is while the form is called.
    Raises: BackendError where nothing can be captured.
    """

    def __init__(self, model: FastGr00tN1d5, backend: str):
        capturer, capturable = capturer_for(model.device), get_backend(backend).capturable
        if capturer is None:
            raise BackendError("one CUDA graph: the model is not on a GPU")
        if capturable == "none":
            raise BackendError(f"one CUDA graph: the {backend} backend cannot be captured")
        self.answer = RequestGraphs(model, capturer, one_shape=capturable == "one shape")
        self._model = model
        self._captured: set[Workload] = set()

    def capture(self, work: Workload, inputs: Mapping[str, Any], noise: Tensor) -> None:
        """Capture requests of this workload, unless that was done. Raises: BackendError saying what stands in the way.

        Args:
            inputs, noise: As the model takes them; the model's steps and stages are those of the calls to come.
        """
        if work in self._captured:
            return
        refused = self.answer.capture(self._model.prepare(inputs), noise)
        if refused is not None:
            raise BackendError(f"one CUDA graph: {refused}")
        self._captured.add(work)
