"""The wheels of the package and of its client: what is in them, and, on request, environments of their own."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gr00t_trt.__main__ import COMMANDS
from gr00t_trt.plans.shipped import shipped_plans

ROOT = Path(__file__).resolve().parents[2]
ALONE = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
CLIENT = "gr00t_trt_client"

SCRIPT = """\
import gr00t_trt
policy = gr00t_trt.load_policy("synthetic")
action = policy.get_action(policy.example())
shapes: dict[str, tuple[int, ...]] = {key: chunk.shape for key, chunk in action.items()}
print(shapes, gr00t_trt.__version__)
"""


def run(*command: str | Path, cwd: Path, timeout: float = 600, **env: str) -> str:
    """What a command prints. Raises: AssertionError when it fails."""
    done = subprocess.run(command, cwd=cwd, env={**ALONE, **env}, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def built(source: Path, at: Path) -> Path:
    """A wheel of `source`, made with the build tool that is installed here."""
    if not importlib.util.find_spec("hatchling"):
        pytest.skip("hatchling is not installed")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    run(*pip, "--wheel-dir", at, source, cwd=at)
    (wheel,) = at.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def client_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT / "client", tmp_path_factory.mktemp("client_wheel"))


def test_the_wheel_carries_the_plans_as_they_are_and_its_types(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        for plan in shipped_plans().values():
            assert archive.read(f"gr00t_trt/compile_configs/{plan.path.name}") == plan.path.read_bytes()
    assert "gr00t_trt/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"gr00t_trt"}


def test_installed_elsewhere_plans_are_found_by_name_and_fixes_name_the_installed_package(
    wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import gr00t_trt.plans.load, gr00t_trt.common.install as i; print(gr00t_trt.__file__);"
        "print(gr00t_trt.plans.load.load_plan('fp16').build.use_fp32_acc); print(i.install_extra('serve', 'onnx'))"
    )
    file, accumulates, fix = run(
        sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site")
    ).splitlines()
    assert Path(file).is_relative_to(tmp_path)
    assert accumulates == "True"
    assert fix in ("pip install 'gr00t_trt[serve,onnx]'", "uv pip install 'gr00t_trt[serve,onnx]'")


def test_the_clients_wheel_is_what_the_client_imports_and_needs_no_more_than_it_says(
    client_wheel: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(client_wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys, {CLIENT}.__main__ as m; own = sorted(n for n in sys.modules if n.startswith('{CLIENT}'));"
        "print(*own); print(*sorted({n.split('.')[0] for n in sys.modules} & {'torch', 'yaml', 'rich', 'gr00t_trt'}))"
    )
    own, foreign = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path)).split("\n")[:2]
    files = {path.relative_to(tmp_path) for path in (tmp_path / CLIENT).rglob("*.py")}
    modules = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in files}
    assert modules == set(own.split())
    assert foreign == ""


def test_package_client_and_lock_have_one_version() -> None:
    lines = [
        (ROOT / name).read_text()
        for name in ("pyproject.toml", "client/pyproject.toml", "gr00t_trt/__init__.py", f"client/{CLIENT}/__init__.py")
    ]
    versions = {next(line for line in text.splitlines() if "version" in line and "=" in line) for text in lines}
    assert {line.split('"')[1] for line in versions if "hatchling" not in line} == {_locked("gr00t-trt")}


def test_the_lock_file_names_the_package_index_and_no_place_of_one_machine() -> None:
    text = (ROOT / "uv.lock").read_text()
    assert {line for line in text.splitlines() if line.startswith("source = ")} == {
        'source = { registry = "https://pypi.org/simple" }',
        'source = { editable = "." }',
    }
    assert "file://" not in text
    constraints = dict(line.split(";")[0].split("==") for line in _constraints())
    assert _locked("torch") == constraints["torch"]


def test_the_lock_file_knows_every_requirement() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {re.split(r"[<>=;\[ ]", line)[0].lower().replace("_", "-") for group in groups for line in group}
    (own,) = (one for one in tomllib.loads((ROOT / "uv.lock").read_text())["package"] if one["name"] == "gr00t-trt")
    assert {one["name"] for one in own["metadata"]["requires-dist"]} == wanted, "run `uv lock`"


def _locked(name: str) -> str:
    text = (ROOT / "uv.lock").read_text()
    return text.split(f'name = "{name}"\nversion = "', 1)[1].split('"')[0]


def _constraints() -> list[str]:
    return [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]


# --- in environments of their own


def environment(at: Path, *install: str | Path) -> Path:
    """A new environment with some packages; gives its folder of programs."""
    run(sys.executable, "-m", "venv", at, cwd=at.parent)
    pip = [at / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, *install, cwd=at.parent, timeout=900)
    return at / "bin"


@pytest.mark.packaging
def test_the_wheel_lives_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "venv", f"{wheel}[serve,completion]", "mypy")
    home = {"HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "2"}
    for name in COMMANDS:
        assert "usage:" in run(programs / "gr00t-trt", name, "--help", cwd=tmp_path, **home)
    assert f"{'jetson_thor':<22}" in run(programs / "gr00t-trt", "plans", cwd=tmp_path, **home)
    printed = run(programs / "gr00t-trt", *shlex.split("run --config fp16 --backend eager --print_plan"), cwd=tmp_path)
    assert "use_fp32_acc: true" in printed
    assert "_gr00t_trt" in run(programs / "gr00t-trt", "--print_completion", "bash", cwd=tmp_path)
    (tmp_path / "user.py").write_text(SCRIPT)
    assert "Success" in run(programs / "mypy", "--strict", "user.py", cwd=tmp_path, **home)
    assert "'action.left_arm': (16, 7)" in run(programs / "python", "user.py", cwd=tmp_path, **home)


@contextmanager
def server(at: Path) -> Iterator[str]:
    """A service of this package with the synthetic model; gives its port."""
    argv = [sys.executable, "-m", "gr00t_trt", "serve", "--server", "--model_path", "synthetic", "--port", "0"]
    process = subprocess.Popen(argv, cwd=at, stdout=subprocess.PIPE, text=True, env={**ALONE, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().rpartition(":")[2]
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.mark.packaging
def test_the_client_lives_in_an_environment_without_torch(client_wheel: Path, tmp_path: Path) -> None:
    programs = environment(tmp_path / "venv", client_wheel, "mypy")
    installed = run(programs / "python", "-m", "pip", "list", "--format=freeze", cwd=tmp_path)
    names = {line.partition("==")[0] for line in installed.splitlines()}
    assert names >= {"gr00t_trt_client", "numpy", "msgpack", "pyzmq"}
    assert not names & {"torch", "gr00t_trt"}
    run(programs / "python", "-m", "pip", "check", cwd=tmp_path)
    (tmp_path / "robot.py").write_text(
        f"from {CLIENT} import RobotInferenceClient\n"
        "with RobotInferenceClient('localhost', 1, timeout_ms=10) as policy:\n    print(policy.ping())\n"
    )
    assert "Success" in run(programs / "mypy", "--strict", "robot.py", cwd=tmp_path)
    with server(tmp_path) as port:
        answer = run(programs / "gr00t-trt-ask", "localhost", "--port", port, cwd=tmp_path)
    assert "action.left_arm: (16, 7)" in answer
