"""Imports point one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS, home

PACKAGE = Path(__file__).resolve().parents[1] / "gr00t_trt"

ORDER = [
    {"errors"},
    {"common"},
    {"model", "data"},
    {"plans", "policy"},
    {"record", "engines", "quantize"},
    {"report", "backends"},
    {"compile"},
    {"measure"},
    {"deploy"},
    {"run", "export", "serve", "tools", "finetune"},
    {"evaluate"},
    {"simulate"},
    {"rollout"},
    {"__main__"},
]
"""A room may use what stands above it, and nothing beside or below it."""

LIGHT = re.compile(r"[Nn]ever imports? torch|No torch\b")
MODELS = re.compile(r"\b(Gr00tN1d5|FastGr00t\w*)\b")


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imported(tree: ast.Module, depth: int) -> set[str]:
    """Names of the package's rooms that a file imports, anywhere in it.

    Args:
        depth: Of the file's folder below the package.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("gr00t_trt") for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.ImportFrom):
            assert node.level or not (node.module or "").startswith("gr00t_trt"), ast.unparse(node)
            if node.level == depth + 1:
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
        for node in ast.walk(_tree(path)):
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
        found = _imported(_tree(path), len(path.relative_to(PACKAGE).parts) - 1)
        assert found <= allowed, f"{path.relative_to(PACKAGE)} imports {sorted(found - allowed)}"


def test_an_import_counts_wherever_it_stands() -> None:
    text = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from ..measure.harness import Harness
class Late:
    def call(self):
        from .. import deploy
        from .beside import this
        from ...elsewhere import that
"""
    assert _imported(ast.parse(text), depth=1) == {"measure", "deploy"}
    for whole in ("import gr00t_trt.plans", "def f():\n from gr00t_trt.plans import Plan"):
        with pytest.raises(AssertionError, match="gr00t_trt"):
            _imported(ast.parse(whole), depth=1)


@pytest.mark.parametrize(
    "module",
    [
        "gr00t_trt",
        "gr00t_trt.__main__",
        "gr00t_trt.plans",
        "gr00t_trt.model",
        "gr00t_trt.record",
        "gr00t_trt.report",
        "gr00t_trt.evaluate.policies",
        *(f"gr00t_trt.{home(name)}.program" for name in COMMANDS),
    ],
)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


def test_what_says_that_it_never_imports_torch_keeps_its_word() -> None:
    files = [path for path in PACKAGE.rglob("*.py") if LIGHT.search(ast.get_docstring(_tree(path)) or "")]
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in files]
    assert len(names) > 20
    code = f"import sys, {', '.join(names)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


@pytest.mark.parametrize("text", ["isinstance(model, Gr00tN1d5)", "isinstance(x, (str, fast.FastGr00tN1d5))"])
def test_questions_about_the_kind_of_model_are_found(text: str) -> None:
    assert _kinds_asked_for(ast.parse(text)) != []


def test_nobody_asks_which_kind_of_model_it_has() -> None:
    asked = {str(path.relative_to(PACKAGE)): _kinds_asked_for(_tree(path)) for path in PACKAGE.rglob("*.py")}
    assert {path: found for path, found in asked.items() if found} == {}


def _kinds_asked_for(tree: ast.Module) -> list[str]:
    """Every `isinstance` and `issubclass` that names a class of model."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and len(node.args) == 2]
    tests = [call for call in calls if ast.unparse(call.func) in ("isinstance", "issubclass")]
    return [ast.unparse(call) for call in tests if MODELS.search(ast.unparse(call.args[1]))]


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
    assert len(_modules()) <= 23


def test_every_command_is_the_room_of_its_name() -> None:
    for name in COMMANDS:
        folder = PACKAGE / home(name).replace(".", "/")
        assert (folder / "program.py").is_file()
        assert (folder / "__main__.py").is_file()


def test_the_package_exports_what_it_says() -> None:
    import gr00t_trt

    for name in gr00t_trt.__all__:
        assert callable(getattr(gr00t_trt, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gr00t_trt.nothing  # noqa: B018
