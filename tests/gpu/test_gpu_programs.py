"""The programs as their users start them, on a GPU: the tiny model, real sockets, every backend that is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import gr00t_trt
from gr00t_trt.evaluate.__main__ import main as evaluate
from gr00t_trt.plans.schema import SUBMODULES
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import Status
from gr00t_trt.record.schema import Record
from gr00t_trt.rollout.__main__ import main as rollout
from gr00t_trt.run.program import main as groot
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.client import RobotInferenceClient

ROOT = Path(__file__).resolve().parents[2]
SYNTHETIC = ["--model_path", "synthetic", "--dataset_path", "synthetic"]


def record_of(tmp_path: Path, *line: str) -> Record:
    path = tmp_path / "record.json"
    assert groot([*SYNTHETIC, *line, "--record", str(path)]) == 0
    return read_record(path)


def test_the_main_job_captures_what_it_has_compiled(tmp_path: Path, gpu: torch.device) -> None:
    record = record_of(
        tmp_path, "--backend", "inductor", "--precision", "bf16", "--loop", "denoise_loop",
        "--cuda_graph", "startup", "--benchmark", "cuda_event", "--num_iterations", "20",
    )  # fmt: skip
    assert record.device == "cuda:0"
    assert record.environment.gpu == torch.cuda.get_device_name(gpu)
    assert not record.failures
    whole = record.request
    assert whole.passed
    assert {result.latency_ms.timer for result in record.submodules} == {"cuda_event"}
    assert record.cuda_graph.graphs == 1
    assert record.cuda_graph.max_rel_error <= 2e-2
    assert whole.latency_ms.p50 < whole.against.latency_ms.p50
    assert not [note for note in record.skipped if note.what == "cuda_graph"]
    assert record.peak_memory.kind == "cuda allocator"


def test_backends_are_compared_and_the_fastest_becomes_a_plan(tmp_path: Path) -> None:
    record = record_of(tmp_path, "--compare", "all", "--fn_name", "action_head", "--num_iterations", "5")
    tried = {result.name: result for result in record.of("comparison") if result.subject == "dit_model"}
    assert {"eager", "inductor"} <= {name for name, result in tried.items() if result.latency_ms}
    assert all(r.latency_ms or r.why or r.status is Status.BUILT_NOT_RUN for r in tried.values())
    plan = tmp_path / "plan.yaml"
    record = record_of(
        tmp_path, "--backend", "auto", "--fn_name", "dit_model", "--write_plan", str(plan), "--num_iterations", "5"
    )
    assert record.exit_reason == "done"
    assert "backend:" in plan.read_text()


def test_offline_evaluation_tells_what_a_lower_precision_changes(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    line = [*SYNTHETIC, "--trajs", "1", "--steps", "20", "--precision", "bf16", "--compare", "--record", str(path)]
    assert evaluate(line) == 0
    assert read_record(path).evaluation


def test_a_robots_loop_runs(tmp_path: Path) -> None:
    line = ["--model_path", "synthetic", "--actions_to_execute", "4", "--compare_overlap"]
    assert rollout([*line, "--record", str(tmp_path / "rollout.json")]) == 0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    flags = ["--server", "--model_path", "synthetic", "--precision", "fp32", "--port", "0", "--cuda_graph", "on_demand"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gr00t_trt.serve", *flags],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    try:
        line = process.stdout.readline().strip()  # type: ignore[union-attr]
        address = re.fullmatch(r"ready tcp://127\.0\.0\.1:(\d+)", line)
        assert address, (line, process.stderr.read() if process.poll() is not None else "")  # type: ignore[union-attr]
        yield int(address[1])
    finally:
        process.kill()
        process.communicate()


def test_a_server_with_graphs_answers_different_questions_differently(port: int) -> None:
    with RobotInferenceClient(port=port, timings=True) as client:
        status = client.status()
        assert status["device"].startswith("cuda")
        assert set(status["submodules"]) == set(SUBMODULES)
        observation = example(status["observation"])
        video = next(key for key in observation if key.startswith("video."))
        text = next(key for key in observation if key.startswith("annotation."))
        other = {**observation, video: 255 - observation[video]}
        longer = {**observation, text: ["pick the pear from the counter and then place it in the large green bowl"]}
        answers = [client.get_action(each) for each in (observation, other, longer, observation, other)]
        assert client.last_timings_ms["total"] < 1000
    assert all(np.isfinite(value).all() for answer in answers for value in answer.values())


def test_the_policy_of_a_deployment_answers_like_eager_fp32(gpu: torch.device) -> None:
    from gr00t_trt.common.progress import Steps
    from gr00t_trt.deploy.deploy import deploy
    from gr00t_trt.plans.load import plan_from_mapping
    from gr00t_trt.plans.resolve import Machine, resolve

    settings = {"backend": "eager", "precision": "fp32", "cuda_graph": "on_demand"}
    policy = gr00t_trt.load_policy("synthetic", device=gpu)
    plain = gr00t_trt.load_policy("synthetic")
    resolved = resolve(plan_from_mapping(settings, "test"), Machine(str(gpu)))
    done = deploy(policy, resolved, Steps(Console(stderr=True), None))
    observation = plain.example()
    for seed in range(3):
        start = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(seed))
        expected = plain.get_action(observation, noise=start)
        for key, value in done.policy.get_action(observation, noise=start).items():
            np.testing.assert_allclose(value, expected[key], atol=2e-3)  # TF32 is off by default in products only
