"""Starting and stopping a server: load, compile, check, warm up, listen, shut down."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.devices import choose_device
from ..common.progress import progress
from ..data.prompt import bracketed, prompt_segments
from ..deploy.deploy import Deployment, deploy
from ..engines.files import prepare_engine_dir
from ..plans.resolve import Machine, decided, resolve
from ..plans.schema import Plan
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source, read_observation
from ..record.numbers import cosine, digits
from ..record.result import Agreement
from .api_token import redacted
from .batching import Batcher
from .flags import is_loopback, plan_of
from .limits import Limits
from .metrics import Metrics
from .request_log import LOGGER, REQUESTS, RequestLog
from .service import Service, cannot_listen
from .shutdown import ended_by_signals
from .worker import PolicyWorker
from .zmq_server import ZmqServer

if TYPE_CHECKING:
    from .http_server import HttpServer

MIB = 2**20
TEXT_TOKENS = 256
"""Beside the images, where the plan says nothing of prompts: what compiled submodules are built for, too."""


def serve(args: argparse.Namespace, argv: Sequence[str], console: Console) -> None:
    """Run the server that the flags describe until it is told to end.

    Raises: Gr00tError for what cannot work, before anything is listened to.
    """
    for port in (args.port, args.http_port):
        if port:
            _check_free(args.host, port)  # nobody should wait for a compiler to learn of it
    if args.http_server or args.http_port is not None:
        importlib.import_module(".http_server", __package__)  # nor of a missing package
    # Compilers print, and what reads our stdout waits for the line that says ready.
    with contextlib.redirect_stdout(sys.stderr):
        policy, deployment = _deploy(args, argv, console)
    console.print(_table(deployment))
    for note in deployment.record.skipped:
        console.print(f"note: {note.what}: {note.why}", markup=False, highlight=False, soft_wrap=True)

    _log_to_stderr()
    metrics = Metrics()
    limits = _limits(policy, plan_of(args))
    worker = _worker(args, policy, metrics, limits, console)
    service = Service(
        worker,
        metrics,
        _description(args, policy, deployment, limits),
        policy.modality_config,
        limits=limits,
        api_token=args.api_token,
        may_kill=is_loopback(args.host),
        log=RequestLog(every=args.log == REQUESTS, slow_ms=args.slow_ms),
    )
    with contextlib.ExitStack() as open_servers:
        for server in _servers(args, service):
            open_servers.callback(server.close)
            server.start()
            service.addresses.append(server.endpoint)
            print(f"ready {server.endpoint}", flush=True)
            console.print(f"ready: {server.endpoint}", style="green", highlight=False)
        with ended_by_signals(worker, open_servers.close, console.print):
            worker.run()
    console.print(metrics.summary(), markup=False, highlight=False, soft_wrap=True)
    console.print("stopped")


def _worker(
    args: argparse.Namespace, policy: Gr00tPolicy, metrics: Metrics, limits: Limits, console: Console
) -> PolicyWorker:
    ranges = policy.state_ranges
    help = "Observations with a state far outside the range that the model was trained on."
    metrics.counts("state_out_of_range", "key", help, lambda: ranges.outside)
    return PolicyWorker(
        policy,
        metrics,
        tables=_timed_tables(policy),
        device=policy.model.device,
        limits=limits,
        max_queue=args.max_queue,
        request_timeout_s=args.request_timeout_s,
        batcher=Batcher(policy.modality_config, limits.count_tokens),
        max_batch=args.max_batch,
        batch_wait_s=args.batch_wait_ms / 1e3,
        report=lambda error: console.print(f"{type(error).__name__}: {error}", style="red", markup=False),
    )


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


def _deploy(args: argparse.Namespace, argv: Sequence[str], console: Console) -> tuple[Gr00tPolicy, Deployment]:
    device = choose_device(args.device)
    folder = Path(args.engine_dir) if args.engine_dir else None
    named = (args.config, args.precision, args.vit_dtype, args.llm_dtype, args.dit_dtype)
    machine, chosen = Machine(str(device)), any(value is not None for value in named)
    resolved = decided(resolve(plan_of(args), machine, precision_chosen=chosen, engine_dir=folder, timed=False))
    if resolved.engine_dir is not None:
        prepare_engine_dir(resolved.engine_dir)
    with progress(console) as steps:
        source = Source.of(args)
        observation = read_observation(source, steps)
        policy = replace(source, denoising_steps=None).policy(device, steps)
        command, cache = shlex.join(["gr00t-trt", "serve", *redacted(argv)]), args.engine_cache
        return policy, deploy(policy, resolved, steps, observation=observation, engine_cache=cache, command=command)


def _servers(args: argparse.Namespace, service: Service) -> Iterator[ZmqServer | HttpServer]:
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


def _timed_tables(policy: Gr00tPolicy) -> tuple[dict[str, Any], ...]:
    """The tables whose stages are timed: not the model's where it replays graphs, which were captured without."""
    return (policy.stages, policy.model.stages) if policy.model.graphs is None else (policy.stages,)


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


def _table(deployment: Deployment) -> Table:
    """What runs each submodule, how long it took to build, and how near it is to eager fp32."""
    table = Table(title="What serves each submodule", title_justify="left", title_style="")
    for head, justify in (("submodule", "left"), ("served by", "left"), ("build s", "right"), ("cosine", "right")):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    built = {result.subject: result for result in deployment.record.submodules}
    for name, text in deployment.backends.items():
        result = built.get(name)
        seconds = result.build.seconds if result and result.build else None
        table.add_row(*(Text(cell) for cell in (name, text, digits(seconds), cosine(result and result.accuracy))))
    table.add_section()
    table.add_row("actions", "", "", cosine(_actions(deployment)))
    return table


def _actions(deployment: Deployment) -> Agreement:
    whole = deployment.record.request
    assert whole is not None
    assert whole.accuracy is not None  # every start checks it
    return whole.accuracy


def _description(
    args: argparse.Namespace, policy: Gr00tPolicy, deployment: Deployment, limits: Limits
) -> dict[str, Any]:
    record, found = deployment.record, deployment.record.environment
    builds = [result.build for result in record.submodules if result.build is not None]
    from_cache = [build.from_cache for build in builds if build.engine_bytes is not None]
    distributions = {name: version for name, version in found.distributions.items() if version is not None}
    bounds = {n: getattr(args, n) for n in ("max_request_mb", "request_timeout_s", "max_queue", "max_batch")}
    observation = {
        key: {"dtype": str(value.dtype), "shape": list(value.shape)}
        if isinstance(value, np.ndarray)
        else {"dtype": "str", "shape": [len(value)]}
        for key, value in policy.example().items()
    }
    return {
        "model": args.model_path,
        "data_config": policy.config_name,
        "embodiment_tag": policy.metadata.embodiment_tag,
        "denoising_steps": policy.denoising_steps,
        "device": record.device,
        "gpu": found.gpu,
        "commit": record.git.commit,
        "versions": {"python": found.python, **distributions},
        "submodules": deployment.backends,
        "engines": {"built": from_cache.count(False), "from_cache": from_cache.count(True)},
        "action_cosine_to_fp32": _actions(deployment).cosine,
        "observation": observation,
        "limits": {**bounds, "samples": limits.max_samples, "tokens": limits.max_tokens},
    }
