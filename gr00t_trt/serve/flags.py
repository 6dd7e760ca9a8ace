"""The command line of the service: NVIDIA's flags with NVIDIA's defaults, and ours beside them. Never imports torch."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from ..common.command import Parser, parse_flags, setting, switch, underscored
from ..deploy.bundle.manifest import plan_of_bundle
from ..deploy.defaults import with_fp32_acc
from ..errors import UsageError
from ..plans import flags
from ..plans.load import load_plan
from ..plans.schema import Plan
from ..policy.flags import POLICY, source_flags
from .api_token import token_flags, token_of
from .request_log import REQUESTS

ENGINES = "gr00t_engine"
"""Where NVIDIA's build script leaves its engines."""

DECIDED = (
    *(*POLICY, "also"),
    *("use_torch_tensorrt", "use_tensorrt", "trt_engine_path", "backend", "config", "precision", "calibration"),
    *("vit_dtype", "llm_dtype", "dit_dtype", "use_explicit_typing", "use_fp32_acc", "cuda_graph", "engine_dir"),
    *("engine_cache", "no_check", "dataset_path"),
)
"""Flags about what was decided when a bundle was made."""

EPILOG = """\
examples:
  try it, nothing needed (a generated model), in two terminals:
    gr00t-trt serve --server --model_path synthetic
    gr00t-trt serve --client
  compiled with Torch-TensorRT in fp16, for robots on the network:
    gr00t-trt serve --server --use_torch_tensorrt --precision fp16 --host 0.0.0.0 --api_token_file token.txt
  HTTP instead of ZeroMQ, or HTTP beside it (for /metrics):
    gr00t-trt serve --server --http_server --port 8000
    gr00t-trt serve --server --http_port 8000
  for programs that speak openpi's protocol, beside the others:
    gr00t-trt serve --server --websocket_port 8001
  from a bundle, without the checkpoint; nothing is built, and nothing is downloaded:
    gr00t-trt bundle OUT --model_path CHECKPOINT --config fast
    gr00t-trt serve --server --bundle OUT
  many robots: what waits when the device becomes free shares a pass through the model:
    gr00t-trt serve --server --max_batch 8

Once ready the server prints one line per address on stdout: `ready tcp://127.0.0.1:5555`. SIGTERM and Ctrl-C let it
finish the request it works on, refuse those that wait, and end with 0 within 3 s. A request that takes longer than that
is refused, too, and the exit status is 130. At the end it says how many requests it answered, and how fast.

A request of more samples or tokens than the plan's `ranges` (8 samples; three views and 256 tokens of text) is refused
before any work, whatever runs the model. Of messages that have begun and not ended, no more than four times
--max_request_mb is kept.

exit status: 0 done, 2 bad input, 130 interrupted before it was ready or in the middle of a request
"""


