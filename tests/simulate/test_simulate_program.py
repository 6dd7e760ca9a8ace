"""`gr00t-trt simulate` as it is typed: the script succeeds, a model plays, mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.errors import PlanError
from gr00t_trt.simulate.environments import find
from gr00t_trt.simulate.program import main, parse


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> tuple[dict, Path, str]:
    """Two episodes in two processes, with videos, as a user runs it; and what was imported on the way."""
    folder = tmp_path_factory.mktemp("simulate")
    argv = ["--scripted", "--n-episodes", "2", "--n-envs", "2", "--video_dir", str(folder / "videos"), "--seed", "5"]
    argv += ["--n_action_steps", "8", "--max_episode_steps", "60", "--record", str(folder / "record.json")]
    code = f"import sys; from gr00t_trt.simulate.program import main; print(main({argv!r}), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"if __name__ == '__main__': {code}"],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "record.json").read_text()), folder / "videos", done.stdout


def test_the_script_succeeds_by_looking_and_its_videos_say_so(scripted) -> None:
    record, videos, _ = scripted
    found = record["simulation"]
    assert found["success_rate"] == 1.0
    assert sorted(e["environment"] for e in found["episodes"]) == [0, 1]
    assert all(20 < e["steps"] <= 60 and e["queries"] <= 8 for e in found["episodes"])
    what = "pick-the-pear-from-the-table-and-place-it-on-the-plate"
    assert sorted(path.name for path in videos.iterdir()) == [f"episode000{i}_{what}_success1.mp4" for i in (0, 1)]
    assert sorted(e["episode"] for e in found["episodes"]) == [0, 1]
    assert found["latency_ms"]["iterations"] >= 3


def test_a_simulation_without_a_model_needs_no_torch(scripted) -> None:
    assert scripted[2].splitlines()[-1] == "0 False"


def test_a_model_plays_and_runs_out_of_time(tmp_path: Path, capsys) -> None:
    argv = ["--model_path", "synthetic", "--n_episodes", "1", "--max_episode_steps", "20", "--n_envs", "2"]
    assert main([*argv, "--record", str(tmp_path / "r.json")]) == 0
    found = json.loads((tmp_path / "r.json").read_text())
    (episode,) = found["simulation"]["episodes"]
    assert (episode["success"], episode["steps"], episode["queries"]) == (False, 20, 2)
    assert found["simulation"]["policy"]["backends"] == {"all": "eager fp32"}
    assert found["skipped"][0]["what"] == "--n_envs 2"
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "r.json")
    assert "success rate: 0.00 of 1 episodes" in printed.err


def test_the_published_command_line_means_what_it_did() -> None:
    line = "--client --env_name X --n_episodes 50 --n_envs 5 --max_episode_steps 720 --n_action_steps 16"
    args = parse([*line.split(), "--video_dir", "./videos", "--use_torch_tensorrt", "--port", "5556"])
    assert (args.n_episodes, args.n_envs, args.max_episode_steps, args.port) == (50, 5, 720, 5556)
    defaults = parse([])
    assert (defaults.n_episodes, defaults.n_envs, defaults.n_action_steps, defaults.max_episode_steps) == (
        2,
        1,
        16,
        1440,
    )
    assert (defaults.host, defaults.port, defaults.video_dir) == ("localhost", 5555, None)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--server"], "gr00t-trt serve"),
        (["--client", "--scripted"], "--client and --scripted exclude each other"),
        (["--n_envs", "0"], "--n_envs: 0 is out of range"),
        (["--scripted", "--backend", "eager"], "--backend concerns a local model"),
    ],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse(argv)


def test_without_gymnasium_the_way_to_install_it_is_told() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None; "
        "from gr00t_trt.simulate.program import main; sys.exit(main(['--scripted']))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "[sim]'" in done.stderr


def test_an_unknown_environment_is_refused_with_what_there_is() -> None:
    with pytest.raises(PlanError, match="gr00t_trt/TableTop-v0"):
        find("gr1_unified/PnPCupToDrawerClose_GR1ArmsAndWaistFourierHands_Env")
