"""The command line: the published flags, what they come to, and a real server in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from puppet import repeated
from websockets.sync.client import connect

from gr00t_trt.errors import PlanError
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.plans.submodules import resolve_submodule
from gr00t_trt.serve.__main__ import main
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.flags import is_loopback, parse, plan_of
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.openpi_wire import decode_openpi, encode_openpi

ROOT = Path(__file__).resolve().parents[2]


def test_the_published_defaults() -> None:
    args = parse(["--server"])
    assert (args.model_path, args.data_config, args.embodiment_tag) == (
        "nvidia/GR00T-N1.5-3B",
        "fourier_gr1_arms_waist",
        "gr1",
    )
    assert (args.host, args.port, args.api_token, args.http_server) == ("localhost", 5555, None, False)
    plan = plan_of(args)
    assert (plan.backend, plan.precision, plan.denoising_steps) == ("eager", "bf16", 4)


@pytest.mark.parametrize(
    "line",
    [
        "--server --model-path nvidia/GR00T-N1.5-3B --embodiment-tag gr1 --data-config fourier_gr1_arms_waist",
        "--model_path nvidia/GR00T-N1.5-3B --server --http-server --port 8000 --host=0.0.0.0 --api_token None",
        "--server --no-client --no-use-tensorrt --denoising-steps=4 --device cuda --precision bf16",
        "--client --host localhost --port 5555 --api-token secret",
        "--server --use_torch_tensorrt --vit_dtype fp16 --llm_dtype fp16 --dit_dtype fp16 --precision fp16 "
        "--dataset_path ./demo_data/robot_sim.PickNPlace --use-explicit-typing --use-fp32-acc",
    ],
)
def test_published_command_lines_parse_in_either_spelling(line: str) -> None:
    args = parse(line.split())
    plan_of(args)
    assert args.api_token in (None, "secret")


def test_a_dtype_that_is_not_given_follows_the_precision() -> None:
    plan = plan_of(parse(["--server", "--use_torch_tensorrt", "--precision", "FP16", "--llm_dtype", "bf16"]))
    resolved = {name: resolve_submodule(plan, name) for name in SUBMODULES}
    assert {each.backend for each in resolved.values()} == {"torch_tensorrt"}
    assert {name for name, each in resolved.items() if each.precision == "bf16"} == {"language_model"}
    assert plan.build.use_fp32_acc  # as published, where it has a meaning
    assert not plan_of(
        parse(["--server", "--use_torch_tensorrt", "--precision", "fp16", "--no-use-fp32-acc"])
    ).build.use_fp32_acc
    assert not plan_of(parse(["--server", "--use_torch_tensorrt", "--precision", "fp32"])).build.use_fp32_acc


def test_a_plan_file_stands_where_no_flag_was_given(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text("backend: inductor\nprecision: fp32\nranges: {batch: [1, 4]}\n")
    line = ["--server", "--config", str(tmp_path / "plan.yaml")]
    assert (plan_of(parse(line)).backend, plan_of(parse(line)).precision) == ("inductor", "fp32")
    assert plan_of(parse([*line, "--backend", "eager"])).backend == "eager"
    with pytest.raises(PlanError, match="--max_batch: 5 is more than the plan's batches"):
        plan_of(parse([*line, "--max_batch", "5"]))


def test_ready_made_engines_are_asked_for_by_the_published_flag_or_by_name() -> None:
    published = plan_of(parse(["--server", "--use_tensorrt", "--precision", "fp16"]))
    assert (published.backend, published.build.trt_engine_path) == ("tensorrt", "gr00t_engine")
    assert published.optimizations == ()
    assert published.build.use_fp32_acc
    named = plan_of(parse(["--server", "--use_tensorrt", "--trt_engine_path", "mine"]))
    assert named.build.trt_engine_path == "mine"
    assert plan_of(parse(["--server", "--backend", "tensorrt"])).build.trt_engine_path is None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "neither --server nor --client"),
        ("--server --prot 5555", "did you mean --port"),
        ("--server --port 70000", "--port: 70000 is out of range"),
        ("--server --max_queue 0", "--max_queue: 0 is out of range"),
        ("--server --use_torch_tensorrt --backend eager", "exclude each other"),
        ("--server --use_torch_tensorrt --use_tensorrt", "exclude each other"),
        ("--server --use_torch_tensorrt --vit-dtype fp8", "needs a calibration"),
        ("--server --precision fp8", "needs a calibration"),
        ("--server --http_server --http_port 8000", "leave one of them out"),
        ("--server --api_token_file /nowhere/token", "cannot be read: No such file"),
        ("--server --api_token_file x --api_token y", "exclude each other"),
        ("--server --log everything", "--log: invalid choice"),
        ("--server --max_batch 2 --bracketed_instruction", "holds for single requests"),
        ("--server --embodiment_tag gr2 --model_path synthetic", "did you mean gr1"),
    ],
)
def test_flags_that_cannot_work_are_refused(line: str, words: str, capsys) -> None:
    assert main(line.split()) == 2
    assert words in capsys.readouterr().err


def test_only_addresses_of_this_machine_are_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.3.2.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "*", "192.168.0.7", "::", "robot.example")))


def test_a_port_in_use_is_told_before_anything_is_loaded(capsys) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--server", "--model_path", "/nowhere", "--port", str(port)]) == 2
    assert f"cannot listen on localhost:{port}: Address already in use" in capsys.readouterr().err


def test_a_client_without_a_server_says_so(capsys, monkeypatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["--client", "--http_server", "--port", str(port)]) == 2
    assert "see that the server runs" in capsys.readouterr().err


@dataclass
class Running:
    process: subprocess.Popen
    port: int
    http_port: int
    websocket_port: int


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    flags = [
        "--server",
        "--model-path",
        "synthetic",
        "--precision",
        "fp32",
        "--port=0",
        "--http_port=0",
        "--websocket_port=0",
        "--max_batch=4",
        "--log=requests",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "gr00t_trt.serve", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    try:
        ready = [process.stdout.readline().strip() for _ in range(3)]  # type: ignore[union-attr]
        addresses = [re.fullmatch(r"ready (tcp|http|ws)://127\.0\.0\.1:(\d+)", line) for line in ready]
        assert all(addresses), (ready, process.stderr.read())  # type: ignore[union-attr]
        yield Running(process, *(int(each[2]) for each in addresses if each))
    finally:
        process.kill()
        process.communicate()


def test_the_client_mode_shows_what_a_real_server_answers(running: Running, capsys) -> None:
    for further in (["--port", str(running.port)], ["--port", str(running.http_port), "--http-server"]):
        assert main(["--client", *further]) == 0
        out = capsys.readouterr().out
        assert "action.left_arm: (16, 7)\n" in out
        assert "action.waist: (16, 3)\n" in out
        assert re.search(r"round trip: \d+\.\d ms", out)


def test_a_status_says_what_serves_each_submodule_and_where_time_goes(running: Running) -> None:
    with RobotInferenceClient(port=running.port, timings=True) as client:
        status = client.status()
        assert status["submodules"] == dict.fromkeys(SUBMODULES, "eager fp32")
        assert torch.__version__.startswith(status["versions"]["torch"])  # some builds are installed as 2.11.0 alone
        assert status["action_cosine_to_fp32"] > 0.99999
        action = client.get_action(example_of(status))
        assert {"queue", "preprocess", *SUBMODULES, "postprocess", "total"} <= set(client.last_timings_ms)
        assert client.last_timings_ms["total"] >= client.last_timings_ms["dit_model"] > 0
    assert all(value.dtype == np.float32 and np.isfinite(value).all() for value in action.values())


def example_of(status: dict) -> dict:
    from gr00t_trt.serve.ask import example

    return example(status["observation"])


def test_a_wrong_observation_is_told_as_the_policy_tells_it(running: Running) -> None:
    with RobotInferenceClient(port=running.port) as client:
        good = example_of(client.status())
        for key, value, words in (
            ("video.ego_view", np.full((1, 256, 256, 3), np.nan, np.float32), "video.ego_view is float32"),
            ("video.ego_view", np.zeros((1, 480, 640, 3), np.uint8), "640 x 480 pixels"),
            ("state.waist", np.full((1, 3), np.nan), "state.waist holds nan"),
            ("state.waist", None, "state.waist"),
        ):
            with pytest.raises(RuntimeError, match=words):
                client.get_action({**good, key: value})
        assert "action.waist" in client.get_action(good)


def test_openpis_protocol_gives_the_same_action(running: Running) -> None:
    with RobotInferenceClient(port=running.port) as client:
        request = example_of(client.status())
        expected = client.get_action(request, seed=5)
    step = {key: value[0] for key, value in request.items()}
    language = next(key for key in step if key.startswith("annotation."))
    with connect(f"ws://127.0.0.1:{running.websocket_port}", proxy=None) as connection:
        about = decode_openpi(connection.recv(10, decode=False))
        connection.send(encode_openpi({**step, "prompt": step[language], "seed": 5} | {language: None}))
        assert "leave prompt out" in connection.recv(20)
        del step[language]
        connection.send(encode_openpi({**step, "prompt": request[language][0], "seed": 5}))
        action = decode_openpi(connection.recv(20, decode=False))
    assert about["data_config"] == "fourier_gr1_arms_waist"
    for key, value in expected.items():
        np.testing.assert_array_equal(action[key], value)
    stacked = np.concatenate([expected[key] for key in about["modality_keys"]["action"]], axis=-1)
    np.testing.assert_array_equal(action["actions"], stacked)


def test_frames_of_a_camera_are_resized_to_what_the_checkpoint_wants(running: Running) -> None:
    with RobotInferenceClient(port=running.port, resize=True) as client:
        good = example_of(client.status())
        assert "action.waist" in client.get_action({**good, "video.ego_view": np.zeros((1, 480, 640, 3), np.uint8)})


def test_a_vectorised_simulation_sends_a_batch(running: Running) -> None:
    with RobotInferenceClient(port=running.port) as client:
        batch = repeated(example_of(client.status()), 2)
        assert client.get_action(batch)["action.waist"].shape == (2, 16, 3)


def test_what_the_plan_does_not_provide_for_is_refused_before_any_work(running: Running) -> None:
    with RobotInferenceClient(port=running.port) as client:
        limits = client.status()["limits"]
        assert (limits["samples"], limits["tokens"]) == (8, 1024)
        one = example_of(client.status())
        key = next(key for key in one if "annotation" in key)
        for request, words in (
            (repeated(one, 9), "a batch of 9, more than the 8"),
            ({**one, key: ["x " * 2000]}, "more than the 1024"),
        ):
            with pytest.raises(RuntimeError, match=words):
                client.get_action(request)


@pytest.mark.parametrize("further", [[], ["--http_server"]])
def test_the_same_seed_gets_the_same_action_from_a_real_policy(running: Running, further: list[str]) -> None:
    kind, port = (HttpInferenceClient, running.http_port) if further else (RobotInferenceClient, running.port)
    with kind("127.0.0.1", port, served_by=True) as client:
        one = example_of(client.status())
        first, again, other = (client.get_action(one, seed=seed) for seed in (5, 5, 6))
        assert set(client.last_served_by["submodules"]) == set(SUBMODULES)
        assert "commit" in client.last_served_by
    for key, value in first.items():
        np.testing.assert_array_equal(value, again[key])
    assert any((first[key] != other[key]).any() for key in first)


def test_sigterm_lets_the_server_end_well(running: Running) -> None:
    running.process.send_signal(signal.SIGTERM)
    out, err = running.process.communicate(timeout=20)
    assert running.process.returncode == 0
    assert out == ""
    assert re.search(r"\n\d+ requests answered, \d+ refused or failed; p50 \d+\.\d ms, p99 \d+\.\d ms\nstopped\n$", err)
    assert re.search(r" INFO get_action from 127\.0\.0\.1:\d+: 1 samples, \d+\.\d ms: ok\n", err)
    assert "vision_model" in err  # the table of what serves each submodule


def test_a_host_that_loaded_pytorch_is_told_how_its_threads_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from gr00t_trt.serve.program import SPIN, wait_briefly

    monkeypatch.delenv(SPIN, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert wait_briefly() == (
        "PyTorch was loaded before the server: where other programs want its cores, start Python with "
        "GOMP_SPINCOUNT=2000"
    )
    assert SPIN not in os.environ
    monkeypatch.setenv(SPIN, "7")
    assert wait_briefly() is None
    assert os.environ[SPIN] == "7"
    monkeypatch.delenv(SPIN)
    monkeypatch.delitem(sys.modules, "torch")
    assert wait_briefly() is None
    assert os.environ[SPIN] == "2000"


def test_the_load_test_finds_nothing_wrong(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    line = ["--seconds", "1", "--clients", "4", "--hostile", "26", "--samples", "3", "--record", str(record)]
    done = subprocess.run(
        [sys.executable, "bench/serve_load.py", *line],
        cwd=ROOT, capture_output=True, text=True, timeout=180, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(record.read_text())
    cost = found["overhead"]
    assert sum(cost["split_ms"].values()) == pytest.approx(cost["overhead_ms"]["p50"])
    assert 0 < cost["policy_ms"]["min"] < cost["round_trip_ms"]["min"]
    assert found["startup"]["first_engines"] == found["startup"]["again_engines"] == {"built": 0, "from_cache": 0}
    assert found["load"]["answered"] > 0
    assert found["load"]["lost"] == found["load"]["mixed_up"] == 0
    assert found["hostile"]["messages"] == 26
    assert found["restart"]["recovered"] == 4
    assert found["restart"]["lost"] == 0


def test_a_long_run_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    import soak

    monkeypatch.setattr(soak, "BATCHES", (8,))
    (row,) = soak.soaked(["--model_path", "synthetic", "--engine_cache", "off"], 2.0)
    assert row["max_batch"] == 8
    assert row["answered"] > 0
    assert row["lost"] == row["mixed_up"] == 0
    assert row["unanswered_or_wrong"] == {}
    assert {"connection", "died"} < row["hostile"].keys()
    assert len(row["rss_bytes_by_minute"]) == 2


def test_a_token_is_in_no_record(tmp_path: Path) -> None:
    from gr00t_trt.simulate.program import main as simulate

    record = tmp_path / "record.json"
    line = ["--scripted", "--n_episodes", "1", "--max_episode_steps", "20", "--record", str(record)]
    assert simulate([*line, "--api-token", "sesame"]) == 0
    assert "sesame" not in record.read_text()
    assert "--api-token '***'" in json.loads(record.read_text())["command"]
