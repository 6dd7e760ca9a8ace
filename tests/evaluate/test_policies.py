"""Programs whose policy is a server, over a real socket; and what the flags make of a local one."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from gr00t_trt.common.command import Parser, parse_flags
from gr00t_trt.common.interface import refuse_non_finite
from gr00t_trt.errors import AccuracyError, PlanError
from gr00t_trt.evaluate.policies import ServedPolicy, check_policy_flags, plan_of, policy_flags
from gr00t_trt.evaluate.program import main as evaluate
from gr00t_trt.simulate.program import main as simulate

ROOT = Path(__file__).resolve().parents[2]
EPISODE = "data/chunk-000/episode_000000.parquet"
ROBOT = ["--data_config", "so100", "--embodiment_tag", "new_embodiment"]
SERVE = ["--server", "--model_path", "synthetic", "--port", "0", "--precision", "fp32", "--api_token", "secret", *ROBOT]


@pytest.fixture(scope="module")
def server() -> Iterator[list[str]]:
    """The flags that reach a running server of the SO-100's data config."""
    command = [sys.executable, "-m", "gr00t_trt.serve", *SERVE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("ready tcp://"), line
            yield ["--port", line.strip().rpartition(":")[2], "--host", "127.0.0.1", "--api_token", "secret"]
        finally:
            process.terminate()
            process.wait(timeout=30)


def test_recorded_episodes_are_evaluated_against_a_server_and_beside_it(server, tmp_path: Path) -> None:
    local = ["--model_path", "synthetic", *ROBOT, "--compare", "server"]
    argv = ["--dataset_path", "synthetic", "--steps", "20", "--record", str(tmp_path / "r.json"), *server]
    assert evaluate([*argv, *local, "--modality_keys", "gripper"]) == 0
    found = json.loads((tmp_path / "r.json").read_text())["evaluation"]
    assert [c["name"].partition(" ")[0] for c in found["candidates"]] == ["eager", "server"]
    # The same weights; only the noise is another.
    assert all(0 < c["mean_mse"] < 10 for c in found["candidates"])
    assert found["difference"]["per_key"]["action.gripper"]["max_abs"] > 0
    assert found["candidates"][1]["latency_ms"]["iterations"] == 2


def test_a_simulation_asks_a_server_as_the_published_client_does(server, tmp_path: Path) -> None:
    argv = ["--client", "--use_torch_tensorrt", "--n_episodes", "2", "--max_episode_steps", "6", *server]
    assert simulate([*argv, "--record", str(tmp_path / "r.json")]) == 0
    (played,) = json.loads((tmp_path / "r.json").read_text())["simulation"]["played"]
    assert [(e["steps"], e["queries"]) for e in played["episodes"]] == [(6, 1), (6, 1)]
    assert played["policy"]["server"].startswith("127.0.0.1:")


def test_a_server_plays_as_the_same_model_here_does(server, tmp_path: Path) -> None:
    """The same scenes, and the same noise, which the server is told by its seed: the same actions in every row."""
    common = [
        "--n_episodes",
        "1",
        "--max_episode_steps",
        "20",
        "--n_action_steps",
        "8",
        "--record",
        str(tmp_path / "r"),
    ]
    for name, who in (("here", ["--model_path", "synthetic", "--precision", "fp32"]), ("there", ["--client", *server])):
        assert simulate([*who, *common, "--save_dataset", str(tmp_path / name)]) == 0
    here, there = (
        np.stack(pyarrow.parquet.read_table(tmp_path / name / EPISODE).column("action").to_pylist())
        for name in ("here", "there")
    )
    assert here.shape == (20, 6)
    # Each process measures which library multiplies fp32 faster: where two are nearly equal, the last digits differ.
    np.testing.assert_allclose(here, there, rtol=0, atol=1e-5)


def test_a_robot_is_driven_by_a_server_without_torch_on_its_side(server, tmp_path: Path) -> None:
    argv = ["--robot.type", "gr00t_trt/SO101PickPlace-v0", "--actions_to_execute", "3", "--control_hz", "20"]
    argv += ["--overlap"]
    argv += [flag.replace("--host", "--policy_host").replace("--port", "--policy_port") for flag in server]
    argv += ["--record", str(tmp_path / "r.json")]
    code = f"import sys; from gr00t_trt.rollout.program import main; print(main({argv!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["rollout"]["modes"]["overlapped"]["actions"] == 24
    assert not any(note["what"] == "frame sizes" for note in found["skipped"])


@pytest.mark.parametrize("flags", [["--api_token", "wrong"], ["--port", "1", "--timeout_ms", "300"]])
def test_a_server_that_is_away_or_refuses_is_named(server, flags, tmp_path, capsys) -> None:
    argv = ["--n_episodes", "1", *server, *flags, "--record", str(tmp_path / "r.json")]
    assert simulate(argv) == 2
    said = capsys.readouterr().err
    assert "Unauthorized: Invalid API token" in said or "no answer from 127.0.0.1:1 within 300 ms" in said


class Client:
    """Answers as some servers do, with the map wrapped once more."""

    def get_modality_config(self):
        return {}

    def get_action(self, observation):
        self.seen = observation
        return {"actions": {"action.part": np.zeros((16, 2))}}


def test_position_ids_are_asked_for_where_the_server_needs_them() -> None:
    client = Client()
    for wanted in (False, True):
        answer = ServedPolicy(client, "x", position_ids=wanted).get_action({"state.part": 1})
        assert list(answer) == ["action.part"]
        assert client.seen == ({"state.part": 1, "use_position_ids": True} if wanted else {"state.part": 1})


def flags(*argv: str) -> Namespace:
    p = Parser(prog="test")
    policy_flags(p, data_config="so100", embodiment_tag="gr1")
    return parse_flags(p, ["--model_path", "synthetic", *argv])


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], None),
        (["--precision", "BF16"], ("eager", "bf16")),
        (["--use_torch_tensorrt"], ("torch_tensorrt", "fp16")),
        (["--backend", "inductor", "--precision", "fp32"], ("inductor", "fp32")),
    ],
)
def test_without_a_word_about_compiling_a_local_model_stays_in_eager_fp32(argv, expected) -> None:
    plan = plan_of(flags(*argv))
    assert (plan and (plan.backend, plan.precision)) == expected


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--seed", "-1"], "--seed: -1 is out of range"),
        (["--timeout_ms", "0"], "--timeout_ms: 0 is out of range"),
        (["--model_path", "None", "--device", "cpu"], "--device concerns a local model"),
        (["--config", "nowhere.yaml"], "no such plan file"),
    ],
)
def test_flags_that_cannot_work_are_refused_before_anything_is_loaded(argv, words) -> None:
    with pytest.raises(PlanError, match=words):
        check_policy_flags(flags(*argv))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_goes_nowhere(bad: float) -> None:
    value = np.zeros((16, 7))
    refuse_non_finite({"action.arm": value}, "here")
    value[3, 2] = bad
    with pytest.raises(AccuracyError, match=r"here: action.arm holds -?(nan|inf) at \[3, 2\]"):
        refuse_non_finite({"action.arm": value}, "here")
