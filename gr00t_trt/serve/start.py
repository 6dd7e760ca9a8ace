"""Starting and stopping a server: load, compile, check, warm up, listen, shut down."""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import logging
import shlex
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..common.devices import choose_device
from ..common.interface import ModalityConfig, Observation
from ..common.progress import progress
from ..compile.build import set_precision
from ..data.prompt import bracketed, prompt_segments
from ..deploy.bundle.start import open_bundle, start
from ..deploy.deploy import Deployment, deploy
from ..engines.files import prepare_engine_dir
from ..plans import flags
from ..plans.resolve import Machine, decided, resolve
from ..plans.schema import Plan
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source, read_observation
from .api_token import redacted
from .batching import Batcher, buckets_up_to
from .description import first_latency, keys_of, start_table, status_page
from .flags import is_loopback, plan_of
from .further import further_robots
from .limits import Limits
from .metrics import Metrics
from .reload import Reloader, reloader_of
from .request_log import LOGGER, REQUESTS, RequestLog
from .robots import Robot
from .service import Service, Worker, cannot_listen
from .shutdown import ended_by_signals
from .warm import warm, warm_batches
from .worker import PolicyWorker
from .zmq_server import ZmqServer

if TYPE_CHECKING:
    from .http_server import HttpServer
    from .openpi_server import OpenpiServer
    from .reload_replicas import ReplicaReloader

MIB = 2**20
TEXT_TOKENS = 256
"""Beside the images, where the plan says nothing of prompts: what compiled submodules are built for, too."""


@dataclass(frozen=True)
class Prepared:
    """A policy that is ready to answer, alone and in batches, and what its requests may ask for.

    Attributes:
        others: Embodiment tag -> the further kinds of robots that its model drives.
    """

    policy: Gr00tPolicy
    deployment: Deployment
    limits: Limits
    batcher: Batcher
    observation: Observation
    others: Mapping[str, Robot]

    def description(self, args: argparse.Namespace) -> dict[str, Any]:
        """As `Service` takes it."""
        return status_page(args, self.policy, self.deployment, self.limits)


def serve(args: argparse.Namespace, argv: Sequence[str], console: Console) -> None:
    """Run the server that the flags describe until it is told to end.

    Raises: Gr00tError for what cannot work, before anything is listened to.
    """
    check_addresses(args)
    prepared, metrics = prepare(args, argv, console), Metrics()
    worker = worker_of(args, prepared, metrics, console)
    reloader = reloader_for(args, prepared, worker, console) if args.allow_reload else None
    description, modalities = prepared.description(args), prepared.policy.modality_config
    limits, others = prepared.limits, prepared.others
    answer(args, worker, metrics, description, modalities, limits, console, reloader, others)


def check_addresses(args: argparse.Namespace) -> None:
    """Raises: ServiceError for an address that is taken, and for a missing package: both before anything is built."""
    for port in (args.port, args.http_port, args.websocket_port):
        if port:
            _check_free(args.host, port)
    if args.http_server or args.http_port is not None:
        importlib.import_module(".http_server", __package__)
    if args.websocket_port is not None:
        importlib.import_module(".openpi_server", __package__)


def prepare(args: argparse.Namespace, argv: Sequence[str], console: Console) -> Prepared:
    """Load, compile and warm up what the flags describe, and tell what became of it."""
    note = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    # Compilers print, and what reads our stdout waits for the line that says ready.
    with contextlib.redirect_stdout(sys.stderr):
        further = further_robots(args)  # first: a wrong name is told before weights are read
        policy, deployment, observation = _ready(args, argv, console)
        limits, sizes = _limits(policy, plan_of(args)), buckets_up_to(args.max_batch)[1:]
        batcher = Batcher(policy.modality_config, limits.count_tokens)
        others = {each.tag: _robot(each.policy(policy), args) for each in further}
        first = Robot(policy.modality_config, limits, policy, batcher)
        warm(first, observation, list(others.values()), sizes, lambda why: note(f"note: --max_batch: {why}"))
    console.print(start_table(deployment))
    note(first_latency(policy, observation, deployment.compared_ms))
    for skipped in deployment.record.skipped:
        note(f"note: {skipped.what}: {skipped.why}")
    return Prepared(policy, deployment, limits, batcher, observation, others)


