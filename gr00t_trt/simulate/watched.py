"""What an actor was shown and answered, written to a timeline, environment by environment. Never imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.interface import Observation
from ..evaluate.timeline import Moment, Timeline


@dataclass
class Watch:
    """Writes to a timeline.

    Args:
        rows: How many rows of each answer are executed; the steps of the timeline count them.
    """

    timeline: Timeline
    rows: int
    rounds: int = 0

    def next_round(self) -> None:
        """Advance the step count by the rows of one answer."""
        self.rounds += 1

    def answered(
        self, environments: Sequence[int], observation: Observation, answer: Mapping[str, np.ndarray], latency_ms: float
    ) -> None:
        """Write an answer.

        Args:
            environments: Whom the rows of the batch belong to.
            observation, answer: As they were asked and given, with a batch axis.
        """
        for place, environment in enumerate(environments):
            own = {key: value[place] for key, value in observation.items()}
            when, branch = self._shown(environment, own)
            chunk = {key: np.asarray(value)[place] for key, value in answer.items()}
            self.timeline.answered(when, chunk, latency_ms, rows=self.rows, period=0.0, under=branch)

    def acted(self, environment: int, observation: Observation, actions: Mapping[str, np.ndarray]) -> None:
        """Write what an environment's own expert did, ``action.<part>`` [rows, D], after it saw `observation`."""
        when, branch = self._shown(environment, observation)
        for key, rows in actions.items():
            for number, row in enumerate(rows):
                self.timeline.value(when.later(number, 0.0), (*branch, "sent", key.partition(".")[2]), row)

    def _shown(self, environment: int, observation: Observation) -> tuple[Moment, tuple[str]]:
        when, branch = self.timeline.now((self.rounds - 1) * self.rows), (f"environment {environment}",)
        numbers = {key: value for key, value in observation.items() if key.startswith(("video.", "state."))}
        self.timeline.shown(when, numbers, branch)
        return when, branch
