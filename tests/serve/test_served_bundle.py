"""A server from a bundle: which flags it takes, and the answers of a process that has the folder and nothing else."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from gr00t_trt.common.progress import Steps
from gr00t_trt.deploy.bundle.make import make_bundle
from gr00t_trt.errors import UsageError
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.plans.schema import Plan
from gr00t_trt.policy.source import Source
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.flags import DECIDED, parse, parser, plan_of
from gr00t_trt.serve.program import main

ROOT = Path(__file__).resolve().parents[2]
QUIET = Steps(Console(file=io.StringIO()), None)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model, with another number of steps than a start without it would take."""
    before = torch.get_float32_matmul_precision()
    plan = resolve(Plan(backend="eager", precision="fp32", denoising_steps=2), Machine("cpu"))
    out = tmp_path_factory.mktemp("bundles") / "robot"
    try:
        return make_bundle(Source("synthetic", None, "so100"), plan, out, torch.device("cpu"), QUIET).folder
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_plan_is_the_bundles(bundle: Path) -> None:
    plan = plan_of(parse(["--server", "--bundle", str(bundle)]))
    assert (plan.precision, plan.denoising_steps) == ("fp32", 2)


@pytest.mark.parametrize("flag", ["--precision bf16", "--model-path synthetic", "--no_check", "--config=fast"])
def test_what_was_decided_when_it_was_made_is_refused(flag: str, bundle: Path) -> None:
    name = flag.replace("=", " ").split()[0].replace("l-p", "l_p")
    with pytest.raises(UsageError, match=f"^{name}: a bundle has its own"):
        parse(["--server", "--bundle", str(bundle), *flag.split()])


def test_other_weights_are_another_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make a bundle of the other checkpoint"):
        parse(["--server", "--bundle", str(bundle), "--allow-reload", str(tmp_path)])


def test_every_flag_about_the_model_is_known_to_be_decided() -> None:
    about = {"how it is compiled", "what is served"}
    groups = [group for group in parser()._action_groups if group.title in about]
    flags = {action.option_strings[0][2:] for group in groups for action in group._group_actions}
    negated = {name for name in flags if name.startswith("no_") and name != "no_check"}
    assert flags - negated - {"device", "bundle", "print_plan", "no_no_check"} == set(DECIDED)


def test_a_folder_that_is_no_bundle_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--server", "--bundle", str(tmp_path)]) == 2
    assert "is no bundle: it has no bundle.json" in capsys.readouterr().err


def test_a_process_with_the_folder_alone_answers_as_the_policy_that_was_bundled(bundle: Path, tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    env = {**kept, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gr00t_trt", "serve", "--server", "--bundle", str(bundle), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().rpartition(":")[2])
            with RobotInferenceClient(port=port) as client:
                status = client.status()
                policy = Source("synthetic", None, "so100", denoising_steps=2).policy(torch.device("cpu"), QUIET)
                answer = client.get_action(policy.example(), seed=5)
        finally:
            process.terminate()
    assert (status["model"], status["denoising_steps"]) == (str(bundle), 2)
    assert process.returncode == 0
    noise = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(5))
    for key, value in policy.get_action(policy.example(), noise=noise).items():
        np.testing.assert_allclose(answer[key], value, atol=1e-4)
