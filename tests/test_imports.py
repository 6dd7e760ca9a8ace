"""Imports point one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS

PACKAGE = Path(__file__).resolve().parents[1] / "gr00t_trt"

ORDER = [
    {"errors"},
    {"common"},
    {"model", "data"},
    {"plans", "policy"},
    {"record", "engines"},
    {"report", "backends"},
    {"compile"},
    {"measure"},
    {"deploy"},
    {"run", "export", "serve"},
    {"evaluate"},
    {"simulate"},
    {"rollout"},
    {"__main__"},
]
"""A room may use what stands above it, and nothing beside or below it."""


def _imported(path: Path) -> set[str]:
    """Names of the package's rooms that a file imports, anywhere in it, under TYPE_CHECKING too."""
    package = path.relative_to(PACKAGE).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom):
            continue
        assert not (node.module or "").startswith("gr00t_trt"), path
        if node.level and node.level - 1 == len(package):
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found - {"__version__"}


def _modules() -> dict[str, list[Path]]:
    out: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if first != "__init__":
            out.setdefault(first, []).append(path)
    return out


def _files() -> dict[str, set[str]]:
    """Every file of the package -> the files that it imports, by dotted name; `__init__` counts as its own file."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    out: dict[str, set[str]] = {}
    for name, path in names.items():
        package, out[name] = path.relative_to(PACKAGE).parent.parts, set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
                base = [part for part in base if part]
                for alias in node.names:
                    for found in (".".join([*base, alias.name]), ".".join(base), ".".join([*base, "__init__"])):
                        if found in names:
                            out[name].add(found)
                            break
    return out


def test_every_module_has_its_place() -> None:
    assert set(_modules()) == set().union(*ORDER)


@pytest.mark.parametrize("name", sorted(_modules()))
def test_imports_point_one_way(name: str) -> None:
    rank = next(i for i, level in enumerate(ORDER) if name in level)
    allowed = set().union(*ORDER[:rank]) | {name}
    for path in _modules()[name]:
        assert _imported(path) <= allowed, f"{path.name} imports {sorted(_imported(path) - allowed)}"


@pytest.mark.parametrize(
    "module",
    [
        "gr00t_trt",
        "gr00t_trt.__main__",
        "gr00t_trt.plans",
        "gr00t_trt.model",
        "gr00t_trt.record",
        "gr00t_trt.report",
        *(f"gr00t_trt.{name}.program" for name in COMMANDS),
    ],
)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


def test_no_file_imports_one_that_imports_it() -> None:
    above = _files()

    def reached(name: str, on_the_way: tuple[str, ...]) -> None:
        assert name not in on_the_way, " imports ".join([*on_the_way[on_the_way.index(name) :], name])
        if name not in done:
            for other in sorted(above[name]):
                reached(other, (*on_the_way, name))
            done.add(name)

    done: set[str] = set()
    for name in sorted(above):
        # The package itself hands out its three functions lazily, and every file is below it.
        if name != "__init__":
            reached(name, ())


def test_the_first_level_can_be_read_in_ten_seconds() -> None:
    assert len(_modules()) <= 20


def test_every_command_is_the_room_of_its_name() -> None:
    for name in COMMANDS:
        assert (PACKAGE / name / "program.py").is_file()
        assert (PACKAGE / name / "__main__.py").is_file()


def test_the_package_exports_what_it_says() -> None:
    import gr00t_trt

    for name in gr00t_trt.__all__:
        assert callable(getattr(gr00t_trt, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gr00t_trt.nothing  # noqa: B018
