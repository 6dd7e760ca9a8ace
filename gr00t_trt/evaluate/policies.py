"""Whatever answers an observation with actions: a local model or a server, chosen by the same flags everywhere.

Never imports torch unless the policy is local, so that a robot's computer can drive a remote one without it.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..common.command import setting
from ..common.interface import ModalityConfig, Observation
from ..common.progress import Steps
from ..errors import PlanError, UsageError
from ..plans import flags
from ..plans.schema import Plan
from ..policy.flags import check_seed, source_flags
from ..serve.api_token import token_flags, token_of
from .about import About

if TYPE_CHECKING:
    from ..data import LeRobotDataset
    from .local import LocalPolicy


class Policy(Protocol):
    """What evaluations, robots and simulators ask: a local model, a client of a server, or a script."""

    def get_action(self, observation: Observation) -> dict[str, np.ndarray]:
        """``action.<part>`` [T, D] for one observation, [B, T, D] for a batch, in physical units."""

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        """Modality (video, state, action, language) -> its ``delta_indices`` and ``modality_keys``."""


class CameraPolicy(Policy, Protocol):
    """A policy that tells which camera frames it was trained with."""

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Video key -> height and width in pixels."""


def policy_flags(p: argparse.ArgumentParser, *, data_config: str, embodiment_tag: str, host_flag: str = "host") -> None:
    """The flags that choose a policy.

    Args:
        data_config, embodiment_tag: Defaults for a local model.
        host_flag: ``host``, or ``policy_host`` where programs of NVIDIA spell it so; the port's follows.
    """
    g = p.add_argument_group("a local policy")
    keys = ["model_path", "data_config", "embodiment_tag", "tokenizer", "metadata", "bracketed_instruction"]
    keys += ["denoising_steps", "seed", "device"]
    defaults = {"model_path": None, "data_config": data_config, "embodiment_tag": embodiment_tag}
    help = "checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full` [none: a server is asked]"
    source_flags(g, *keys, helps={"model_path": help}, **defaults)
    help = "compile with Torch-TensorRT: --backend torch_tensorrt; with a server: tell it to use position ids, as "
    g.add_argument("--use_torch_tensorrt", action="store_true", help=help + "NVIDIA's fork needs")
    flags.backend_flag(g, " [none: eager fp32]")
    flags.precision_flag(g, ", any case [fp16 when compiled]")
    flags.config_flag(g)
    flags.print_plan_flag(g)
    g.add_argument("--engine_dir", metavar="DIR", help="write engines and their manifests here [not written]")
    g = p.add_argument_group("a served policy, without --model_path")
    g.add_argument(f"--{host_flag}", dest="host", default="localhost", help="where the server runs [%(default)s]")
    port_flag = host_flag.replace("host", "port")
    g.add_argument(f"--{port_flag}", dest="port", type=int, default=5555, metavar="N", help="its port [%(default)s]")
    token_flags(g, "the token that the server wants to be shown")
    setting(g, "timeout_ms", 15000, "longest wait for an answer", metavar="MS")


def plan_of(args: argparse.Namespace) -> Plan | None:
    """What is to be done to a local model; None for nothing: it stays in eager fp32.

    Raises: PlanError as `plans.load_plan` and `plans.merge`, and where two flags name different backends.
    """
    compiled = "torch_tensorrt" if args.use_torch_tensorrt else None
    backend = flags.one_backend({"--use_torch_tensorrt": compiled, f"--backend {args.backend}": args.backend})
    if backend is None and args.config is None:
        if args.precision is None:
            if args.calibration is not None:
                fix = "add --precision int8, fp8 or nvfp4"
                raise UsageError("--calibration: no quantised precision is asked for, so it would not be used", fix=fix)
            return None
        backend = "eager"
    return flags.plan_from(args, {**flags.overrides_of(args), "backend": backend})


def print_plan(args: argparse.Namespace, command: Sequence[str]) -> None:
    """Print what would be done to the local model, for ``--print_plan``. Raises: UsageError for a served policy."""
    if args.model_path is None:
        raise UsageError("--print_plan: a served policy has its server's plan", fix="add --model_path")
    plan = plan_of(args) or Plan(backend="eager", precision="fp32")
    flags.print_plan(plan, shlex.join(["gr00t-trt", *command]))


