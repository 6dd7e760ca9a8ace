"""Whole requests as CUDA graphs, for the forms that want them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..capture import capturer_for
from ..errors import BackendError
from ..fast import FastGr00tN1d5, RequestGraphs
from .rows import Workload


class Graphs:
    """The graphs of one form, one per workload, captured before its first timed call.

    Raises: BackendError where no graphs can be captured.
    """

    def __init__(self, model: FastGr00tN1d5):
        capturer = capturer_for(model.device)
        if capturer is None:
            raise BackendError("one CUDA graph: the model is not on a GPU")
        self.answer = RequestGraphs(model, capturer)
        self._model = model
        self._captured: set[Workload] = set()

    def capture(self, work: Workload, inputs: Mapping[str, Any], noise: Tensor) -> None:
        """Capture requests of this workload, unless that was done. Raises: BackendError saying what stands in the way.

        Args:
            inputs, noise: As the model takes them; the model's steps are the workload's already.
        """
        if work in self._captured:
            return
        refused = self.answer.capture(self._model.prepare(inputs), noise)
        if refused is not None:
            raise BackendError(f"one CUDA graph: {refused}")
        self._captured.add(work)


def install(model: FastGr00tN1d5, graphs: Graphs | None) -> None:
    """Let the graphs answer requests of the model, or nothing but the model itself."""
    model.graphs = None if graphs is None else graphs.answer
