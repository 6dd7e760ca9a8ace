"""Another checkpoint put into a running service: loaded beside the one that answers, then changed between two requests.

One at a time, on a thread of its own. Clients are answered with the old weights until the new ones are ready, and with
the new ones from the next request on; whatever goes wrong before leaves the old ones.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..common.interface import Observation
from ..common.progress import Steps
from ..compile.build import set_precision
from ..deploy.deploy import Deployment
from ..deploy.same_kind import refuse_other_model
from ..deploy.weights import Swap, Swapped, changeable
from ..errors import Gr00tError, UsageError
from ..model import load_config
from ..model.checkpoint import content_hash_of
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source
from .refusal import Refusal

if TYPE_CHECKING:
    from .worker import PolicyWorker

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

    def told(self) -> dict[str, Any]:
        """For the status page: without what is empty."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items() if v or name == "state"}


class Reloader:
    """Changes the weights of a policy in service.

    Args:
        deployment: In service.
        folder: Checkpoints below it may be asked for, and no others: a request comes over the network.
        load: Path -> the policy of that checkpoint, as `Swap` takes it.
        between: Does a job between two requests, as `PolicyWorker.between`.
        settings: For `Swap`: observation, engine cache, check.
        warm: What is to be got ready besides, within the pause: batches.
        report: Told in a sentence what is going on, for the operator.

    Attributes:
        deployment: In service now. checkpoint: Its path, and the hash of its tensors once that is known.
        last: What became of the last request.
        published: Told what a status page has to say otherwise, before the first answer of new weights.
    """

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        load: Callable[[Path, Steps], Gr00tPolicy],
        between: Callable[[Callable[[], Swapped]], Swapped],
        *,
        settings: Mapping[str, Any],
        warm: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda text: None,
    ):
        changeable(deployment)
        self.deployment, self._folder, self._load, self._between = deployment, folder.resolve(), load, between
        self._settings, self._warm, self._report = dict(settings), warm, report
        self._lock = threading.Lock()
        self.last = Reload()
        self.checkpoint: dict[str, Any] = {}
        self.published: Callable[[Mapping[str, Any]], None] = lambda about: None

    def identify(self, path: str) -> None:
        """Work out the hash of the checkpoint that is served from the start, on a thread of its own."""
        self.checkpoint = {"path": path, "sha256": None}
        threading.Thread(target=self._identify, args=(path,), name="hash", daemon=True).start()

    def _identify(self, path: str) -> None:
        try:
            found = {"path": path, "sha256": content_hash_of(path)}
        except Gr00tError:  # it was there a moment ago; the status says that its hash is not known
            return
        with self._lock:
            if self.checkpoint.get("path") == path:
                self.checkpoint = found

    def start(self, checkpoint: object) -> dict[str, Any]:
        """Begin to change to a checkpoint; `last` tells what becomes of it.

        Raises: Refusal for a path that may not be asked for, and while another one is under way.
        """
        path = allowed(self._folder, checkpoint)
        with self._lock:
            if self.last.state == RUNNING:
                raise Refusal(f"reload: {self.last.checkpoint} is being loaded", http_status=409)
            self.last = Reload(RUNNING, self.last.number + 1, str(path))
        threading.Thread(target=self._run, args=(path,), name="reload", daemon=True).start()
        return self.last.told()

    def change(self, checkpoint: str) -> Reload:
        """As `start`, and wait for the end; nothing is done for the checkpoint that serves."""
        path = allowed(self._folder, checkpoint)
        with self._lock:
            if self.checkpoint.get("path") == str(path):
                return Reload(DONE, self.last.number, str(path))
            self.last = Reload(RUNNING, self.last.number + 1, str(path))
        self._run(path)
        return self.last

    def _run(self, path: Path) -> None:
        start = time.perf_counter()
        try:
            swapped = self._swapped(path, start)
        except Exception as error:  # whatever it was, the old weights are still there
            why = str(error) if isinstance(error, Gr00tError) else f"{type(error).__name__}: {error}"
            self.last = replace(self.last, state=REFUSED, phase=None, error=why)
            self._report(f"reload of {path} refused, the old weights go on serving: {why}")
            return
        seconds = {**swapped.seconds, "total": time.perf_counter() - start}
        lists = {name: getattr(swapped, name) for name in ("changed", "in_place", "reused", "rebuilt", "from_cache")}
        self.last = replace(self.last, state=DONE, phase=None, seconds=seconds, **lists)
        self._report(f"reload: {path} serves, {seconds['total']:.1f} s after it was asked for")

    def _swapped(self, path: Path, start: float) -> Swapped:
        steps = _Steps(self)
        steps.step("loading")
        hashing = _Hashing(path)
        # Small files first: a checkpoint of another model is refused before its weights are read.
        refuse_other_model(load_config(path), self.deployment.policy.model.config)
        fresh = self._load(path, steps)
        swap = Swap(self.deployment, fresh, steps, **self._settings)
        loaded = time.perf_counter() - start
        del fresh
        swap.prepare()
        steps.step("hashing")
        checkpoint = {"path": str(path), "sha256": hashing.result()}
        steps.step("changing")

        def change() -> Swapped:
            swapped = swap.commit()
            self._publish(swapped, checkpoint)
            return swapped

        done = self._between(change)
        return replace(done, seconds={"loading": loaded, **done.seconds})

    def _publish(self, swapped: Swapped, checkpoint: Mapping[str, Any]) -> None:
        """In the pause: an answer and the status page never tell of different weights."""
        self.deployment = swapped.deployment
        with self._lock:
            self.checkpoint = dict(checkpoint)
        self.published(described(swapped.deployment, checkpoint))
        try:
            self._warm()
        except Gr00tError as error:  # each batch then gets ready when it first comes
            self._report(f"reload: {error}")


