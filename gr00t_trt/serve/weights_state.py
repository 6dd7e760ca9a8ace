"""Requests for other weights: which are allowed, one at a time, and what became of the last. Never imports torch."""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..errors import Gr00tError
from .refusal import Refusal
from .wire import Message

IDLE, RUNNING, DONE, REFUSED = "idle", "running", "done", "refused"


@dataclass(frozen=True)
class Reload:
    """What became of the last request for other weights.

    Attributes:
        state: ``idle`` where none came yet, ``running``, ``done`` or ``refused``.
        number: Of the request, from 1.
        seconds: Phase -> seconds; ``total`` from the request to the first action.
    """

    state: str = IDLE
    number: int = 0
    checkpoint: str | None = None
    phase: str | None = None
    error: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    changed: int = 0
    in_place: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()
    rebuilt: tuple[str, ...] = ()
    from_cache: tuple[str, ...] = ()

    def told(self) -> Message:
        """For the status page: without what is empty."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if v or name == "state"}


@dataclass(frozen=True)
class Checkpoint:
    """What is served: its path, and the hash of its tensors once that is known."""

    path: str
    sha256: str | None = None


class WeightsState(ABC):
    """What a service knows of its weights, and the way to others; a subclass changes them.

    Args:
        folder: Checkpoints below it may be asked for, and no others: a request comes over the network.
        checkpoint: Path of the one that is served from the start.
        report: Told in a sentence what is going on, for the operator.

    Attributes:
        checkpoint: In service now.
        last: What became of the last request.
        published: Told what a status page has to say otherwise, before the first answer of new weights.
    """

    _where, _kept = "", ", the old weights go on serving"

    def __init__(self, folder: Path, checkpoint: str, report: Callable[[str], None]):
        self._folder, self._report = folder.resolve(), report
        self._lock = threading.Lock()
        self.checkpoint = Checkpoint(checkpoint)
        self.last = Reload()
        self.published: Callable[[Mapping[str, object]], None] = lambda about: None

    def start(self, checkpoint: object) -> Message:
        """Begin to change to a checkpoint; `last` tells what becomes of it.

        Raises: Refusal for a path that may not be asked for, and while another one is under way.
        """
        path = self._allowed(checkpoint)
        with self._lock:
            if self.last.state == RUNNING:
                raise Refusal(f"reload: {self.last.checkpoint} is being loaded", http_status=409)
            self._begin(path)
        threading.Thread(target=self._run, args=(path,), name="reload", daemon=True).start()
        return self.last.told()

    def _allowed(self, checkpoint: object) -> Path:
        """The folder that a request names, below the operator's. Raises: Refusal."""
        if not isinstance(checkpoint, str) or not checkpoint.strip() or "\0" in checkpoint or len(checkpoint) > 4096:
            text = "reload: no checkpoint was named: {'checkpoint': '<a folder on the server>'}"
            raise Refusal(text, http_status=400)
        path = Path(os.path.realpath(self._folder / os.path.expanduser(checkpoint)))
        if not path.is_relative_to(self._folder) or not path.is_dir():
            text = f"reload: {checkpoint[:300]} is no folder below {self._folder} (--allow_reload)"
            raise Refusal(text, http_status=404)
        return path

    def _begin(self, path: Path) -> None:
        self.last = Reload(RUNNING, self.last.number + 1, str(path))

    def _run(self, path: Path) -> None:
        start = time.perf_counter()
        try:
            done = self._change(path)
        except Exception as error:  # whatever it was, the old weights are still there
            said = str(error) if isinstance(error, Gr00tError) else f"{type(error).__name__}: {error}"
            why = self._put_back(said)
            self.last = replace(self.last, state=REFUSED, phase=None, error=why)
            self._report(f"reload of {path} refused{self._kept}: {why}")
            return
        seconds = {**done.seconds, "total": time.perf_counter() - start}
        self.last = replace(done, number=self.last.number, seconds=seconds)
        self._report(f"reload: {path} serves{self._where}, {seconds['total']:.1f} s after it was asked for")

    @abstractmethod
    def _change(self, path: Path) -> Reload:
        """Serve a checkpoint, and publish it; `seconds` without the total. Raises: Whatever prevents it."""

    def _put_back(self, why: str) -> str:
        """Undo what a change that failed has left; what is to be told of it."""
        return why
