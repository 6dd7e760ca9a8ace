"""What a policy that is put into service is compiled with where nobody says otherwise. Never imports torch."""

from __future__ import annotations

import argparse

from ..plans.backends import AUTO, BACKENDS
from ..plans.load import merge
from ..plans.schema import SUBMODULES, Plan
from ..plans.submodules import resolve_submodule


def with_fp32_acc(plan: Plan, args: argparse.Namespace) -> Plan:
    """The plan with fp16 engines that add up in fp32, on by default as in the original; only these know it.

    Args:
        args: With `config`; a plan file, and a `use_fp32_acc` that was given, have decided it.
    """
    if args.config is not None or getattr(args, "use_fp32_acc", None) is not None:
        return plan
    used = [own for name in SUBMODULES if (own := resolve_submodule(plan, name)).backend != AUTO]
    fp16 = any(BACKENDS[own.backend].makes_engines and own.precision == "fp16" for own in used)
    return merge(plan, {"build.use_fp32_acc": True}) if fp16 else plan