def _robot(policy: Gr00tPolicy, args: argparse.Namespace) -> Robot:
    limits = _limits(policy, plan_of(args))
    about = {"data_config": policy.config_name, "observation": keys_of(policy.example())}
    return Robot(policy.modality_config, limits, policy, Batcher(policy.modality_config, limits.count_tokens), about)


def answer(
    args: argparse.Namespace,
    worker: Worker,
    metrics: Metrics,
    description: Mapping[str, Any],
    modality_config: Mapping[str, ModalityConfig],
    limits: Limits,
    console: Console,
    reloader: Reloader | ReplicaReloader | None = None,
    others: Mapping[str, Robot] | None = None,
) -> None:
    """Put a worker behind the transports that the flags name, and run it until it is told to end."""
    _log_to_stderr()
    service = Service(
        worker,
        metrics,
        description,
        modality_config,
        limits=limits,
        others=others,
        api_token=args.api_token,
        may_kill=is_loopback(args.host),
        log=RequestLog(every=args.log == REQUESTS, slow_ms=args.slow_ms),
        reloader=reloader,
    )
    if reloader is not None:
        reloader.published = service.describe
    with contextlib.ExitStack() as open_servers:
        for server in _servers(args, service):
            open_servers.callback(server.close)
            server.start()
            service.addresses.append(server.endpoint)
            print(f"ready {server.endpoint}", flush=True)
            console.print(f"ready: {server.endpoint}", style="green", highlight=False)
        with ended_by_signals(worker, open_servers.close, console.print), collected_early():
            worker.run()
    console.print(metrics.summary(), markup=False, highlight=False, soft_wrap=True)
    console.print("stopped")


@contextlib.contextmanager
def collected_early() -> Iterator[None]:
    """Inside, Python finds what only refers to itself, such as errors and connections, soon and quickly.

    It looks for such among all objects once those that are new are a quarter of the old ones: with PyTorch loaded,
    after ten thousands of requests, whose frames are kept until then. What there is now does not count any more.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # which notes how few there are now
    try:
        yield
    finally:
        gc.unfreeze()


def worker_of(args: argparse.Namespace, prepared: Prepared, metrics: Metrics, console: Console) -> PolicyWorker:
    """What answers requests with a policy on this machine."""
    policy = prepared.policy
    help = "Observations with a state far outside the range that the model was trained on."
    policies = [policy, *(each.policy for each in prepared.others.values())]
    metrics.counts("state_out_of_range", "key", help, lambda: _outside(policies))
    return PolicyWorker(
        policy,
        metrics,
        tables=_timed_tables(policies),
        device=policy.model.device,
        limits=prepared.limits,
        max_queue=args.max_queue,
        request_timeout_s=args.request_timeout_s,
        batcher=prepared.batcher,
        several=bool(prepared.others),
        max_batch=args.max_batch,
        # A graph is of one size; without graphs, all that waits is taken.
        buckets=None if policy.model.graphs is None else buckets_up_to(args.max_batch),
        batch_wait_s=args.batch_wait_ms / 1e3,
        report=lambda error: console.print(f"{type(error).__name__}: {error}", style="red", markup=False),
    )


def reloader_for(args: argparse.Namespace, prepared: Prepared, worker: PolicyWorker, console: Console) -> Reloader:
    """What changes the weights of a policy on this machine, with its batches."""
    policy, sizes = prepared.policy, buckets_up_to(args.max_batch)[1:]
    report = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    warm = partial(warm_batches, policy, prepared.batcher, prepared.observation, sizes, report)
    return reloader_of(args, prepared.deployment, prepared.observation, worker, warm, report)


def _limits(policy: Gr00tPolicy, plan: Plan) -> Limits:
    """What the plan's ranges allow a request: also in eager PyTorch, which would take anything, for however long."""
    video = policy.modality_config.get("video")
    views = len(video.modality_keys) * len(video.delta_indices) if video else 0
    own = policy.prompter.tokens_per_image
    longest = plan.ranges.length[1] if plan.ranges.length else max(views, plan.ranges.views[1]) * own + TEXT_TOKENS
    return Limits(
        policy.modality_config,
        max_samples=plan.ranges.batch[1],
        max_tokens=longest,
        count_tokens=_prompt_length(policy, views),
        noise_shape=(policy.model.action_horizon, policy.model.config.action_head.action_dim),
    )