def carry_out(args: argparse.Namespace, local: LocalPolicy, steps: Steps) -> Plan | None:
    """Do to a local model what the flags say; on a GPU, what is fastest there where they say nothing.

    Returns: The plan; None for nothing done: eager fp32.
    Raises: Gr00tError as `deploy.deploy`.
    """
    default = flags.default_to_fast(args, str(local.policy.model.device))
    plan = plan_of(args)
    if plan is not None:
        local.carry_out(plan, args.engine_dir, steps, chosen=not default)
    return plan


def check_policy_flags(args: argparse.Namespace) -> None:
    """Refuse what cannot work, and what can only be meant for the other kind of policy. Raises: PlanError.

    `api_token` is filled from its file or the environment.
    """
    args.api_token = token_of(args)
    check_seed(args.seed)
    if args.timeout_ms < 1 or not 0 < args.port < 65536:
        bad = f"--timeout_ms: {args.timeout_ms}" if args.timeout_ms < 1 else f"port {args.port}"
        raise PlanError(f"{bad} is out of range", known="at least 1 millisecond, a port from 1 to 65535")
    if args.model_path is not None:
        plan_of(args)
        return
    local = ["backend", "config", "precision", "calibration", "engine_dir", "denoising_steps", "device", "tokenizer"]
    given = [name for name in (*local, "metadata") if getattr(args, name) is not None]
    given += ["bracketed_instruction"] if args.bracketed_instruction else []
    if given:
        fix = "add --model_path, or start the server with it"
        raise PlanError(f"--{given[0]} concerns a local model, and a server is asked here", fix=fix)


def load_local(args: argparse.Namespace, steps: Steps, *, dataset: LeRobotDataset | None = None) -> LocalPolicy:
    """The model of `--model_path` in eager fp32, before any plan.

    Args:
        dataset: What it will be asked about; a synthetic model, which has none, takes its statistics.
    Raises: Gr00tError as `policy.load_policy`.
    """
    from ..common.devices import choose_device
    from ..policy.source import Source
    from .local import LocalPolicy

    source = Source.of(args)
    statistics = None if dataset is None else source.statistics(dataset)
    policy = source.policy(choose_device(args.device), steps, statistics=statistics)
    return LocalPolicy(policy, args.model_path, seed=args.seed)


class ServedPolicy:
    """A policy behind a server, which may be NVIDIA's own.

    Args:
        client: A `serve.client.RobotInferenceClient`; `address` is what to call it.
        position_ids: Send ``use_position_ids`` along, without which NVIDIA's fork cannot run the modules that it
            compiled with Torch-TensorRT.
    """

    def __init__(self, client: Any, address: str, *, position_ids: bool):
        self.client, self.address, self.position_ids = client, address, position_ids
        self._config = client.get_modality_config()

    def get_modality_config(self) -> Mapping[str, ModalityConfig]:
        return self._config

    def get_action(self, observation: Observation) -> dict[str, np.ndarray]:
        extra = {"use_position_ids": True} if self.position_ids else {}
        answer = self.client.get_action({**observation, **extra})
        return answer.get("actions", answer)  # some servers wrap the map once more

    def frame_sizes(self) -> dict[str, tuple[int, int]]:
        """Raises: ServiceError from a server that does not tell, which means one of another make."""
        from ..serve.client import frame_sizes

        return frame_sizes(self.client.status())

    def describe(self) -> About:
        return About({"server": self.address})


def connect(args: argparse.Namespace) -> ServedPolicy:
    """The policy of the server that the flags name. Raises: ServiceError for no answer, or a wrong token."""
    from ..serve.client import RobotInferenceClient

    client = RobotInferenceClient(args.host, args.port, timeout_ms=args.timeout_ms, api_token=args.api_token)
    return ServedPolicy(client, f"{args.host}:{args.port}", position_ids=args.use_torch_tensorrt)


def open_policy(args: argparse.Namespace, steps: Steps) -> tuple[CameraPolicy, About]:
    """The policy of the flags, ready to be asked, and what a record should say of it.

    Raises: Gr00tError: nothing to load, nothing that answers, or not accurate enough.
    """
    if args.model_path is None:
        steps.step(f"asking the server at {args.host}:{args.port} what it needs")
        served = connect(args)
        return served, served.describe()
    local = load_local(args, steps)
    carry_out(args, local, steps)
    return local, local.describe()
