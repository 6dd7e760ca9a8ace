"""The plans that come with the package, by name. Never imports torch.

Their one home is `compile_configs/` of the repository; a wheel carries that folder inside the package.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_HOMES = (_PACKAGE / "compile_configs", _PACKAGE.parent / "compile_configs")

SUFFIXES = (".yaml", ".yml")
"""File name suffixes of plans; a name without one is looked up among the shipped plans first."""


@dataclass(frozen=True)
class ShippedPlan:
    """One of them, as its header describes it.

    Attributes:
        purpose: What it is for, in a sentence or two.
        hardware, engines: What it needs to run, and where its engines are built.
    """

    name: str
    path: Path
    purpose: str
    hardware: str
    engines: str


@functools.cache
def shipped_plans() -> Mapping[str, ShippedPlan]:
    """Name -> plan, in the order of the names."""
    home = next((folder for folder in _HOMES if folder.is_dir()), _HOMES[0])
    return {path.stem: _described(path) for path in sorted(home.glob("*.yaml"))}


def plan_file(named: str | Path) -> Path:
    """The file that a shipped plan's name, or a path, stands for; the file need not exist."""
    found = shipped_plans().get(named) if isinstance(named, str) else None
    return found.path if found else Path(named)


def _described(path: Path) -> ShippedPlan:
    """A plan from its header: paragraphs of comments, the keys of the last one at the beginning of a line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    header = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines if line.startswith("#"))
    facts = {key: _one_line(text) for key, text in re.findall(r"^(\w+):((?:.|\n(?!\w))*)", header, re.M)}
    purpose = _one_line(header.split("\n\n")[0])
    return ShippedPlan(path.stem, path, purpose, facts.get("Hardware", ""), facts.get("Engines", ""))


def _one_line(text: str) -> str:
    return " ".join(text.split())