def parser() -> argparse.ArgumentParser:
    """All flags; a setting of the plan that was not given stays None, so that a plan file can be told from it."""
    what = "Serve GR00T N1.5 to robots and simulators over ZeroMQ, HTTP or WebSocket, as existing clients expect it."
    p = Parser(prog="gr00t-trt serve", description=what, epilog=EPILOG)
    g = p.add_argument_group("what to do (one of the two)")
    switch(g, "server", help="load, compile and warm up the policy, then answer")
    switch(g, "client", help="send one example observation to a server and show what comes back")

    _where(p)
    g = p.add_argument_group("what is served")
    helps = {"device": "cuda, cuda:1, cpu [cuda where there is one]"}
    source_flags(g, *POLICY, "device", data_config="fourier_gr1_arms_waist", helps=helps)

    help = (
        "a further kind of robot that the same model drives: its embodiment tag and data config, and where the "
        "checkpoint has no statistics of it, a metadata.json; requests name it by `embodiment_tag` (repeatable)"
    )
    g.add_argument("--also", action="append", default=[], metavar="TAG=CONFIG[,FILE]", help=help)
    help = "folder of gr00t-trt bundle: starts from it alone, and has its own checkpoint, data config and plan [none]"
    g.add_argument("--bundle", metavar="DIR", help=help)

    g = p.add_argument_group("how it is compiled")
    switch(g, "use_torch_tensorrt", help="compile with Torch-TensorRT at start-up: --backend torch_tensorrt")
    switch(g, "use_tensorrt", help="--backend tensorrt, with ready-made engines where they fit and its own elsewhere")
    help = f"folder of NVIDIA's ready-made engines [{ENGINES} with --use_tensorrt, else none]"
    g.add_argument("--trt_engine_path", metavar="DIR", help=help)
    flags.backend_flag(g, " [eager]")
    flags.config_flag(g)
    flags.print_plan_flag(g)
    flags.precision_flag(g, ", any case [bf16]")
    flags.dtype_flags(g)
    switch(g, "use_explicit_typing", default=None, help="the graph's dtypes are the engine's dtypes [on]")
    switch(g, "use_fp32_acc", default=None, help="accumulate fp16 matrix products in fp32 [on for fp16 engines]")
    flags.cuda_graph_flag(
        g,
        ": replay whole requests as CUDA graphs, of the shapes known at the start or of every new one too; the model "
        "then counts as one stage [none]",
    )
    flags.engine_flags(g, "start builds")
    help = "start without comparing with fp32, sooner; no accuracy is known then, and no gate is asked"
    switch(g, "no_check", help=help)
    help = "LeRobot dataset whose first observation accuracy is checked on [a made-up observation]"
    source_flags(g, "dataset_path", dataset_path=None, helps={"dataset_path": help})

    _limits_and_log(p)
    return p


