"""Starting and stopping a server: load, compile, check, warm up, listen, shut down."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.devices import choose_device
from ..common.progress import progress
from ..deploy.deploy import Deployment, deploy
from ..engines.files import prepare_engine_dir
from ..plans.resolve import Machine, decided, resolve
from ..policy.policy import Gr00tPolicy
from ..policy.source import Source, read_observation
from ..record.numbers import cosine, digits
from ..record.result import Agreement
from .batching import Batcher
from .flags import is_loopback, plan_of
from .metrics import Metrics
from .service import Service, cannot_listen
from .worker import PolicyWorker
from .zmq_server import ZmqServer

MIB = 2**20


class Server(Protocol):
    """A transport; `endpoint` is its address as a URL."""

    endpoint: str

    def start(self) -> None: ...

    def close(self) -> None: ...


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

    metrics = Metrics()
    worker = PolicyWorker(
        policy,
        metrics,
        tables=_timed_tables(policy),
        device=policy.model.device,
        max_queue=args.max_queue,
        request_timeout_s=args.request_timeout_s,
        batcher=Batcher(policy.modality_config, lambda text: len(policy.prompter.tokenizer.encode(text))),
        max_batch=args.max_batch,
        batch_wait_s=args.batch_wait_ms / 1e3,
        report=lambda error: console.print(f"{type(error).__name__}: {error}", style="red", markup=False),
    )
    service = Service(
        worker,
        metrics,
        _description(args, policy, deployment),
        policy.modality_config,
        api_token=args.api_token,
        may_kill=is_loopback(args.host),
    )
    with contextlib.ExitStack() as open_servers:
        for server in _servers(args, service):
            open_servers.callback(server.close)
            server.start()
            print(f"ready {server.endpoint}", flush=True)
            console.print(f"ready: {server.endpoint}", style="green", highlight=False)
        with _stopped_by_signals(worker):
            worker.run()
    console.print("stopped")


def _deploy(args: argparse.Namespace, argv: Sequence[str], console: Console) -> tuple[Gr00tPolicy, Deployment]:
    device = choose_device(args.device)
    folder = Path(args.engine_dir) if args.engine_dir else None
    resolved = decided(resolve(plan_of(args), Machine(str(device)), engine_dir=folder))
    if resolved.engine_dir is not None:
        prepare_engine_dir(resolved.engine_dir)
    with progress(console) as steps:
        source = Source.of(args)
        observation = read_observation(source, steps)
        policy = replace(source, denoising_steps=None).policy(device, steps)
        deployment = deploy(
            policy,
            resolved,
            steps,
            observation=observation,
            engine_cache=args.engine_cache,
            command=shlex.join(["gr00t-trt", "serve", *argv]),
        )
        return policy, deployment


def _servers(args: argparse.Namespace, service: Service) -> Iterator[Server]:
    size = int(args.max_request_mb * MIB)
    if not args.http_server:
        yield ZmqServer(service, args.host, args.port, max_request_bytes=size)
    port = args.port if args.http_server else args.http_port
    if port is not None:
        from .http_server import HttpServer  # whoever speaks ZeroMQ alone needs no web framework

        yield HttpServer(service, args.host, port, max_request_bytes=size, request_timeout_s=args.request_timeout_s)


def _timed_tables(policy: Gr00tPolicy) -> tuple[dict[str, Any], ...]:
    """The tables whose stages are timed: not the model's where it replays graphs, which were captured without."""
    if policy.model.graphs is not None:
        return (policy.stages,)
    return (policy.stages, policy.model.stages)


def _check_free(host: str, port: int) -> None:
    """Raises: ServiceError for an address that cannot be listened to.

    Nothing is listened to meanwhile: clients of a server that restarts would take that for the server.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("" if host == "*" else host, port))
        except OSError as error:
            raise cannot_listen(host, port, error.strerror) from error


@contextlib.contextmanager
def _stopped_by_signals(worker: PolicyWorker) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the worker when it has finished its request; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere signals cannot be handled
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def stop(*_: object) -> None:
        worker.stop()
        restore()

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        restore()


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


def _description(args: argparse.Namespace, policy: Gr00tPolicy, deployment: Deployment) -> dict[str, Any]:
    record, found = deployment.record, deployment.record.environment
    engines = [r.build for r in record.submodules if r.build is not None and r.build.engine_bytes is not None]
    distributions = {name: version for name, version in found.distributions.items() if version is not None}
    observation = {
        key: {"dtype": str(value.dtype), "shape": list(value.shape)}
        if isinstance(value, np.ndarray)
        else {"dtype": "str", "shape": [len(value)]}
        for key, value in policy.example().items()
    }
    return {
        "model": args.model_path,
        "data_config": args.data_config,
        "embodiment_tag": args.embodiment_tag,
        "denoising_steps": policy.denoising_steps,
        "device": record.device,
        "gpu": found.gpu,
        "commit": record.git.commit,
        "versions": {"python": found.python, **distributions},
        "submodules": deployment.backends,
        "engines": {
            "built": sum(not build.from_cache for build in engines),
            "from_cache": sum(build.from_cache for build in engines),
        },
        "action_cosine_to_fp32": _actions(deployment).cosine,
        "observation": observation,
        "limits": {
            "max_request_mb": args.max_request_mb,
            "request_timeout_s": args.request_timeout_s,
            "max_queue": args.max_queue,
            "max_batch": args.max_batch,
        },
    }
