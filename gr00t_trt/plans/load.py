"""Compile plans: YAML files and command-line flags in, the frozen settings out.

Every problem is a PlanError that names the file, the dotted key and the value; nothing is ignored silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import PlanError
from .checks import PLAN, section, shown
from .conflicts import plain_only, refuse_impossible
from .schema import ARCHITECTURE, Plan


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value} is given twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


def load_plan(path: str | Path) -> Plan:
    """Read a YAML plan.

    Raises: PlanError for a file that is missing, unreadable, empty or not YAML, and for any value that cannot work.
    """
    where = str(path)
    try:
        # utf-8-sig: editors on Windows like to start files with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = sorted(p.name for p in Path(path).parent.glob("*.yaml"))
        raise PlanError(f"{where}: no such plan file", known=near or None, fix="pass the path of a YAML plan") from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the path
        raise PlanError(f"{where}: the plan cannot be read: {error}") from error
    try:
        raw = yaml.load(text, Loader=_Loader)
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
