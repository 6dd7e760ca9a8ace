"""RoboCasa's own GR1 tasks, in an environment of their own, on stand-ins for the assets that it downloads.

What its code does is held to here: keys, shapes, seeds, and that pictures left out change nothing. Never its success.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import stand_ins

from gr00t_trt.data import data_config

pytestmark = pytest.mark.robocasa
ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
ENV_ID = "gr1_unified/PnPCupToDrawerClose_GR1ArmsAndWaistFourierHands_Env"
PACKAGES = ["praxis-robocasa-gr1==0.2.0", "gymnasium>=1", "av", "rich", "psutil", "pyzmq", "msgpack", "pyyaml"]
PARTS = {"right_hand": [6], "left_hand": [6], "right_arm": [7], "left_arm": [7], "waist": [3]}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The interpreter of a new environment with RoboCasa, whose scenes are made of stand-ins."""
    home = tmp_path_factory.mktemp("robocasa") / "venv"
    subprocess.run([sys.executable, "-m", "venv", home], check=True, timeout=120)
    program = home / "bin" / "python"
    done = subprocess.run(
        [program, "-m", "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, timeout=900
    )
    if done.returncode:
        pytest.skip(f"RoboCasa cannot be installed here: {done.stderr.strip().splitlines()[-1:]}")
    (package,) = home.glob("lib/python*/site-packages/robocasa_gr1")
    refused = run(program, HERE / "robocasa_digest.py", ENV_ID, status=1)
    assert "PlanError: RoboCasa cannot build its scene" in refused
    assert "python -m robocasa_gr1.scripts.download_tabletop_assets" in refused
    stand_ins.write(package)
    return program


def run(*command: str | Path, status: int = 0) -> str:
    """Run in that environment. Returns: what it printed, errors included."""
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command], env=surroundings, cwd=ROOT, capture_output=True, text=True, timeout=560)
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def flags(port: int) -> list[str]:
    return ["--client", "--env_name", ENV_ID, "--port", str(port), "--max_episode_steps", "32", "--n_episodes", "2"]


def test_keys_shapes_seeds_and_pictures_are_robocasas_own(python: Path) -> None:
    first, second = (json.loads(run(python, HERE / "robocasa_digest.py", ENV_ID).splitlines()[-1]) for _ in range(2))
    keys = first["keys"]
    assert {key.partition(".")[2]: shape for key, shape in keys.items() if key.startswith("state.")} == PARTS
    assert {key.partition(".")[2]: shape for key, shape in first["actions"].items()} == PARTS
    assert keys["video.ego_view"] == [256, 256, 3]
    assert keys["annotation.human.coarse_action"].startswith("unlocked_waist: pick up the cup")
    assert {kind for key, kind in first["kinds"].items() if key.startswith("state.")} == {"float32"}
    wanted = data_config("fourier_gr1_arms_waist").modality_config()
    assert {key for kind in ("video", "state", "language") for key in wanted[kind].modality_keys} <= set(keys)
    assert sorted(first["actions"]) == sorted(wanted["action"].modality_keys)
    # Bit for bit: the same seed in another process, and with pictures left out; not another seed.
    for how in ("seen", "states"):
        assert first["eager"][how] == first["lazy"][how] == second["eager"][how] == second["lazy"][how]
        assert first["lazy"][how] != first["other"][how]
    assert first["lazy"]["ms"] < first["eager"]["ms"] / 2
    assert first["eager"]["successes"] == [False] * 33
    assert {"praxis-robocasa-gr1", "praxis-robosuite", "mujoco", "MUJOCO_GL", "renderer"} <= set(first["facts"])


@contextmanager
def server(at: Path) -> Iterator[str]:
    """A service with the synthetic model; gives its port."""
    argv = [sys.executable, "-m", "gr00t_trt", "serve", "--server", "--model_path", "synthetic", "--port", "0"]
    argv += ["--data_config", "fourier_gr1_arms_waist", "--embodiment_tag", "gr1"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(argv, cwd=at, stdout=subprocess.PIPE, text=True, env=surroundings)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().rpartition(":")[2]
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_the_published_client_plays_it_against_a_server_and_n_envs_do_not_matter(python: Path, tmp_path: Path) -> None:
    found = []
    with server(tmp_path) as port:
        for count in (1, 2):
            folder = tmp_path / str(count)
            argv = [*flags(int(port)), "--n_envs", str(count), "--video_dir", folder, "--record", folder / "r.json"]
            run(python, "-m", "gr00t_trt", "simulate", *argv)
            (played,) = json.loads((folder / "r.json").read_text())["simulation"]["played"]
            assert [(e["seed"], e["steps"], e["queries"], e["lost"]) for e in played["episodes"]] == [
                (0, 32, 2, None),
                (1, 32, 2, None),
            ]
            found.append({path.name.partition("_success")[0]: path.read_bytes() for path in folder.glob("*.mp4")})
    assert len(found[0]) == 2
    assert found[0] == found[1]  # frame by frame the same scenes and moves
