"""Whatever answers an observation with actions: a local model or a server, chosen by the same flags everywhere.

Never imports torch unless the policy is local, so that a robot's computer can drive a remote one without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..common.progress import Steps
from ..errors import AccuracyError, PlanError
from ..plans.load import load_plan, merge
from ..plans.schema import BACKENDS, PRECISIONS, Plan

if TYPE_CHECKING:
    from ..data import DatasetMetadata
    from .local import LocalPolicy


class Policy(Protocol):
    """What evaluations, robots and simulators ask: a local model, a client of a server, or a script."""

    def get_action(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """``action.<part>`` [T, D] for one observation, [B, T, D] for a batch, in physical units."""
        ...

    def get_modality_config(self) -> Mapping[str, Any]:
        """Modality (video, state, action, language) -> its ``delta_indices`` and ``modality_keys``."""
        ...


class CameraPolicy(Policy, Protocol):
    """A policy that tells which camera frames it was trained with."""

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Video key -> height and width in pixels."""
        ...


def policy_flags(p: argparse.ArgumentParser, *, data_config: str, embodiment_tag: str, host_flag: str = "host") -> None:
    """The flags that choose a policy.

    Args:
        data_config, embodiment_tag: Defaults for a local model.
        host_flag: ``host``, or ``policy_host`` where programs of NVIDIA spell it so; the port's follows.
    """
    g = p.add_argument_group("a local policy")
    g.add_argument(
        "--model_path",
        type=optional,
        metavar="PATH",
        help="checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [none: a server is asked]",
    )
    g.add_argument(
        "--data_config",
        default=data_config,
        metavar="NAME",
        help="keys and transforms: a built-in name or module:Class [%(default)s]",
    )
    g.add_argument(
        "--embodiment_tag",
        default=embodiment_tag,
        metavar="TAG",
        help="projector and statistics: gr1, oxe_droid, agibot_genie1, new_embodiment [%(default)s]",
    )
    g.add_argument("--tokenizer", metavar="PATH", help="tokenizer folder, tokenizer.json or hub id [found by itself]")
    g.add_argument("--metadata", metavar="PATH", help="metadata.json to use instead of the checkpoint's own")
    g.add_argument("--denoising_steps", type=int, metavar="N", help="Euler steps per action chunk [4]")
    g.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the initial noise [%(default)s]")
    g.add_argument("--device", metavar="DEVICE", help="cuda:0, cpu [cuda:0 where there is one]")
    g.add_argument(
        "--use_torch_tensorrt",
        action="store_true",
        help="compile with Torch-TensorRT: --backend torch_tensorrt; with a server: tell it to use position ids, as "
        "NVIDIA's fork needs",
    )
    g.add_argument("--backend", metavar="NAME", help=f"{', '.join(BACKENDS)} [none: eager fp32]")
    g.add_argument("--precision", metavar="P", help=f"{', '.join(PRECISIONS)}, any case [fp16 when compiled]")
    g.add_argument("--config", metavar="PLAN.yaml", help="plan file; flags win over its plan-wide settings")
    g.add_argument("--engine_dir", metavar="DIR", help="write engines and their manifests here [not written]")
    g = p.add_argument_group("a served policy, without --model_path")
    g.add_argument(f"--{host_flag}", dest="host", default="localhost", help="where the server runs [%(default)s]")
    port_flag = host_flag.replace("host", "port")
    g.add_argument(f"--{port_flag}", dest="port", type=int, default=5555, metavar="N", help="its port [%(default)s]")
    g.add_argument("--api_token", type=optional, metavar="TOKEN", help="what the server wants to be shown")
    g.add_argument(
        "--timeout_ms", type=int, default=15000, metavar="MS", help="longest wait for an answer [%(default)s]"
    )


def optional(text: str) -> str | None:
    """A text flag that takes `None` for nothing, as NVIDIA's programs do."""
    return None if text == "None" else text


def plan_of(args: argparse.Namespace) -> Plan | None:
    """What is to be done to a local model; None for nothing: it stays in eager fp32.

    Raises: PlanError as `plans.load_plan` and `plans.merge`, and where two flags name different backends.
    """
    backend = args.backend
    if args.use_torch_tensorrt:
        if backend not in (None, "torch_tensorrt"):
            raise PlanError(f"--use_torch_tensorrt and --backend {backend} exclude each other", fix="leave one out")
        backend = "torch_tensorrt"
    if backend is None and args.config is None:
        if args.precision is None:
            return None
        backend = "eager"
    overrides = {"backend": backend, "precision": args.precision, "denoising_steps": args.denoising_steps}
    return merge(load_plan(args.config) if args.config else Plan(), overrides)


