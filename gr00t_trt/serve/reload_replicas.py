"""Other weights for several replicas, one after the other: the others answer meanwhile.

Ray sends each call to whichever replica has the least to do, so that all of them are asked again and again until each
has said that it has changed. One that is started anew, because it died, asks the board which checkpoint serves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Gr00tError, ServiceError
from .refusal import Refusal
from .reload import DONE, REFUSED, RUNNING, Reload, allowed

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
        last: As of its `Reloader`; `checkpoint`, with its hash, and `about` are what it serves now.
    """

    replica: str
    last: Reload
    checkpoint: Mapping[str, Any]
    about: Mapping[str, Any]


class ReplicaReloader:
    """As `Reloader`, for a server of replicas.

    Args:
        call: Path -> what one replica, Ray's choice, made of it. Raises: whatever Ray raises.
        serves: Told which checkpoint a replica is to start with from now on.
        replicas: How many there are.
        path: What they serve now.
        folder, report: As for `Reloader`.
    """

    def __init__(
        self,
        call: Callable[[str], Changed],
        serves: Callable[[str], None],
        replicas: int,
        path: str,
        folder: Path,
        *,
        report: Callable[[str], None] = lambda text: None,
    ):
        self._call, self._serves, self._replicas = call, serves, replicas
        self._folder, self._report = folder.resolve(), report
        self._lock = threading.Lock()
        self._met: dict[str, Changed] = {}
        self.last = Reload()
        self.checkpoint: Mapping[str, Any] = {"path": path, "sha256": None}
        self.published: Callable[[Mapping[str, Any]], None] = lambda about: None

    def start(self, checkpoint: object) -> dict[str, Any]:
        """As `Reloader.start`."""
        path = allowed(self._folder, checkpoint)
        with self._lock:
            if self.last.state == RUNNING:
                raise Refusal(f"reload: {self.last.checkpoint} is being loaded", http_status=409)
            self.last = Reload(RUNNING, self.last.number + 1, str(path))
        threading.Thread(target=self._run, args=(str(path),), name="reload", daemon=True).start()
        return self.last.told()

    def _run(self, path: str) -> None:
        start, before = time.perf_counter(), str(self.checkpoint["path"])
        try:
            found = self._all(path)
        except Exception as error:
            said = str(error) if isinstance(error, Gr00tError) else f"{type(error).__name__}: {error}"
            self.last = replace(self.last, state=REFUSED, phase=None, error=self._back(before, said))
            self._report(f"reload of {path} refused: {self.last.error}")
            return
        self.checkpoint = found.checkpoint
        self.published(found.about)
        seconds = {**found.last.seconds, "total": time.perf_counter() - start}
        self.last = replace(found.last, number=self.last.number, seconds=seconds)
        self._report(f"reload: {path} serves in all replicas, {seconds['total']:.1f} s after it was asked for")

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

    def _back(self, before: str, said: str) -> str:
        """Put the old checkpoint back where a replica has changed already; what is to be told."""
        if not self._met:
            return said
        try:
            self._serves(before)
            self._all(before)
        except Exception as error:
            return f"{said}\n  the replicas serve different checkpoints now, restart the server: {error}"
        return said