def _limits_and_log(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("limits")
    setting(g, "max_request_mb", 32.0, "largest request", metavar="MB")
    setting(g, "request_timeout_s", 15.0, "longest wait of a request, and longest time to send one", metavar="S")
    setting(g, "max_queue", 64, "requests that may wait, each sample of a batch counted")
    setting(g, "max_batch", 1, "waiting requests that may share a pass; 1, 2, 4, 8, ... of them where graphs replay")
    setting(g, "batch_wait_ms", 0.0, "longest wait of the first one for others to share with", metavar="MS")

    g = p.add_argument_group("other weights while it runs (gr00t-trt deploy-weights)")
    help = "let a request replace the weights by those of a checkpoint below this folder, at once and checked [none]"
    g.add_argument("--allow_reload", metavar="DIR", help=help)

    g = p.add_argument_group("more than one GPU (needs gr00t_trt[replicas])")
    help = "so many policies on Ray Serve, one a GPU, or with --device cpu in so many processes [none: in this process]"
    g.add_argument("--replicas", type=int, metavar="N", help=help)
    help = "a Ray cluster, such as auto; every machine needs this package and the same paths [one of its own, here]"
    g.add_argument("--ray_address", metavar="ADDRESS", help=help)

    g = p.add_argument_group("log (on stderr; logger gr00t_trt.serve)")
    help = f"{REQUESTS}: one line per request [warnings alone]"
    g.add_argument("--log", choices=(REQUESTS,), metavar="WHAT", help=help)
    setting(g, "slow_ms", 1000.0, "a request that takes this long is warned of", metavar="MS")


def _where(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("where")
    g.add_argument(
        "--host",
        default="localhost",
        help="server: address to listen on, 0.0.0.0 for all (NVIDIA's ZeroMQ server ignores it and takes all); "
        "client: where the server is [%(default)s]",
    )
    setting(g, "port", 5555, "0 for any that is free")
    switch(g, "http_server", help="HTTP instead of ZeroMQ, for server and client")
    g.add_argument("--http_port", type=int, metavar="N", help="HTTP beside ZeroMQ, on this port [none]")
    help = "openpi's WebSocket protocol beside the others, on this port [none]"
    g.add_argument("--websocket_port", type=int, metavar="N", help=help)
    token_flags(g, "the token that every request must carry")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without a plan; `api_token` also from its file or the environment.

    Raises: UsageError for an unknown flag, a value out of range, or flags that exclude each other; RecordError for a
        folder that is no bundle.
    """
    args = parse_flags(parser(), argv)
    args.api_token = token_of(args)
    if args.bundle is not None:
        _refuse_what_a_bundle_has(argv)
        plan_of_bundle(Path(args.bundle))  # before anybody waits for PyTorch
    if not (args.server or args.client):
        raise UsageError("neither --server nor --client was given", fix="--help shows an example of each")
    for flag, lowest, highest in (
        ("port", 0, 65535),
        ("http_port", 0, 65535),
        ("websocket_port", 0, 65535),
        ("max_request_mb", 0.001, 2000),
        ("request_timeout_s", 0.001, 86400),
        ("max_queue", 1, 100_000),
        ("max_batch", 1, 1024),
        ("replicas", 1, 1024),
        ("batch_wait_ms", 0, 10_000),
        ("slow_ms", 0, 1e9),
    ):
        value = getattr(args, flag)
        if value is not None and not lowest <= value <= highest:
            raise UsageError(f"--{flag}: {value} is out of range", known=f"{lowest:g} to {highest:g}")
    if args.http_server and args.http_port is not None:
        raise UsageError("--http_server puts HTTP on --port, --http_port beside ZeroMQ", fix="leave one of them out")
    if args.ray_address is not None and args.replicas is None:
        raise UsageError("--ray_address says where replicas run", fix="say how many with --replicas")
    for flag in ("replicas", "allow_reload"):
        if args.also and getattr(args, flag) is not None:
            what = f"--also: --{flag} is for a server of one kind of robot"
            raise UsageError(what, fix="leave one of both out, or start a server for each kind")
    if args.max_batch > 1 and args.bracketed_instruction:
        raise UsageError("--bracketed_instruction holds for single requests, and --max_batch makes batches of them")
    return args


def _refuse_what_a_bundle_has(argv: Sequence[str]) -> None:
    """Raises: UsageError for a flag about what was decided when the bundle was made."""
    given = {word.partition("=")[0].removeprefix("--") for word in underscored(argv) if word.startswith("--")}
    decided = [name for name in DECIDED if given & {name, f"no_{name}"}]
    if decided:
        raise UsageError(
            f"--{decided[0]}: a bundle has its own, decided when it was made",
            known="with --bundle: --device, and the flags of where it listens, limits, replicas and log",
            fix="leave it out, or make another bundle with it",
        )
    if "allow_reload" in given:
        raise UsageError(
            "--allow_reload: a bundle's code and engines are those of its own weights",
            fix="make a bundle of the other checkpoint, and start a server from that",
        )


def plan_of(args: argparse.Namespace) -> Plan:
    """What is to be compiled, and how; of a bundle, what was. Raises: PlanError for what cannot work."""
    plan = load_plan(plan_of_bundle(Path(args.bundle))) if args.bundle is not None else _plan_of_flags(args)
    if args.max_batch > plan.ranges.batch[1]:
        raise UsageError(
            f"--max_batch: {args.max_batch} is more than the plan's batches",
            known=f"up to {plan.ranges.batch[1]}",
            fix="raise `ranges: {batch: [1, N]}` in a plan file",
        )
    return plan


def _plan_of_flags(args: argparse.Namespace) -> Plan:
    overrides = flags.overrides_of(
        args, use_explicit_typing="build.use_explicit_typing", use_fp32_acc="build.use_fp32_acc"
    )
    wanted = {
        "--use_torch_tensorrt": "torch_tensorrt" if args.use_torch_tensorrt else None,
        "--use_tensorrt": "tensorrt" if args.use_tensorrt else None,
        f"--backend {args.backend}": args.backend,
    }
    overrides["backend"] = flags.one_backend(wanted)
    if args.use_tensorrt or args.trt_engine_path:
        overrides["build.trt_engine_path"] = args.trt_engine_path or ENGINES
    return with_fp32_acc(flags.plan_from(args, overrides, Plan(backend="eager", precision="bf16")), args)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
