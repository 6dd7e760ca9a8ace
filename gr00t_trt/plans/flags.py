"""The flags that make a plan, declared once for all programs, and the plan that they make. Never imports torch."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import UsageError, unknown
from .backends import BACKENDS
from .load import load_plan, merge
from .precisions import precision_names
from .schema import CUDA_GRAPH, GROUPS, LOOPS, SUBMODULES, Plan

DTYPE_FLAGS = {"vit": "vision_model", "llm": "language_model", "dit": "dit_model"}
"""Published flag ``--<name>_dtype`` -> the submodule whose precision it sets."""

ENGINE_CACHE = "[$GR00T_TRT_ENGINE_CACHE, else ~/.cache/gr00t_trt/engines]"


def backend_flag(group: Any, help: str) -> None:
    """``--backend``; `help` ends the sentence that begins with the names."""
    group.add_argument("--backend", metavar="NAME", help=f"{', '.join(BACKENDS)}{help}")


def config_flag(group: Any, help: str = "plan file; flags win over its plan-wide settings") -> None:
    group.add_argument("--config", metavar="PLAN.yaml", help=help)


def precision_flag(group: Any, help: str) -> None:
    group.add_argument("--precision", metavar="P", help=f"{', '.join(precision_names())}{help}")


def dtype_flags(group: Any) -> None:
    for flag, submodule in DTYPE_FLAGS.items():
        group.add_argument(f"--{flag}_dtype", metavar="P", help=f"precision of {submodule} [--precision]")


def fn_name_flag(group: Any) -> None:
    names = ", ".join((*SUBMODULES, *GROUPS))
    group.add_argument("--fn_name", default="all", metavar="NAME", help=f"{names} [%(default)s]")


def optimizations_flag(group: Any, help: str) -> None:
    group.add_argument("--optimizations", "--optimisations", dest="optimizations", metavar="WHICH", help=help)


def loop_flag(group: Any, help: str) -> None:
    group.add_argument("--loop", metavar="AS", help=f"{', '.join(LOOPS)}{help}")


def cuda_graph_flag(group: Any, help: str) -> None:
    group.add_argument("--cuda_graph", metavar="WHEN", help=f"{', '.join(CUDA_GRAPH)}{help}")


def engine_flags(group: Any, what: str = "run builds") -> None:
    """`--engine_dir` and `--engine_cache`."""
    group.add_argument("--engine_dir", metavar="DIR", help="write engines and their manifests here [not written]")
    group.add_argument(
        "--engine_cache",
        metavar="DIR|off",
        help=f"where finished engines are kept, so that no later {what} them again; off: nowhere {ENGINE_CACHE}",
    )


def overrides_of(args: argparse.Namespace, **keys: str) -> dict[str, Any]:
    """Dotted plan key -> what the command line sets it to; None where the flag was not given.

    Args:
        keys: Flag -> dotted key, for flags that have another name than the plan's setting.
    """
    given = vars(args)
    own = ("backend", "precision", "optimizations", "loop", "cuda_graph", "denoising_steps")
    out = {key: given.get(key) for key in own}
    out |= {f"submodules.{name}.precision": given.get(f"{flag}_dtype") for flag, name in DTYPE_FLAGS.items()}
    return out | {key: given.get(flag) for flag, key in keys.items()}


def plan_from(args: argparse.Namespace, overrides: dict[str, Any], default: Plan | None = None) -> Plan:
    """The plan of ``--config``, or a default one, with the command line's settings. Raises: PlanError."""
    return merge(load_plan(args.config) if args.config else default or Plan(), overrides)


def one_backend(wanted: dict[str, str | None]) -> str | None:
    """The backend that flags name, each in its own way. Raises: UsageError where they name different ones."""
    given = {flag: backend for flag, backend in wanted.items() if backend is not None}
    if len(set(given.values())) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", fix="give one of them")
    return next(iter(given.values()), None)


def named_backends(text: str, flag: str) -> tuple[str, ...]:
    """The backends in a list with commas between them, eager first; all of them for ``all``.

    Raises: UsageError for an unknown name, one given twice, or nothing to compare eager with.
    """
    names = [name.strip().lower() for name in text.split(",")]
    if names == ["all"]:
        return tuple(BACKENDS)
    for i, name in enumerate(names):
        if name not in BACKENDS:
            raise unknown(UsageError, flag, name, (*BACKENDS, "all"))
        if name in names[:i]:
            raise UsageError(f"{flag}: {name} is named twice", known=BACKENDS)
    if names == ["eager"]:
        others = [name for name in BACKENDS if name != "eager"]
        raise UsageError(f"{flag} eager: nothing to compare it with", known=(*others, "all"))
    return tuple(dict.fromkeys(("eager", *names)))
