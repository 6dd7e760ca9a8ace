"""The flags that make a plan, declared once for all programs, and the plan that they make. Never imports torch."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from typing import Any

from ..errors import PlanError, UsageError, unknown
from .backends import BACKENDS
from .load import load_plan, merge, plan_yaml
from .precisions import PRECISIONS, find_precision, precision_names
from .schema import CUDA_GRAPH, GROUPS, LOOPS, SUBMODULES, Plan

DTYPE_FLAGS = {"vit": "vision_model", "llm": "language_model", "dit": "dit_model"}
"""Published flag ``--<name>_dtype`` -> the submodule whose precision it sets."""
_DTYPES = tuple(f"{name}_dtype" for name in DTYPE_FLAGS)

ENGINE_CACHE = "[$GR00T_TRT_ENGINE_CACHE, else ~/.cache/gr00t_trt/engines]"


def backend_flag(group: Any, help: str) -> None:
    """``--backend``; `help` ends the sentence that begins with the names."""
    group.add_argument("--backend", metavar="NAME", help=f"{', '.join(BACKENDS)}{help}")


def config_flag(group: Any, help: str = "flags win over its plan-wide settings") -> None:
    """``--config``; `help` ends the sentence that says what it takes."""
    names = "plan: a YAML file, or one that comes with the package (`gr00t-trt plans` lists them)"
    group.add_argument("--config", metavar="PLAN", help=f"{names}; {help}")


def print_plan_flag(group: Any) -> None:
    help = "print the plan as it would be carried out, as YAML that --config takes, and do nothing"
    group.add_argument("--print_plan", action="store_true", help=help)


def print_plan(plan: Plan, command: str) -> None:
    """Print a plan on stdout, for ``--print_plan``.

    Args:
        command: The command line that it is the plan of.
    """
    print(f"# {command}\n{plan_yaml(plan)}", end="")


FAST = "fast"
"""The shipped plan that is used on a GPU where nobody chose another."""


def default_to_fast(args: argparse.Namespace, device: str) -> bool:
    """On a GPU, and where no flag names a plan or a backend, make `FAST` the plan; whether it did.

    Other flags, such as a precision, win over it as over any plan.
    """
    named = ("config", "backend", "use_torch_tensorrt", "use_tensorrt", "trt_engine_path")
    if not device.startswith("cuda") or any(getattr(args, name, None) for name in named):
        return False
    rows = [find_precision(getattr(args, flag, None) or "") for flag in ("precision", *_DTYPES)]
    if any(row.quantized for row in rows if row):  # which it does not build
        return False
    args.config = FAST
    return True


def precision_flag(group: Any, help: str, *, quantized: bool = True) -> None:
    """``--precision``; `help` ends the sentence that begins with the names and their other spellings.

    Args:
        quantized: Offer those that need a calibration too, and ``--calibration``.
    """
    names = [name for name in precision_names() if quantized or not PRECISIONS[name].quantized]
    spellings = ", ".join(other for name in names for other in PRECISIONS[name].spellings)
    group.add_argument("--precision", metavar="P", help=f"{', '.join(names)} (also {spellings}){help}")
    if quantized:
        needing = ", ".join(name for name in names if PRECISIONS[name].quantized)
        help = f"what gr00t-trt calibrate wrote, for {needing} [the plan's]"
        group.add_argument("--calibration", metavar="FILE", help=help)


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


_SAME_NAME = ("backend", "precision", "calibration", "optimizations", "loop", "cuda_graph", "denoising_steps")
_KEYS = {
    **{name: name for name in _SAME_NAME},
    **{f"{flag}_dtype": f"submodules.{name}.precision" for flag, name in DTYPE_FLAGS.items()},
}
"""Flag -> the dotted plan key that it sets."""


def overrides_of(args: argparse.Namespace, **keys: str) -> dict[str, object]:
    """Dotted plan key -> what the command line sets it to; None where the flag was not given.

    Args:
        keys: Flag -> dotted key, for flags that have another name than the plan's setting.
    """
    return {key: getattr(args, flag, None) for flag, key in (_KEYS | keys).items()}


def plan_from(
    args: argparse.Namespace,
    overrides: Mapping[str, object],
    default: Plan | None = None,
    *,
    keys: Mapping[str, str] | None = None,
) -> Plan:
    """The plan of ``--config``, or a default one, with the command line's settings.

    Args:
        keys: As in `overrides_of`, so that a message names the flag and not the key.
    Raises: PlanError.
    """
    plan = load_plan(args.config) if args.config else default or Plan()
    try:
        return merge(plan, overrides)
    except PlanError as error:
        text = str(error)
        for flag, key in (_KEYS | dict(keys or {})).items():
            text = re.sub(rf"^command line: {re.escape(key)}(?=[:\[])", f"--{flag}", text)
        raise PlanError(text) from None


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
