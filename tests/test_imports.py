"""Imports point one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "gr00t_trt"

ORDER = [
    {"errors"},
    {"settings", "shapes", "modality", "files", "figures", "samples", "video_file"},
    {"plan_fields", "environment", "measurement_names"},
    {"plans", "records", "progress"},
    {"command", "compare_report"},
    {"report", "benchmark", "accuracy", "model", "data"},
    {"stages", "backends", "plots", "roofline"},
    {"policy", "submodules", "html_report", "trtexec"},
    {"fast", "choice"},
    {"compile", "capture"},
    {"trial"},
    {"comparison"},
    {"run"},
    {"cli", "deploy", "engines", "export", "measure"},
    {"drop_in", "serve"},
    {"local"},
    {"policies"},
    {"evaluate", "simulate"},
    {"rollout"},
    {"__main__"},
]
"""A module may use what stands above it, and nothing beside or below it."""


def _imported(path: Path) -> set[str]:
    """Names of the package's modules that a file imports, anywhere in it but under TYPE_CHECKING."""
    depth = len(path.relative_to(PACKAGE).parts)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == depth and id(node) not in typing_only:
            names = [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
            found |= {name for name in names if name != "__version__"}
        assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gr00t_trt")), path
    return found


def _modules() -> dict[str, list[Path]]:
    out: dict[str, list[Path]] = {}
    for path in PACKAGE.rglob("*.py"):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if first != "__init__":
            out.setdefault(first, []).append(path)
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
        "gr00t_trt.cli",
        "gr00t_trt.plans",
        "gr00t_trt.report",
        "gr00t_trt.plots",
        "gr00t_trt.measure",
        "gr00t_trt.html_report.__main__",
        "gr00t_trt.policies",
        "gr00t_trt.evaluate.program",
        "gr00t_trt.rollout.program",
        "gr00t_trt.simulate.program",
    ],
)
def test_light_modules_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, timeout=60).returncode == 0


def test_the_package_exports_what_it_says() -> None:
    import gr00t_trt

    for name in gr00t_trt.__all__:
        assert callable(getattr(gr00t_trt, name))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gr00t_trt.nothing  # noqa: B018
