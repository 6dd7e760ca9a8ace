"""Finding and making environments: what is missing or wrong is named in one sentence, with what to do about it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from gr00t_trt.errors import PlanError
from gr00t_trt.simulate import graphics
from gr00t_trt.simulate.defaults import DEFAULT_ENV, GR1_24
from gr00t_trt.simulate.environments import facts, find, make_plain

ROOT = Path(__file__).resolve().parents[2]
needs_mujoco = pytest.mark.skipif(not importlib.util.find_spec("mujoco"), reason="MuJoCo is not installed")


def refusal(env_id: str, prepared: str = "", **surroundings: str) -> str:
    """What a user reads who simulates an environment in a Python where something is missing."""
    code = f"import sys\n{prepared}\nfrom gr00t_trt.simulate.environments import make_plain\n"
    code += "from gr00t_trt.errors import Gr00tError\n"
    code += f"try: make_plain({env_id!r}).reset(seed=0)\nexcept Gr00tError as error: print(error)\n"
    env = {**os.environ, "PYTHONPATH": str(ROOT), **surroundings}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["mujoco", "gymnasium"])
def test_without_a_package_the_way_to_install_it_is_told(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; from gr00t_trt.simulate.program import main; "
    command = [sys.executable, "-c", f"{code}sys.exit(main(['--scripted']))"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "not installed" in done.stderr
    assert "[sim]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mujoco_that_no_simulator_works_with_is_refused() -> None:
    future = ModuleType("mujoco")
    future.__version__ = "4.0.0"  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"MuJoCo 4\.0\.0 .*\n.*below 4\n.*pip install 'mujoco>=3\.3,<4'"):
        graphics.check_version(future)


@needs_mujoco
def test_without_a_way_to_draw_it_is_told_what_to_install_and_set() -> None:
    said = refusal(DEFAULT_ENV, MUJOCO_GL="glfw", DISPLAY="")
    assert said.startswith("MuJoCo cannot draw here: ")
    assert "MUJOCO_GL is glfw" in said
    assert "apt-get install libegl1" in said
    assert "invalid value for environment variable MUJOCO_GL" in refusal(DEFAULT_ENV, MUJOCO_GL="vulkan")


@pytest.mark.skipif(bool(importlib.util.find_spec("robocasa")), reason="RoboCasa is installed")
@needs_mujoco
def test_without_robocasa_its_extra_is_named() -> None:
    with pytest.raises(PlanError, match=r"RoboCasa is not installed: neither robocasa nor robocasa_gr1") as refused:
        find(GR1_24[0])
    assert "[robocasa]'" in str(refused.value)


@needs_mujoco
def test_a_robocasa_that_refuses_its_surroundings_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "robocasa").mkdir()
    (tmp_path / "robocasa" / "__init__.py").write_text("assert False, 'MuJoCo version must be 3.2.6'")
    said = refusal(GR1_24[0], PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert "cannot be imported: AssertionError: MuJoCo version must be 3.2.6" in said
    assert "environment of its own" in said


@pytest.mark.parametrize(
    ("env_id", "words"),
    [
        ("my/Env-v0", r"my/Env-v0: no such environment\n.*SO101PickPlace-v0.*\n.*module:id"),
        ("no_such_module:my/Env-v0", r"module 'no_such_module' cannot be imported: ModuleNotFoundError"),
        (
            "counting:counting/Countin-v0",
            r"unknown value 'counting/Countin-v0'\n.*\n.*did you mean counting/Counting-v0",
        ),
    ],
)
def test_an_id_that_cannot_be_played_is_refused(env_id: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        make_plain(env_id)


def test_a_module_of_the_working_directory_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent / "counting.py").read_text().replace("counting", "here_only")
    (tmp_path / "here_only.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    env = make_plain("here_only:here_only/Counting-v0")
    assert env.unwrapped.render_mode == "rgb_array"
    assert str(tmp_path) not in sys.path
    assert "gymnasium" in facts("here_only:here_only/Counting-v0")


def test_an_environment_that_cannot_be_made_is_named() -> None:
    with pytest.raises(PlanError, match=r"counting:counting/Broken-v0 cannot be made: ZeroDivisionError: "):
        make_plain("counting:counting/Broken-v0")