def check_policy_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot work, and what can only be meant for the other kind of policy. Raises: PlanError."""
    if not 0 <= args.seed < 2**63:
        raise PlanError(f"--seed: {args.seed} is out of range", known="0 to 2^63 - 1")
    if args.timeout_ms < 1 or not 0 < args.port < 65536:
        bad = f"--timeout_ms: {args.timeout_ms}" if args.timeout_ms < 1 else f"port {args.port}"
        raise PlanError(f"{bad} is out of range", known="at least 1 millisecond, a port from 1 to 65535")
    if args.model_path is not None:
        plan_of(args)
        return
    local = ("backend", "config", "precision", "engine_dir", "denoising_steps", "device", "tokenizer", "metadata")
    given = [name for name in local if getattr(args, name) is not None]
    if given:
        raise PlanError(
            f"--{given[0]} concerns a local model, and a server is asked here",
            fix="add --model_path, or start the server with it",
        )


def load_local(args: argparse.Namespace, steps: Steps, *, metadata: DatasetMetadata | None = None) -> LocalPolicy:
    """The model of `--model_path` in eager fp32, before any plan.

    Args:
        metadata: Statistics for a synthetic model, which has none of its own; others bring theirs.
    Raises: Gr00tError as `policy.load_policy`.
    """
    from ..common.devices import choose_device
    from ..model import resolve_checkpoint
    from ..policy.policy import load_policy
    from .local import LocalPolicy

    device = choose_device(args.device)
    steps.step(f"loading the model: {args.model_path}")
    folder = resolve_checkpoint(args.model_path)
    policy = load_policy(
        folder or args.model_path,
        data_config=args.data_config,
        embodiment_tag=args.embodiment_tag,
        metadata=args.metadata or (metadata if folder is None else None),
        tokenizer=args.tokenizer,
        denoising_steps=args.denoising_steps,
        device=device,
    )
    return LocalPolicy(policy, args.model_path, seed=args.seed)


def carry_out(local: LocalPolicy, plan: Plan, args: argparse.Namespace, steps: Steps) -> None:
    """Carry out a plan on a local policy, in place. Raises: Gr00tError as `deploy.deploy`."""
    local.deploy(plan, steps, engine_dir=Path(args.engine_dir) if args.engine_dir else None)


class ServedPolicy:
    """A policy behind a server, which may be NVIDIA's own.

    Args:
        client: A `serve.client.RobotInferenceClient`.
        address: What to call it.
        position_ids: Send ``use_position_ids`` along, without which NVIDIA's fork cannot run the modules that it
            compiled with Torch-TensorRT.
    """

    def __init__(self, client: Any, address: str, *, position_ids: bool):
        self.client, self.address, self.position_ids = client, address, position_ids
        self._config = client.get_modality_config()

    def get_modality_config(self) -> Mapping[str, Any]:
        return self._config

    def get_action(self, observation: Mapping[str, Any]) -> dict[str, np.ndarray]:
        extra = {"use_position_ids": True} if self.position_ids else {}
        answer = self.client.get_action({**observation, **extra})
        return answer.get("actions", answer)  # some servers wrap the map once more

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Video key -> height and width of the frames that the server's model was trained with.

        Raises: ServiceError from a server that does not tell, which means one of another make.
        """
        from ..serve.client import frame_sizes

        return frame_sizes(self.client.status())

    def describe(self) -> dict[str, Any]:
        """For a record."""
        return {"server": self.address}


def connect(args: argparse.Namespace) -> ServedPolicy:
    """The policy of the server that the flags name.

    Raises: ServiceError when nothing answers there, or the token is wrong.
    """
    from ..serve.client import RobotInferenceClient

    client = RobotInferenceClient(args.host, args.port, timeout_ms=args.timeout_ms, api_token=args.api_token)
    return ServedPolicy(client, f"{args.host}:{args.port}", position_ids=args.use_torch_tensorrt)


def open_policy(args: argparse.Namespace, steps: Steps) -> tuple[CameraPolicy, dict[str, Any]]:
    """The policy of the flags, ready to be asked, and what a record should say of it.

    Raises: Gr00tError: nothing to load, nothing that answers, or not accurate enough.
    """
    if args.model_path is None:
        steps.step(f"asking the server at {args.host}:{args.port} what it needs")
        served = connect(args)
        return served, served.describe()
    plan = plan_of(args)
    local = load_local(args, steps)
    if plan is not None:
        carry_out(local, plan, args, steps)
    return local, local.describe()


def refuse_non_finite(action: Mapping[str, Any], source: str) -> None:
    """Raises: AccuracyError for a NaN or an infinity among the actions, naming its place: no robot may see it."""
    for key, value in action.items():
        finite = np.isfinite(value)
        if not finite.all():
            place = [int(i) for i in np.argwhere(~finite)[0]]
            raise AccuracyError(
                f"{source}: {key} holds {np.asarray(value)[tuple(place)]} at {place}",
                known="finite actions",
                fix="try --precision bf16 or fp32: fp16 overflows above 65504",
            )
