"""Another checkpoint put into a running service: loaded beside the one that answers, then changed between two requests.

One at a time, on a thread of its own. Clients are answered with the old weights until the new ones are ready, and with
the new ones from the next request on; whatever goes wrong before leaves the old ones.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

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
from ..model.n1_5.synthetic import is_synthetic
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source
from .description import cosine_to_fp32
from .weights_state import DONE, Checkpoint, Reload, WeightsState

if TYPE_CHECKING:
    from .worker import PolicyWorker


class Reloader(WeightsState):
    """Changes the weights of a policy in service.

    Args:
        deployment: In service.
        folder, checkpoint, report: As for `WeightsState`.
        load: Path -> the policy of that checkpoint, as `Swap` takes it.
        between: Does a job between two requests, as `PolicyWorker.between`.
        swap: Makes a `Swap`, its settings given.
        warm: Gets the batches ready as well, within the pause.

    Attributes:
        deployment: In service now.
    """

    def __init__(
        self,
        deployment: Deployment,
        folder: Path,
        checkpoint: str,
        load: Callable[[Path, Steps], Gr00tPolicy],
        between: Callable[[Callable[[], Swapped]], Swapped],
        *,
        swap: Callable[[Deployment, Gr00tPolicy, Steps], Swap] = Swap,
        warm: Callable[[], None] = lambda: None,
        report: Callable[[str], None] = lambda text: None,
    ):
        changeable(deployment)
        super().__init__(folder, checkpoint, report)
        self.deployment, self._load, self._between, self._swap, self._warm = deployment, load, between, swap, warm

    def identify(self) -> None:
        """Work out the hash of the checkpoint that is served from the start, on a thread of its own."""
        threading.Thread(target=self._identify, args=(self.checkpoint.path,), name="hash", daemon=True).start()

    def _identify(self, path: str) -> None:
        try:
            found = Checkpoint(path, content_hash_of(path))
        except Gr00tError:  # it was there a moment ago; the status says that its hash is not known
            return
        with self._lock:
            if self.checkpoint.path == path:
                self.checkpoint = found

    def change(self, checkpoint: str) -> Reload:
        """As `start`, and wait for the end; nothing is done for the checkpoint that serves."""
        path = self._allowed(checkpoint)
        with self._lock:
            if self._serves_already(path):
                return Reload(DONE, self.last.number, str(path))
            self._begin(path)
        self._run(path)
        return self.last

    def _serves_already(self, path: Path) -> bool:
        """Whether a folder, all links followed, is the checkpoint in service, which an operator may name otherwise."""
        own = self.checkpoint.path
        return not is_synthetic(own) and os.path.realpath(os.path.expanduser(own)) == str(path)

    def _change(self, path: Path) -> Reload:
        start, steps = time.perf_counter(), _Steps(self)
        steps.step("loading")
        hashing = _hashing(path)
        # Small files first: a checkpoint of another model is refused before its weights are read.
        refuse_other_model(load_config(path), self.deployment.policy.model.config)
        fresh = self._load(path, steps)
        swap = self._swap(self.deployment, fresh, steps)
        loaded = time.perf_counter() - start
        del fresh
        swap.prepare()
        steps.step("hashing")
        checkpoint = Checkpoint(str(path), hashing.result())
        steps.step("changing")

        def change() -> Swapped:
            swapped = swap.commit()
            self._publish(swapped, checkpoint)
            return swapped

        done = self._between(change)
        lists = {name: getattr(done, name) for name in ("changed", "in_place", "reused", "rebuilt", "from_cache")}
        return Reload(DONE, checkpoint=str(path), seconds={"loading": loaded, **done.seconds}, **lists)

    def _publish(self, swapped: Swapped, checkpoint: Checkpoint) -> None:
        """In the pause: an answer and the status page never tell of different weights."""
        self.deployment = swapped.deployment
        with self._lock:
            self.checkpoint = checkpoint
        self.published(described(swapped.deployment, checkpoint))
        try:
            self._warm()
        except Gr00tError as error:  # each batch then gets ready when it first comes
            self._report(f"reload: {error}")


def described(deployment: Deployment, checkpoint: Checkpoint) -> dict[str, object]:
    """What a status page says otherwise once a checkpoint serves."""
    return {"model": checkpoint.path, "action_cosine_to_fp32": cosine_to_fp32(deployment)}


def _hashing(path: Path) -> Future[str | None]:
    """The hash of a checkpoint, all of which is read while it is being loaded anyway.

    Its `result` raises CheckpointError, as `content_hash_of`.
    """
    found: Future[str | None] = Future()

    def run() -> None:
        try:
            found.set_result(content_hash_of(path))
        except Exception as error:
            found.set_exception(error)

    threading.Thread(target=run, name="hash", daemon=True).start()
    return found


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

    swap = partial(Swap, observation=observation, engine_cache=args.engine_cache, check=not args.no_check)
    path, between = args.model_path, worker.between
    made = Reloader(deployment, folder, path, load, between, swap=swap, warm=warm, report=report)
    made.identify()
    return made
