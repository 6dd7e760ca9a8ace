"""Other weights for several replicas, one after the other: the others answer meanwhile.

Ray sends each call to whichever replica has the least to do, so that all of them are asked again and again until each
has said that it has changed. One that is started anew, because it died, asks the board which checkpoint serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import ServiceError
from .weights_state import DONE, Checkpoint, Reload, WeightsState

_EACH_S = 0.05
_ROUNDS = 200
"""Calls per replica after which one that was never met is given up."""


class Board:
    """Which checkpoint serves, for replicas that start later; an actor of Ray's."""

    def __init__(self, checkpoint: str):
        self._checkpoint = checkpoint

    def serves(self) -> str:
        return self._checkpoint

    def put(self, checkpoint: str) -> None:
        self._checkpoint = checkpoint


@dataclass(frozen=True)
class Changed:
    """What became of one replica.

    Attributes:
        replica: Its own name.
        last: As of its `Reloader`; `checkpoint` and `about` are what it serves now.
    """

    replica: str
    last: Reload
    checkpoint: Checkpoint
    about: Mapping[str, object]


class ReplicaReloader(WeightsState):
    """As `Reloader`, for a server of replicas.

    Args:
        call: Path -> what one replica, Ray's choice, made of it. Raises: whatever Ray raises.
        serves: Told which checkpoint a replica is to start with from now on.
        replicas: How many there are.
        checkpoint, folder, report: As for `WeightsState`.
    """

    _where, _kept = " in all replicas", ""

    def __init__(
        self,
        call: Callable[[str], Changed],
        serves: Callable[[str], None],
        replicas: int,
        checkpoint: str,
        folder: Path,
        *,
        report: Callable[[str], None] = lambda text: None,
    ):
        super().__init__(folder, checkpoint, report)
        self._call, self._serves, self._replicas = call, serves, replicas
        self._met: dict[str, Changed] = {}

    def _change(self, path: Path) -> Reload:
        found = self._all(str(path))
        self.checkpoint = found.checkpoint
        self.published(found.about)
        return found.last

    def _all(self, path: str) -> Changed:
        """Change every replica. Raises: ServiceError for the first one that refuses, and as `call`."""
        met = self._met = {}
        for _ in range(_ROUNDS * self._replicas):
            self.last = replace(self.last, phase=f"replica {len(met) + 1} of {self._replicas}")
            changed = self._call(path)
            if changed.last.state != DONE:
                raise ServiceError(str(changed.last.error))
            if not met:
                self._serves(path)
            met.setdefault(changed.replica, changed)
            if len(met) >= self._replicas:
                return next(iter(met.values()))
            time.sleep(_EACH_S)
        raise ServiceError(f"{len(met)} of {self._replicas} replicas answered", fix="see `ray status`")

    def _put_back(self, why: str) -> str:
        """Have those replicas that have changed already serve the old checkpoint again."""
        if not self._met:
            return why
        try:
            self._serves(self.checkpoint.path)
            self._all(self.checkpoint.path)
        except Exception as error:
            return f"{why}\n  the replicas serve different checkpoints now, restart the server: {error}"
        return why
