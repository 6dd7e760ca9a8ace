"""Starting and stopping a server: load, compile, check, warm up, listen, shut down."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.devices import choose_device
from ..common.progress import handling_signals, progress
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

if TYPE_CHECKING:
    from .http_server import HttpServer

MIB = 2**20


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
    about, may_kill = _description(args, policy, deployment), is_loopback(args.host)
    service = Service(worker, metrics, about, policy.modality_config, api_token=args.api_token, may_kill=may_kill)
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
    resolved = decided(resolve(plan_of(args), Machine(str(device)), engine_dir=folder, timed=False))
    if resolved.engine_dir is not None:
        prepare_engine_dir(resolved.engine_dir)
    with progress(console) as steps:
        source = Source.of(args)
        observation = read_observation(source, steps)
        policy = replace(source, denoising_steps=None).policy(device, steps)
        command, cache = shlex.join(["gr00t-trt", "serve", *argv]), args.engine_cache
        return policy, deploy(policy, resolved, steps, observation=observation, engine_cache=cache, command=command)


def _servers(args: argparse.Namespace, service: Service) -> Iterator[ZmqServer | HttpServer]:
    size = int(args.max_request_mb * MIB)
    if not args.http_server:
        yield ZmqServer(service, args.host, args.port, max_request_bytes=size)
    port = args.port if args.http_server else args.http_port
    if port is not None:
        from .http_server import HttpServer  # whoever speaks ZeroMQ alone needs no web framework

        yield HttpServer(service, args.host, port, max_request_bytes=size, request_timeout_s=args.request_timeout_s)


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


@contextlib.contextmanager
def _stopped_by_signals(worker: PolicyWorker) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the worker when it has finished its request; a second one ends it at once."""

    def stop(*_: object) -> None:
        worker.stop()
        handling.close()

    with contextlib.ExitStack() as handling:
        handling.enter_context(handling_signals(stop))
        yield


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
    builds = [result.build for result in record.submodules if result.build is not None]
    from_cache = [build.from_cache for build in builds if build.engine_bytes is not None]
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
        "engines": {"built": from_cache.count(False), "from_cache": from_cache.count(True)},
        "action_cosine_to_fp32": _actions(deployment).cosine,
        "observation": observation,
        "limits": {n: getattr(args, n) for n in ("max_request_mb", "request_timeout_s", "max_queue", "max_batch")},
    }
