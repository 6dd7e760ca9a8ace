"""Which policies a simulation compares: plans of one local model, servers. Never imports torch."""

from __future__ import annotations

import argparse
import re
from copy import copy
from dataclasses import dataclass

from ..errors import UsageError
from ..evaluate.policies import check_policy_flags, plan_of
from ..plans.backends import BACKENDS
from ..plans.shipped import SUFFIXES, shipped_plans

KNOWN = "BACKEND, BACKEND:PRECISION, a plan's name or file, HOST:PORT"
_PLAN_FLAGS = ("backend", "precision", "config", "use_torch_tensorrt")


@dataclass(frozen=True)
class Candidate:
    """One policy.

    Attributes:
        name: What to call it beside others.
        args: The flags that open it alone, as `evaluate.policies.open_policy` takes them.
    """

    name: str
    args: argparse.Namespace


def candidates(args: argparse.Namespace) -> list[Candidate]:
    """The policies of ``--compare``, or the only one of the other flags.

    Raises: PlanError for a name that is none, one given twice, a plan beside the flag, and as `check_policy_flags`.
    """
    if args.compare is None:
        return [Candidate(named(args), args)]
    given = [flag for flag in _PLAN_FLAGS if getattr(args, flag)]
    if given:
        raise UsageError(f"--compare names the plans, and --{given[0]} another one", fix=f"leave --{given[0]} out")
    own = [_alone(args, item.strip()) for item in args.compare.split(",")]
    if len(own) < 2:
        raise UsageError(f"--compare {args.compare}: nothing to compare it with", known="two or more of: " + KNOWN)
    for one in own:
        check_policy_flags(one)
    found = [Candidate(named(one), one) for one in own]
    names = [one.name for one in found]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise UsageError(f"--compare: {name} is named twice", known=KNOWN)
    return found


def named(args: argparse.Namespace) -> str:
    """What to call the policy of some flags: ``inductor bf16``, ``eager fp32``, ``server localhost:5555``."""
    if args.model_path is None:
        return f"server {args.host}:{args.port}"
    plan = plan_of(args)
    if plan is None:
        return "eager fp32"
    return f"{plan.backend} {plan.precision}" + (f" ({args.config})" if args.config else "")


def _alone(args: argparse.Namespace, item: str) -> argparse.Namespace:
    own = copy(args)
    server = re.fullmatch(r"(.+):(\d+)", item)
    if server:
        own.model_path, own.host, own.port = None, server[1], int(server[2])
        return own
    if args.model_path is None:
        raise UsageError(f"--compare {item} needs a local model", fix="add --model_path, or name servers as HOST:PORT")
    backend, _, precision = item.partition(":")
    if backend in BACKENDS:
        # What others are held against is fp32, unless it says otherwise.
        own.backend, own.precision = backend, precision or ("fp32" if backend == "eager" else None)
    elif item in shipped_plans() or item.endswith(SUFFIXES):
        own.config = item
    else:
        what = f"--compare: {item!r} is no policy"
        raise UsageError(what, known=f"{KNOWN}; backends: {', '.join(BACKENDS)}")
    return own
