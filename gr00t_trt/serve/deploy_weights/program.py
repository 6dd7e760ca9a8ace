"""`gr00t-trt deploy-weights`: another checkpoint for a running service, or engines for the next start.

Exit status: 0 done, 2 refused or bad input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator, Sequence

from rich.console import Console

from ...common.command import Parser, parse_flags, run_program, setting, switch, underscored
from ...common.progress import progress
from ...errors import ServiceError, UsageError
from ..api_token import token_flags, token_of
from ..ask import connected
from ..flags import is_loopback
from ..wire import Message

BUILD = "--build"
_POLL_S = 0.1

EPILOG = f"""\
examples:
  a server that may be given other weights, and another checkpoint for it:
    gr00t-trt serve --server --model_path runs/a/step-1000 --allow_reload runs
    gr00t-trt deploy-weights runs/a/step-2000
  a server of another machine; the path is the server's:
    gr00t-trt deploy-weights /models/step-2000 --host robot.example --port 5555 --api_token_file token.txt
  no server runs: check the checkpoint, and build the engines that are missing, with the flags of its later start:
    gr00t-trt deploy-weights runs/a/step-2000 {BUILD} --use_torch_tensorrt --precision fp16

The service answers with its old weights until the new ones are loaded, compiled where that is needed and checked, and
with the new ones from the next request on. What is refused (another geometry or robot, a missed accuracy gate, a
damaged file) changes nothing.

With {BUILD}, which stands behind CHECKPOINT, every other flag is one of gr00t-trt serve.

exit status: 0 done, 2 refused or bad input, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    what = "Put another checkpoint into a running gr00t-trt serve, in seconds, or get one ready for its next start."
    p = Parser(prog="gr00t-trt deploy-weights", description=what, epilog=EPILOG)
    p.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a folder on the server's machine, below its --allow_reload"
    )
    p.add_argument("--host", default="localhost", help="where the server is [%(default)s]")
    setting(p, "port", 5555, "its port")
    switch(p, "http_server", help="it speaks HTTP on that port")
    token_flags(p, "the token that it asks for")
    setting(p, "timeout_s", 3600.0, "how long the change may take", metavar="S")
    p.add_argument(BUILD, action="store_true", help="no server: build what is missing; flags of gr00t-trt serve follow")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv, interrupted="interrupted; a change that has begun goes on in the server")


def _main(argv: Sequence[str], console: Console) -> int:
    argv = underscored(argv)
    if BUILD in argv and not {"-h", "--help"} & {*argv}:
        build(argv, console)
        return 0
    args = parse_flags(parser(), argv)
    args.api_token = token_of(args)
    if not 1 <= args.port <= 65535:
        raise UsageError(f"--port: {args.port} is out of range", known="1 to 65535")
    ask(args, console)
    return 0


def ask(args: argparse.Namespace, console: Console) -> None:
    """Have a running server change its weights, and tell how long each part took.

    Raises: ServiceError where it does not answer, or refuses.
    """
    with connected(args) as client, progress(console) as steps:
        number = client.reload(_path(args))["number"]
        deadline, said = time.monotonic() + args.timeout_s, None
        while True:
            told = client.status()["reload"]
            if told.get("number") != number:
                raise ServiceError(f"another change has taken the place of this one: {told.get('checkpoint')}")
            if told["state"] != "running":
                break
            if (phase := told.get("phase", said)) != said:
                steps.step(phase)
                said = phase
            if time.monotonic() > deadline:
                what = f"{told['checkpoint']} does not serve after {args.timeout_s:g} s; the server goes on"
                raise ServiceError(what, fix="wait longer with --timeout_s, or look at its status")
            time.sleep(_POLL_S)
        if told["state"] != "done":
            first, *rest = str(told["error"]).split("\n")
            raise ServiceError("\n".join([f"refused, the old weights go on serving: {first}", *rest]))
        checkpoint = client.status()["checkpoint"]
    for line in lines(told, checkpoint):
        print(line)


def _path(args: argparse.Namespace) -> str:
    """A folder of this machine by its whole path: the server runs somewhere else in it."""
    path = os.path.expanduser(args.checkpoint)
    return os.path.abspath(path) if is_loopback(args.host) and os.path.isdir(path) else args.checkpoint


def lines(told: Message, checkpoint: Message) -> Iterator[str]:
    """What became of a change, for the terminal."""
    seconds = told["seconds"]
    yield f"serving: {checkpoint['path']}"
    yield f"sha256: {checkpoint['sha256']}"
    yield f"tensors changed: {told.get('changed', 0)}"
    cached = set(told.get("from_cache", ()))
    built = [f"{name} (from the cache)" if name in cached else name for name in told.get("rebuilt", ())]
    for what, names in (("in place", told.get("in_place")), ("kept", told.get("reused")), ("built", built)):
        if names:
            yield f"stages {what}: {', '.join(names)}"
    for name, taken in seconds.items():
        if name not in ("pause", "total"):
            yield f"{name}: {taken:.2f} s"
    yield f"requests waited: {seconds['pause']:.3f} s"
    yield f"from checkpoint to first action: {seconds['total']:.2f} s"


def build(argv: Sequence[str], console: Console) -> None:
    """Carry out a server's start without serving: what it builds is in the engine cache for the next one.

    Raises: UsageError where no checkpoint stands first; Gr00tError as a start.
    """
    rest = [word for word in argv if word != BUILD]
    if not rest or rest[0].startswith("-"):
        raise UsageError(
            "no checkpoint was named", fix=f"put it first: gr00t-trt deploy-weights CHECKPOINT {BUILD} ..."
        )
    from ..flags import parse
    from ..start import prepare  # past the flags: PyTorch takes a while

    line = ["--server", "--model_path", *rest]
    args = parse(line)
    start = time.perf_counter()
    description = prepare(args, line, console).description(args)
    taken = time.perf_counter() - start
    engines = description["engines"]
    print(f"checked: {args.model_path}")
    print(f"engines built: {engines['built']}, from the cache: {engines['from_cache']}")
    print(f"from checkpoint to first action: {taken:.2f} s")
