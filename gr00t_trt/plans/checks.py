"""What one value of a plan may be: each checker takes a raw YAML value and gives back the setting, or says why not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..errors import PlanError, nearest, unknown
from .backends import AUTO, BACKENDS
from .precisions import find_precision, precision_names
from .schema import (
    ARCHITECTURE,
    AUTO_KEEP,
    CUDA_GRAPH,
    GROUPS,
    LOOPS,
    OPTIMIZATIONS,
    SUBMODULES,
    TIMERS,
    BenchmarkOptions,
    BuildOptions,
    Gate,
    Ranges,
    SubmodulePlan,
)

Check = Callable[[object, str], Any]
"""(raw value, where it stands) -> the checked value. Raises: PlanError."""

COMPUTE_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What TensorRT-RTX can build engines for ahead of time. Hopper (9.0), Orin (8.7) and Thor are not among them."""


def shown(value: object) -> str:
    """A raw value for a message: as YAML writes booleans and null, shortened when it is long."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def boolean(value: object, at: str) -> bool:
    if not isinstance(value, bool):
        raise PlanError(f"{at}: {shown(value)} is not a boolean", known="true, false")
    return value


def integer(lowest: int, highest: int) -> Check:
    def check(value: object, at: str) -> int:
        # bool is a subclass of int, and YAML 1.1 reads `on`, `off`, `yes` and `no` as booleans.
        if isinstance(value, bool) or not isinstance(value, int):
            raise PlanError(f"{at}: {shown(value)} is not a whole number", known=f"{lowest} to {highest}")
        if not lowest <= value <= highest:
            raise PlanError(f"{at}: {shown(value)} is out of range", known=f"{lowest} to {highest}")
        return value

    return check


def number(lowest: float, highest: float) -> Check:
    def check(value: object, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            text = isinstance(value, str) and _is_float(value)
            fix = "YAML reads this as text: write it with a decimal point, such as 1.0e-3" if text else None
            raise PlanError(f"{at}: {shown(value)} is not a number", known=f"{lowest:g} to {highest:g}", fix=fix)
        if not (math.isfinite(value) and lowest <= value <= highest):
            raise PlanError(f"{at}: {shown(value)} is out of range", known=f"{lowest:g} to {highest:g}")
        return float(value)

    return check


def _is_float(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def optional(check: Check) -> Check:
    """Null stays None; anything else must pass `check`."""
    return lambda value, at: None if value is None else check(value, at)


def name(known: Iterable[str]) -> Check:
    """One of a closed list of names, in any case."""
    names = tuple(known)

    def check(value: object, at: str) -> str:
        if not isinstance(value, str):
            raise PlanError(f"{at}: {shown(value)} is not a name", known=names)
        folded = value.strip().lower()
        if folded not in names:
            raise unknown(PlanError, at, value, names)
        return folded

    return check


def path(value: object, at: str) -> str:
    """The path of a file or folder, which need not exist yet."""
    if not isinstance(value, str) or not value.strip():
        raise PlanError(f"{at}: {shown(value)} is not a path", known="text, such as ./gr00t_engine")
    return value


def backend(value: object, at: str) -> str:
    """A backend, or `auto`."""
    return str(name((*BACKENDS, AUTO))(value, at))


def precision(value: object, at: str) -> str:
    """The name of a precision, from any of its spellings. Raises: PlanError."""
    row = find_precision(value) if isinstance(value, str) else None
    return row.name if row else str(name(precision_names())(value, at))


def size_range(lowest: int, highest: int) -> Check:
    """[minimum, maximum], both whole numbers and inclusive."""
    size = integer(lowest, highest)

    def check(value: object, at: str) -> tuple[int, int]:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise PlanError(f"{at}: {shown(value)} is not a range", known="[minimum, maximum], such as [1, 8]")
        low, high = (size(v, f"{at}[{i}]") for i, v in enumerate(value))
        if low > high:
            raise PlanError(f"{at}: [{low}, {high}] is upside down", known="[minimum, maximum], such as [1, 8]")
        return low, high

    return check


def _list(value: object, at: str, known: str) -> list[tuple[str, Any]]:
    """Where each item of a list stands, and the item. Raises: PlanError for anything else."""
    if not isinstance(value, (list, tuple)):
        raise PlanError(f"{at}: {shown(value)} is not a list", known=known)
    return [(f"{at}[{i}]", item) for i, item in enumerate(value)]


def compute_capabilities(value: object, at: str) -> tuple[str, ...]:
    out: list[str] = []
    for here, item in _list(value, at, 'a list of quoted versions, such as ["8.9", "12.0"]'):
        if not isinstance(item, str):
            raise PlanError(
                f"{here}: {shown(item)} is not text", known=COMPUTE_CAPABILITIES, fix=f'put it in quotes: "{item}"'
            )
        if item not in COMPUTE_CAPABILITIES:
            raise PlanError(
                f"{here}: no engine can be built ahead of time for compute capability {item!r}",
                known=COMPUTE_CAPABILITIES,
                fix="leave the list empty and build on that GPU itself",
            )
        if item in out:
            raise PlanError(f"{here}: {item!r} is listed twice")
        out.append(item)
    return tuple(out)


def lengths(value: object, at: str) -> tuple[int, ...]:
    """Prompt lengths in tokens, each once, in rising order."""
    one = integer(1, ARCHITECTURE.longest_prompt)
    items = _list(value, at, "a list of prompt lengths, such as [294, 300]")
    return tuple(sorted({one(item, here) for here, item in items}))


def optimizations(value: object, at: str) -> tuple[str, ...]:
    """``all``, ``none``, a list of names, or a mapping that switches some off: names in the order of the waterfall."""
    if isinstance(value, str) and value.strip().lower() in ("all", "none"):
        return tuple(OPTIMIZATIONS) if value.strip().lower() == "all" else ()
    if isinstance(value, Mapping):
        former = {key: item for key, item in value.items() if key in ARCHITECTURE.renamed}
        switches = {
            **section({k: v for k, v in value.items() if k not in former}, at, dict.fromkeys(OPTIMIZATIONS, boolean)),
            **section(former, at, dict.fromkeys(ARCHITECTURE.renamed, boolean)),
        }
        off = {ARCHITECTURE.renamed.get(key, key) for key, on in switches.items() if not on}
        return tuple(key for key in OPTIMIZATIONS if key not in off)
    given = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        raise PlanError(
            f"{at}: {shown(value)} is not a choice of optimizations",
            known="all, none, a list of names, or a mapping such as {prompt_cache: false}",
        )
    chosen = {_optimization(item, f"{at}[{i}]") for i, item in enumerate(given)}
    return tuple(key for key in OPTIMIZATIONS if key in chosen)


def _optimization(value: object, at: str) -> str:
    """The name of an optimization; one of an earlier release stands for the one that it became part of."""
    folded = value.strip().lower() if isinstance(value, str) else value
    former = ARCHITECTURE.renamed.get(folded) if isinstance(folded, str) else None
    return former or str(name(OPTIMIZATIONS)(value, at))


def section(value: object, at: str, schema: Mapping[str, Check]) -> dict[str, Any]:
    """Check a mapping key by key. A section left empty in YAML (null) is an empty mapping.

    Raises: PlanError for a value that is no mapping, for an unknown key, and whatever the keys' checkers raise.
    """
    out = {}
    for key, item in _mapping(value, at, schema).items():
        here = join(at, key)
        if key not in schema:
            raise _no_such("key", here, key, schema)
        out[key] = schema[key](item, here)
    return out


def _mapping(value: object, at: str, known: Iterable[str]) -> Mapping[Any, object]:
    if not isinstance(value, (Mapping, type(None))):
        raise PlanError(f"{at}: {shown(value)} is not a mapping", known=known)
    return value or {}


def _no_such(what: str, here: str, key: object, known: Iterable[str]) -> PlanError:
    close = nearest(str(key), known)
    return PlanError(f"{here}: no such {what}", known=known, fix=f"did you mean {close}?" if close else None)


def join(at: str, key: object) -> str:
    """`plan.yaml` + `build` -> `plan.yaml: build`; then `plan.yaml: build.debug`."""
    text = str(key) if isinstance(key, str) else shown(key)
    return f"{at}.{text}" if ": " in at else f"{at}: {text}"


GATE: Mapping[str, Check] = {
    "cosine": optional(number(0.0, 1.0)),
    "max_abs": optional(number(0.0, 1e9)),
    "sqnr_db": optional(number(0.0, 300.0)),
}


def gate(value: object, at: str) -> Gate:
    return Gate(**section(value, at, GATE))


def keep(value: object, at: str) -> tuple[str, ...]:
    """``auto``, or a list of patterns, which may hold it too."""
    if isinstance(value, str) and value.strip().lower() == AUTO_KEEP:
        return (AUTO_KEEP,)
    known = f"{AUTO_KEEP}, or a list of patterns such as [down_proj, layers.0.*]"
    out = []
    for here, item in _list(value, at, known):
        if not isinstance(item, str) or not item.strip():
            raise PlanError(f"{here}: {shown(item)} is no pattern", known=known)
        out.append(item.strip())
    return tuple(dict.fromkeys(out))


SUBMODULE: Mapping[str, Check] = {
    "backend": optional(backend),
    "precision": optional(precision),
    "keep": optional(keep),
    "decompose_attention": optional(boolean),
    "gate": optional(gate),
}


def submodules(value: object, at: str) -> dict[str, SubmodulePlan]:
    out = {}
    for key, item in _mapping(value, at, SUBMODULES).items():
        here = join(at, key)
        if key in GROUPS:
            raise PlanError(
                f"{here}: a group, not a submodule", known=SUBMODULES, fix="name its members: " + ", ".join(GROUPS[key])
            )
        if key not in SUBMODULES:
            raise _no_such("submodule", here, key, SUBMODULES)
        out[key] = SubmodulePlan(**section(item, here, SUBMODULE))
    return out


BUILD: Mapping[str, Check] = {
    "use_fp32_acc": boolean,
    "use_explicit_typing": boolean,
    "disable_tf32": boolean,
    "use_cpp_runtime": boolean,
    "cpu_offload": boolean,
    "debug": boolean,
    "optimization_level": optional(integer(0, 5)),
    "decompose_attention": boolean,
    "require_full_compilation": boolean,
    "compute_capabilities": compute_capabilities,
    "trt_engine_path": optional(path),
}

RANGES: Mapping[str, Check] = {
    "batch": size_range(1, 1024),
    "views": size_range(1, 64),
    "length": optional(size_range(1, ARCHITECTURE.longest_prompt)),
}

BENCHMARK: Mapping[str, Check] = {
    "timer": name(TIMERS),
    "iterations": optional(integer(1, 1_000_000)),
    "warmup": integer(0, 1_000_000),
    "max_seconds": number(0.0, 1e6),
}

PLAN: Mapping[str, Check] = {
    "backend": backend,
    "precision": precision,
    "submodules": submodules,
    "build": lambda value, at: BuildOptions(**section(value, at, BUILD)),
    "ranges": lambda value, at: Ranges(**section(value, at, RANGES)),
    "gate": gate,
    "action_gate": gate,
    "benchmark": lambda value, at: BenchmarkOptions(**section(value, at, BENCHMARK)),
    "joint_backbone": boolean,
    "optimizations": optimizations,
    "loop": name(LOOPS),
    "cuda_graph": name(CUDA_GRAPH),
    "cuda_graph_lengths": lengths,
    # The denoising timestep is a bucket in [0, 1000): more steps than that would repeat buckets.
    "denoising_steps": integer(1, 1000),
    "calibration": optional(path),
    "keep": keep,
}
"""Key -> checker of a whole plan; the keys are the fields of `settings.Plan`."""
