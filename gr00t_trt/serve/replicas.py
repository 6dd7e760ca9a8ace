"""Several copies of a policy on Ray Serve, one a GPU, behind the transports of one server.

The transports, the queue and its fairness stay here; each request that is its turn goes to the replica with the least
to do. A replica that dies is started anew by Ray, and what it was asked is asked again. Weights lie where each replica
finds them: another machine needs this package and the same paths.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ..common.devices import choose_device
from ..common.interface import ModalityConfig, Observation
from ..errors import Gr00tError, ObservationError, ServiceError, ShapeError, UsageError
from .api_token import redacted
from .flags import plan_of
from .limits import Limits
from .metrics import Metrics
from .refusal import Refusal, told
from .reload import described
from .reload_replicas import Board, Changed, ReplicaReloader
from .start import MIB, answer, check_addresses, prepare, reloader_for, worker_of
from .waiting import LOOK_UP_S, QUEUE, TOTAL, Answer, Request, Worker, unanswered
from .wire import Message

try:
    import ray
    from ray import serve as ray_serve
    from ray.exceptions import RayError, RayTaskError
except ImportError as error:
    raise ServiceError("--replicas needs Ray Serve", fix="pip install 'gr00t_trt[replicas]'") from error

APPLICATION = "gr00t_trt"
_OF_A_CHECK_S = 10.0
_RETRY_S = 0.05
_KNOCK_S = 5.0
_STORE_BYTES = 2**28


@dataclass(frozen=True)
class About:
    """What a replica serves: for `Service` and `Limits`."""

    description: Message
    modality_config: Mapping[str, ModalityConfig]
    max_samples: int
    max_tokens: int | None
    noise_shape: tuple[int, int] | None


class Replica:
    """One policy in a process of Ray's, with a worker of its own; the methods are called by Ray."""

    def __init__(self, args: argparse.Namespace, board: Any):
        console, metrics = Console(stderr=True), Metrics()
        if board is not None:  # another one than the first, where this takes the place of one that died
            args.model_path = ray.get(board.serves.remote())
        self._args, self._name = args, secrets.token_hex(8)
        self._prepared = prepare(args, args.shown_argv, console)
        self._worker = worker_of(args, self._prepared, metrics, console)
        self._reloader = reloader_for(args, self._prepared, self._worker, console) if args.allow_reload else None
        self._thread = threading.Thread(target=self._worker.run, name="policy", daemon=True)
        self._thread.start()

    async def reload(self, checkpoint: str) -> Changed:
        """Change to a checkpoint, or say that it serves already; requests are answered meanwhile."""
        reloader = self._reloader
        assert reloader is not None
        last = await asyncio.to_thread(reloader.change, checkpoint)
        return Changed(self._name, last, reloader.checkpoint, described(reloader.deployment, reloader.checkpoint))

    def about(self) -> About:
        prepared, limits = self._prepared, self._prepared.limits
        modalities = prepared.policy.modality_config
        description = prepared.description(self._args)
        return About(description, modalities, limits.max_samples, limits.max_tokens, limits.noise_shape)

    async def act(
        self, observation: Observation, samples: int, timeout_s: float, seed: int | None, noise: np.ndarray | None
    ) -> Answer:
        """The parts of a `Request` that can travel."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Answer] = loop.create_future()
        # Ray lends its own memory, which nobody may write to.
        owned = {key: _own(value) for key, value in observation.items()}
        request = Request(
            APPLICATION,
            owned,
            lambda reply: loop.call_soon_threadsafe(done.set_result, reply),  # type: ignore[arg-type]
            samples,
            timeout_s,
            seed=seed,
            noise=_own(noise),
        )
        self._worker.submit(request)
        return _portable(await done)

    def check_health(self) -> None:
        """Raises: ServiceError where Ray is to start another in its place."""
        if not self._thread.is_alive() or self._worker.running_s > 2 * self._args.request_timeout_s:
            raise ServiceError("the policy of this replica does not answer any more")


def _own(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _portable(answer: Answer) -> Answer:
    """An answer that any process can read: its error, if there is one, is a Refusal."""
    if answer.error is None or isinstance(answer.error, Refusal):
        return answer
    status = 400 if isinstance(answer.error, ObservationError | ShapeError) else 500
    return Answer(error=Refusal(told(answer.error), http_status=status))


class ReplicaWorker(Worker):
    """Hands waiting requests to replicas, as many at once as they take.

    Args:
        handle: Of Ray Serve's deployment of `Replica`.
        slots: Requests that may be with the replicas.
        max_queue, request_timeout_s: As for `Worker`.
    """

    def __init__(self, handle: Any, metrics: Metrics, *, slots: int, max_queue: int, request_timeout_s: float):
        super().__init__(metrics, max_queue=max_queue, request_timeout_s=request_timeout_s)
        self._handle = handle
        self._threads = [threading.Thread(target=self._slot, name=f"slot {n}", daemon=True) for n in range(slots)]
        self._began: dict[Request, float] = {}

    @property
    def running_s(self) -> float:
        began = min(list(self._began.values()), default=None)
        return 0.0 if began is None else time.monotonic() - began

    def run(self) -> None:
        for thread in self._threads:
            thread.start()
        try:
            while not self._stopping:
                time.sleep(LOOK_UP_S)
            for thread in self._threads:
                thread.join()
        finally:
            self._refuse_all()

    def _slot(self) -> None:
        while not self._stopping:
            request = self._queue.take(LOOK_UP_S)
            if request is not None:
                with self._taking:
                    self._taken.append(request)
                self._began[request] = time.monotonic()
                try:
                    self._answer(request)
                finally:
                    del self._began[request]

    def _answer(self, request: Request) -> None:
        began = time.monotonic()
        while True:
            self._refuse_useless_taken([request])
            if request not in self._taken:
                return
            try:
                answer = self._ask(request)
                break
            except TimeoutError:
                continue  # it is too late for the client
            except RayTaskError as error:
                self._finish(request, Answer(error=ServiceError(f"a replica failed: {error.cause or error}")))
                return
            except RayError:  # the replica has died, or its machine: another one is asked
                if self._stopping:
                    self._finish(request, unanswered("the replicas have ended"))
                    return
                time.sleep(_RETRY_S)
        total, waited = (time.monotonic() - request.arrived) * 1e3, (began - request.arrived) * 1e3
        if answer.error is not None:
            self._finish(request, answer)
            return
        timings = {**answer.timings_ms, QUEUE: waited + answer.timings_ms.get(QUEUE, 0.0), TOTAL: total}
        self._finish(request, Answer(answer.action, timings_ms=timings))
        self._metrics.timings(timings)

    def _ask(self, request: Request) -> Answer:
        """Raises: TimeoutError when the client waits no longer; RayError."""
        allowed = min(request.timeout_s or self.request_timeout_s, self.request_timeout_s)
        left = max(request.arrived + allowed - time.monotonic(), 0.001)
        asked = (dict(request.observation), request.samples, left, request.seed, request.noise)
        return self._handle.act.remote(*asked).result(timeout_s=left)


def serve_replicas(args: argparse.Namespace, argv: Sequence[str], console: Console) -> None:
    """Run the server that the flags describe, with `--replicas` policies on Ray, until it is told to end.

    Raises: Gr00tError for what cannot work, before anything is listened to.
    """
    check_addresses(args)
    plan_of(args)
    if ":" in (args.device or ""):
        raise UsageError(f"--device {args.device} is one GPU, and each replica has its own", known="cuda, cpu")
    console.print(f"starting {args.replicas} replicas on Ray", markup=False, highlight=False)
    _join_ray(args)
    try:
        board = ray.remote(Board).options(num_cpus=0).remote(args.model_path) if args.allow_reload else None
        handle = _deployed(args, argv, board)
        about: About = handle.about.remote().result()
        metrics = Metrics()
        worker = ReplicaWorker(
            handle,
            metrics,
            slots=args.replicas * args.max_batch,
            max_queue=args.max_queue,
            request_timeout_s=args.request_timeout_s,
        )
        limits = Limits(
            about.modality_config,
            max_samples=about.max_samples,
            max_tokens=about.max_tokens,
            noise_shape=about.noise_shape,
        )
        description = {**about.description, "replicas": args.replicas}
        reloader = None if board is None else _reloader(args, handle, board, console)
        answer(args, worker, metrics, description, about.modality_config, limits, console, reloader)
    finally:
        _leave_ray(args)


def _reloader(args: argparse.Namespace, handle: Any, board: Any, console: Console) -> ReplicaReloader:
    return ReplicaReloader(
        lambda path: handle.reload.remote(path).result(),
        lambda path: ray.get(board.put.remote(path)),
        args.replicas,
        args.model_path,
        Path(args.allow_reload).expanduser(),
        report=lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True),
    )


def _join_ray(args: argparse.Namespace) -> None:
    """Raises: ServiceError where the cluster does not answer."""
    if re.fullmatch(r"[\w.-]+:\d+", args.ray_address or ""):
        _knock(*args.ray_address.split(":"))
    join = partial(ray.init, log_to_driver=False, logging_level="ERROR", namespace=APPLICATION)
    try:
        if args.ray_address is not None:
            join(args.ray_address)
        else:
            requests = args.replicas * args.max_batch * int(args.max_request_mb * MIB)
            cores, store = max(os.cpu_count() or 1, args.replicas), _STORE_BYTES + requests
            join("local", include_dashboard=False, num_cpus=cores, object_store_memory=store)
        ray_serve.start(proxy_location="Disabled")
    except (ConnectionError, RayError, ValueError) as error:
        what = f"Ray cannot be started or reached: {str(error).splitlines()[0]}"
        raise ServiceError(what, fix="see `ray status`, or leave --ray_address out") from error


def _knock(host: str, port: str) -> None:
    """Raises: ServiceError where nobody listens, which Ray itself would try for minutes."""
    try:
        socket.create_connection((host, int(port)), _KNOCK_S).close()
    except OSError as error:
        raise ServiceError(f"--ray_address {host}:{port}: {error.strerror or error}", fix="see `ray status`") from error


def _deployed(args: argparse.Namespace, argv: Sequence[str], board: Any) -> Any:
    """A handle of the replicas, once all of them are ready. Raises: ServiceError for one that cannot start."""
    on_gpu = choose_device(args.device).type == "cuda" if args.ray_address is None else args.device != "cpu"
    there = int(ray.cluster_resources().get("GPU", 0))
    if on_gpu and there < args.replicas:
        raise ServiceError(
            f"--replicas {args.replicas}: Ray has {there} GPUs", known="one GPU a replica, or --device cpu"
        )
    threads = os.environ.get("OMP_NUM_THREADS") or str(max((os.cpu_count() or 1) // args.replicas, 1))
    deployment = ray_serve.deployment(
        num_replicas=args.replicas,
        # One more, so that a replica answers while it loads other weights.
        max_ongoing_requests=args.max_batch + (args.allow_reload is not None),
        health_check_period_s=_OF_A_CHECK_S / 5,
        health_check_timeout_s=_OF_A_CHECK_S,
        ray_actor_options={
            "num_cpus": 0,
            "num_gpus": 1 if on_gpu else 0,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        },
    )(Replica)
    passed = {**vars(args), "api_token": None, "api_token_file": None, "shown_argv": redacted(argv)}
    passed.update(engine_cache=_absolute(args.engine_cache), allow_reload=_absolute(args.allow_reload))
    try:
        return ray_serve.run(deployment.bind(argparse.Namespace(**passed), board), name=APPLICATION, route_prefix=None)
    except RuntimeError as error:
        raise ServiceError(
            f"a replica cannot start: {_why()}", fix="try the same command without --replicas"
        ) from error


def _absolute(folder: str | None) -> str | None:
    return folder if folder is None or folder == "off" else str(Path(folder).absolute())


def _why() -> str:
    """What the replicas raised, without the traceback that Ray tells it with."""
    application = ray_serve.status().applications.get(APPLICATION)
    said = "\n".join(each.message for each in application.deployments.values()) if application else ""
    _, found, ours = said.rpartition(f"{Gr00tError.__module__}.")
    return ours.partition(": ")[2].strip() if found else (said.strip() or "Ray does not say why").splitlines()[-1]


def _leave_ray(args: argparse.Namespace) -> None:
    if args.ray_address is not None:
        with suppress(Exception):  # the cluster may be gone by now
            ray_serve.delete(APPLICATION, _blocking=False)
    ray.shutdown()