def described(deployment: Deployment, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a status page says otherwise once a checkpoint serves."""
    request = deployment.record.request
    accuracy = None if request is None else request.accuracy
    return {"model": checkpoint["path"], "action_cosine_to_fp32": accuracy and accuracy.cosine}


def allowed(folder: Path, checkpoint: object) -> Path:
    """The folder that a request names, below the operator's. Raises: Refusal."""
    if not isinstance(checkpoint, str) or not checkpoint.strip() or "\0" in checkpoint or len(checkpoint) > 4096:
        text = "reload: no checkpoint was named: {'checkpoint': '<a folder on the server>'}"
        raise Refusal(text, http_status=400)
    path = Path(os.path.realpath(folder / os.path.expanduser(checkpoint)))
    if not path.is_relative_to(folder) or not path.is_dir():
        text = f"reload: {checkpoint[:300]} is no folder below {folder} (--allow_reload)"
        raise Refusal(text, http_status=404)
    return path


class _Hashing(threading.Thread):
    """Reads all of a checkpoint, while it is being loaded anyway."""

    def __init__(self, path: Path):
        super().__init__(name="hash", daemon=True)
        self._path = path
        self._found: str | None = None
        self._error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self._found = content_hash_of(self._path)
        except Exception as error:
            self._error = error

    def result(self) -> str | None:
        """The hash. Raises: CheckpointError, as `content_hash_of`."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._found


class _Steps(Steps):
    """Steps that go into the status page."""

    def __init__(self, reloader: Reloader):
        super().__init__(Console(quiet=True), None)
        self._reloader = reloader

    def step(self, text: str) -> None:
        self._reloader.last = replace(self._reloader.last, phase=text)

    def advance(self, done: int, total: int) -> None:
        """Not told: the phases are short."""


def reloader_of(
    args: argparse.Namespace,
    deployment: Deployment,
    observation: Observation,
    worker: PolicyWorker,
    warm: Callable[[], None],
    report: Callable[[str], None],
) -> Reloader:
    """What changes the weights of the server that the flags describe.

    Statistics are those of each new checkpoint, whatever `--metadata` said of the first one.

    Args:
        observation: What the start was checked on.
        warm, report: As for `Reloader`.
    Raises: UsageError for a folder that is not there; PlanError for a deployment that cannot be changed.
    """
    folder = Path(args.allow_reload).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--allow_reload {args.allow_reload}: no such folder", fix="name the one with the checkpoints")
    plan, device = changeable(deployment).plan, deployment.policy.model.device
    source = replace(Source.of(args), metadata=None, denoising_steps=None)

    def load(path: Path, steps: Steps) -> Gr00tPolicy:
        dtype = partial(set_precision, plan=plan)
        return replace(source, model_path=str(path)).policy(device, steps, dtype=dtype)

    settings = {"observation": observation, "engine_cache": args.engine_cache, "check": not args.no_check}
    made = Reloader(deployment, folder, load, worker.between, settings=settings, warm=warm, report=report)
    made.identify(args.model_path)
    return made
