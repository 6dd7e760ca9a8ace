"""Compile plans: YAML files and command-line flags in, the frozen settings out.

Every problem is a PlanError that names the file, the dotted key and the value; nothing is ignored silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import PlanError, nearest
from .checks import PLAN, section, shown
from .conflicts import plain_only, refuse_impossible
from .schema import ARCHITECTURE, Plan
from .shipped import SUFFIXES, plan_file, shipped_plans

MOST_BYTES, MOST_NODES = 1_000_000, 10_000
"""Size of a plan file, and its keys and values once every alias is spelled out."""


class _Loader(yaml.SafeLoader):
    """SafeLoader without YAML's surprises.

    A key given twice, of which the last would win, and merge keys, which hide what a plan says and can grow without
    end, are refused. ``1:30`` is text and not 90, ``010`` is not 8.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.tag == "tag:yaml.org,2002:merge":
                    problem = "merge keys (<<) are not read; write the settings out"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (_INT, _FLOAT)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?([0-9]+\.[0-9]*([eE][-+]?[0-9]+)?|\.?[0-9]+[eE][-+]?[0-9]+|\.[0-9]+|\.(inf|nan))$", re.I),
    list("-+.0123456789"),
)


def _read_yaml(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _nodes(node, {}) > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} keys and values")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Nodes below and with this one, an alias counted as often as it is used; one inside itself counts as endless."""
    if id(node) not in known:
        known[id(node)] = MOST_NODES + 1
        pairs = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = [child for pair in pairs for child in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_nodes(child, known) for child in children)
    return known[id(node)]


def load_plan(named: str | Path) -> Plan:
    """Read a plan.

    Args:
        named: A YAML file, or the name of a plan that comes with the package, such as ``"fp16"``.
    Raises: PlanError for a file that is missing, unreadable, empty or not YAML, and for any value that cannot work.
    """
    where, path = str(named), plan_file(named)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise PlanError(f"{where}: larger than {MOST_BYTES} bytes", known="a plan of some lines")
        # utf-8-sig: editors on Windows like to start files with a byte order mark.
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise _no_such_plan(where, path) from None
    except IsADirectoryError:
        raise PlanError(f"{where}: a folder, not a plan file", fix="name a file in it") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise PlanError(f"{where}: the plan cannot be read: {error}") from error
    try:
        raw = _read_yaml(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise PlanError(f"{where}:{line} {what}", known="YAML: `key: value` lines") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise PlanError(f"{where}: not YAML: {error}", known="YAML: `key: value` lines") from error
    if raw is None:
        raise PlanError(f"{where}: the plan is empty", known=PLAN, fix="start with `precision: fp16`")
    return plan_from_mapping(raw, where)


def _no_such_plan(where: str, path: Path) -> PlanError:
    """The error for a file that is missing: the plans beside it and those of the package may have been meant."""
    beside = sorted(file.name for file in path.parent.glob("*.yaml"))
    if path.suffix not in SUFFIXES or not beside:
        beside += shipped_plans()
    close = nearest(path.name, beside) or nearest(path.stem, shipped_plans())
    fix = f"did you mean {close}?" if close else "gr00t-trt plans lists those that come with the package"
    return PlanError(f"{where}: no such plan file", known=beside, fix=fix)


def plan_from_mapping(mapping: object, where: str) -> Plan:
    """A plan from nested dictionaries, such as `plan_to_mapping` gives; keys left out keep their defaults.

    Args:
        where: Where the mapping comes from, for the messages: a file name, or ``"command line"``.
    Raises: PlanError.
    """
    if not isinstance(mapping, Mapping):
        raise PlanError(f"{where}: a plan must be a mapping, not {shown(mapping)}", known=PLAN)
    if "optimisations" in mapping:  # the spelling of earlier releases
        if "optimizations" in mapping:
            raise PlanError(f"{where}: optimizations is given twice, in two spellings", fix="leave one out")
        mapping = {"optimizations" if key == "optimisations" else key: value for key, value in mapping.items()}
    plan = Plan(**section(mapping, where, PLAN))
    if "optimizations" not in mapping and plain_only(plan):
        plan = replace(plan, optimizations=())
    refuse_impossible(plan, where)
    return plan


def plan_to_mapping(plan: Plan) -> dict[str, Any]:
    """The whole plan as plain dictionaries, lists and scalars, for YAML, JSON and records; defaults are spelled out.

    `plan_from_mapping(plan_to_mapping(plan), where)` equals `plan`.
    """
    out: dict[str, Any] = _plain(asdict(replace(plan, submodules={})))
    out["submodules"] = {
        name: {key: value for key, value in _plain(asdict(own)).items() if value is not None}
        for name, own in plan.submodules.items()
    }
    return out


def plan_yaml(plan: Plan) -> str:
    """The whole plan as a YAML file that `load_plan` reads back as `plan`; defaults are spelled out."""
    return str(yaml.safe_dump(plan_to_mapping(plan), default_flow_style=None, sort_keys=False, width=110))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (tuple, list)) else value


def merge(plan: Plan, overrides: Mapping[str, object], where: str = "command line") -> Plan:
    """The plan with some settings replaced.

    Args:
        overrides: Dotted key -> value, such as ``{"build.use_fp32_acc": True, "precision": "bf16"}``. A value of None
            means that the flag was not given. A submodule's own setting keeps precedence over the plan-wide one.
            One that needs the plain model takes back all optimizations, unless these are overridden as well.
    Raises: PlanError, as for a plan file.
    """
    mapping = plan_to_mapping(plan)
    for dotted, value in overrides.items():
        if value is None:
            continue
        *parents, last = dotted.split(".")
        target = mapping
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise PlanError(f"{where}: {dotted}: {parent} has no keys of its own")
        target[last] = value
    needs_plain = any(overrides.get(key) for key in ARCHITECTURE.plain_only)
    if needs_plain and overrides.get("optimizations") is None and plan.optimizations == Plan.optimizations:
        del mapping["optimizations"]
    return plan_from_mapping(mapping, where)