def _prompt_length(policy: Gr00tPolicy, views: int) -> Callable[[str], int]:
    """A function from an instruction to the length of its prompt, all of it, in tokens."""
    prompter = policy.prompter

    def length(text: str) -> int:
        verbatim = bracketed(text) if policy.bracketed_instruction else text
        segments = prompt_segments(verbatim, (1,) * views, prompter.tokens_per_image)
        return sum(len(prompter.tokenizer.encode(s)) if isinstance(s, str) else s[1] for s in segments)

    return length


def _log_to_stderr() -> None:
    """Where nobody has said where the log goes, as on the command line."""
    if LOGGER.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)


def _ready(
    args: argparse.Namespace, argv: Sequence[str], console: Console
) -> tuple[Gr00tPolicy, Deployment, Observation]:
    """The policy of the flags, and an observation for it: from a bundle, or from a checkpoint."""
    if args.bundle is None:
        return _deploy(args, argv, console)
    bundle = open_bundle(Path(args.bundle))
    with progress(console) as steps:
        started = start(bundle, args.device, steps, command=_command(argv))
    return started.policy, started.deployment, started.observation


def _command(argv: Sequence[str]) -> str:
    return shlex.join(["gr00t-trt", "serve", *redacted(argv)])


def _deploy(
    args: argparse.Namespace, argv: Sequence[str], console: Console
) -> tuple[Gr00tPolicy, Deployment, Observation]:
    device = choose_device(args.device)
    folder = Path(args.engine_dir) if args.engine_dir else None
    default = flags.default_to_fast(args, str(device))
    named = (args.config, args.precision, args.vit_dtype, args.llm_dtype, args.dit_dtype)
    machine, chosen = Machine(str(device)), any(value is not None for value in named)
    found = resolve(plan_of(args), machine, chosen=not default, precision_chosen=chosen, engine_dir=folder, timed=False)
    resolved = decided(found)
    if resolved.engine_dir is not None:
        prepare_engine_dir(resolved.engine_dir)
    with progress(console) as steps:
        source = Source.of(args)
        observation = read_observation(source, steps)
        dtype = partial(set_precision, plan=resolved.plan)
        policy = replace(source, denoising_steps=None).policy(device, steps, dtype=dtype)
        told: dict[str, Any] = {"engine_cache": args.engine_cache, "check": not args.no_check}
        done = deploy(policy, resolved, steps, observation=observation, command=_command(argv), **told)
        return policy, done, policy.example() if observation is None else observation


def _servers(args: argparse.Namespace, service: Service) -> Iterator[ZmqServer | HttpServer | OpenpiServer]:
    limits: dict[str, Any] = {
        "max_request_bytes": int(args.max_request_mb * MIB),
        "request_timeout_s": args.request_timeout_s,
    }
    if not args.http_server:
        yield ZmqServer(service, args.host, args.port, **limits)
    port = args.port if args.http_server else args.http_port
    if port is not None:
        from .http_server import HttpServer  # whoever speaks ZeroMQ alone needs no web framework

        yield HttpServer(service, args.host, port, **limits)
    if args.websocket_port is not None:
        from .openpi_server import OpenpiServer

        yield OpenpiServer(service, args.host, args.websocket_port, **limits)


def _timed_tables(policies: Sequence[Gr00tPolicy]) -> tuple[dict[str, Any], ...]:
    """The tables whose stages are timed: not the model's where it replays graphs, which were captured without."""
    model, own = policies[0].model, tuple(policy.stages for policy in policies)
    return (*own, model.stages) if model.graphs is None else own


def _outside(policies: Sequence[Gr00tPolicy]) -> Mapping[str, int]:
    """Key -> observations far outside the range, of all kinds of robots."""
    found: Counter[str] = Counter()
    for policy in policies:
        found.update(policy.state_ranges.outside)
    return found


def _check_free(host: str, port: int) -> None:
    """Raises: ServiceError for an address that cannot be listened to.

    Nothing is listened to meanwhile: clients of a server that restarts would take that for the server.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            raise cannot_listen(host, port, error.strerror) from error
