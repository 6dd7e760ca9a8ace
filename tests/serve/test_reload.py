"""Other weights in a running service: who may ask, and that every answer is of the old ones or of the new ones."""

from __future__ import annotations

import argparse
import io
import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from puppet import Served, serving, wait_until
from rich.console import Console
from trained_pair import write_pair

import gr00t_trt
from gr00t_trt.common.interface import Observation
from gr00t_trt.common.progress import Steps
from gr00t_trt.deploy.deploy import Deployment, deploy
from gr00t_trt.errors import Gr00tError, PlanError, ServiceError, UsageError
from gr00t_trt.model.checkpoint import content_hash_of
from gr00t_trt.plans.load import plan_from_mapping
from gr00t_trt.plans.resolve import Machine, resolve
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.deploy_weights.program import main
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.limits import Limits
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.refusal import Refusal
from gr00t_trt.serve.reload import Reloader, reloader_of
from gr00t_trt.serve.service import Service
from gr00t_trt.serve.weights_state import DONE, REFUSED, RUNNING, Checkpoint, Reload
from gr00t_trt.serve.worker import PolicyWorker
from gr00t_trt.serve.zmq_server import ZmqServer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pair(tmp_path_factory.mktemp("runs"))


def settings(folder: Path, **changed: Any) -> argparse.Namespace:
    """The flags of a server that matter here."""
    given = {"data_config": "fourier_gr1_arms_only", "embodiment_tag": "gr1", "tokenizer": None, "engine_cache": "off"}
    return argparse.Namespace(
        **given,
        model_path=str(folder / "old"),
        dataset_path=None,
        metadata=None,
        bracketed_instruction=False,
        no_check=False,
        allow_reload=str(folder),
        **changed,
    )


class Server:
    """A checkpoint in service over ZeroMQ, in this process."""

    def __init__(self, folder: Path, name: str = "old"):
        quiet = Steps(Console(file=io.StringIO()), None)
        plan = plan_from_mapping({"backend": "eager", "precision": "fp32", "denoising_steps": 1}, "test")
        self.deployment = deploy(gr00t_trt.load_policy(folder / name), resolve(plan, Machine("cpu")), quiet)
        policy, metrics = self.deployment.policy, Metrics()
        self.observation: Observation = policy.example()
        limits = Limits(policy.modality_config, max_samples=4, max_tokens=None, noise_shape=(16, 32))
        tables = (policy.stages, policy.model.stages)
        self.worker = PolicyWorker(policy, metrics, tables=tables, limits=limits, request_timeout_s=60.0)
        self.said: list[str] = []
        args = settings(folder)
        reloader = reloader_of(args, self.deployment, self.observation, self.worker, lambda: None, self.said.append)
        self.service = Service(
            self.worker,
            metrics,
            {"model": args.model_path, "submodules": {}},
            policy.modality_config,
            limits=limits,
            may_kill=True,
            reloader=reloader,
        )
        reloader.published = self.service.describe
        self.server = ZmqServer(self.service, "127.0.0.1", 0, max_request_bytes=2**24, request_timeout_s=60.0)
        self.port = int(self.server.endpoint.rpartition(":")[2])
        self.thread = threading.Thread(target=self.worker.run)

    def __enter__(self) -> Server:
        self.thread.start()
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.worker.stop()
        self.thread.join(20)
        self.server.close()

    def answered(self) -> dict[str, np.ndarray]:
        """The action of a server that is started for it."""
        with self:
            return self.action()

    def client(self) -> RobotInferenceClient:
        return RobotInferenceClient("127.0.0.1", self.port, timeout_ms=60_000)

    def action(self) -> dict[str, np.ndarray]:
        with self.client() as client:
            return client.get_action(self.observation, seed=1)


def same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(value, two[key]) for key, value in one.items())


@pytest.fixture(scope="module")
def running(pair: Path) -> Iterator[Server]:
    with Server(pair) as server:
        yield server


def test_every_answer_is_of_the_old_weights_or_of_the_new_ones(
    running: Server, pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, answers, over = running.action(), [], threading.Event()

    def robot() -> None:
        with running.client() as client:
            while not over.is_set():
                answers.append(client.get_action(running.observation, seed=1))
            answers.append(client.get_action(running.observation, seed=1))

    robots = [threading.Thread(target=robot) for _ in range(2)]
    for thread in robots:
        thread.start()
    status = main([str(pair / "new"), "--host", "127.0.0.1", "--port", str(running.port)])
    over.set()
    for thread in robots:
        thread.join()
    assert status == 0
    new = running.action()
    assert not same(old, new)
    kinds = ["old" if same(answer, old) else "new" if same(answer, new) else "mixed" for answer in answers]
    assert set(kinds) <= {"old", "new"}
    assert kinds[-1] == "new"
    assert same(new, Server(pair, "new").answered())
    out = capsys.readouterr().out
    assert f"serving: {pair / 'new'}\nsha256: {content_hash_of(pair / 'new')}\ntensors changed: 114\n" in out
    assert "from checkpoint to first action: " in out
    with running.client() as client:
        told = client.status()
    assert (told["model"], told["checkpoint"]["sha256"]) == (str(pair / "new"), content_hash_of(pair / "new"))
    assert told["reload"]["state"] == DONE
    assert list(told["reload"]["seconds"])[-2:] == ["pause", "total"]


def test_what_is_refused_leaves_the_weights_that_are_there(
    running: Server, pair: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = running.action()
    broken = pair / "broken"
    broken.mkdir()
    for file in (pair / "new").iterdir():
        if file.is_file():
            (broken / file.name).write_bytes(file.read_bytes())
    os.truncate(broken / "model-00002-of-00002.safetensors", 1000)
    config = json.loads((broken / "config.json").read_text())
    where = ["--host", "127.0.0.1", "--port", str(running.port)]
    assert main([str(broken), *where]) == 2
    assert "refused, the old weights go on serving" in capsys.readouterr().err
    config["action_head_cfg"]["hidden_size"] = 32
    config["action_head_cfg"]["diffusion_model_cfg"]["output_dim"] = 32
    (broken / "config.json").write_text(json.dumps(config))
    assert main([str(broken), *where]) == 2
    assert "of another geometry: action_head.diffusion.output_dim is 32, and 64" in capsys.readouterr().err
    assert same(running.action(), before)
    with running.client() as client:
        assert client.status()["reload"]["state"] == REFUSED


class Told:
    """In the place of a `Reloader`; ends when it is told to."""

    def __init__(self) -> None:
        self.checkpoint = Checkpoint("old")
        self.last = Reload()
        self.asked: list[object] = []

    def start(self, checkpoint: object) -> dict[str, Any]:
        self.asked.append(checkpoint)
        self.last = Reload(RUNNING, 1, str(checkpoint))
        return self.last.told()


def post(served: Served, token: str | None = None, body: bytes = b'{"checkpoint": "x"}') -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(f"http://127.0.0.1:{served.http_port}/reload", body, headers, method="POST")
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)["detail"]


def test_it_is_off_unless_the_operator_switches_it_on() -> None:
    with serving() as served:
        status, detail = post(served)
        with RobotInferenceClient(port=served.port) as client, pytest.raises(ServiceError, match="reload is off"):
            client.reload("x")
    assert (status, "--allow_reload" in detail) == (403, True)


def test_it_takes_the_token_or_a_machine_of_ones_own() -> None:
    told = Told()
    with serving(api_token="secret", may_kill=False, reloader=told) as served:
        assert post(served)[0] == post(served, "wrong")[0] == 401
        with RobotInferenceClient(port=served.port) as client, pytest.raises(ServiceError, match="Unauthorized"):
            client.reload("x")
        assert told.asked == []
        assert post(served, "secret") == (202, {"state": RUNNING, "number": 1, "checkpoint": "x"})
    with serving(may_kill=False, reloader=told) as served:
        status, detail = post(served)
    assert (status, "asks for no token" in detail) == (401, True)


def test_both_protocols_ask_alike_and_tell_alike() -> None:
    told = Told()
    with serving(reloader=told) as served:
        one = RobotInferenceClient(port=served.port, host="127.0.0.1")
        two = HttpInferenceClient("127.0.0.1", served.http_port)
        with one, two:
            for client in (one, two):
                assert client.reload("x")["number"] == 1
                assert client.status()["reload"] == {"state": RUNNING, "number": 1, "checkpoint": "x"}
                assert client.status()["checkpoint"] == {"path": "old", "sha256": None}
        assert post(served, body=b"{}")[0] == 202  # what a path may be is the reloader's to say
        assert post(served, body=b"[")[0] == 422
        assert post(served, body=b" " * (2**20 + 1))[0] == 413
    assert told.asked == ["x", "x", None]


@pytest.fixture
def reloader(tmp_path: Path) -> Reloader:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "secret")
    deployment: Any = SimpleNamespace(resolved=object())
    never: Any = lambda *_: pytest.fail("nothing is to be loaded")  # noqa: E731
    return Reloader(deployment, tmp_path / "runs", "old", never, never)


@pytest.mark.parametrize("served", ["runs/a", "./runs/../runs/a", "linked/a", "other"])
def test_the_checkpoint_in_service_is_known_by_any_of_its_names(
    reloader: Reloader, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    reloader.checkpoint = Checkpoint(served)
    if served == "other":
        reloader._change = Mock(side_effect=Gr00tError("another one"))
        assert reloader.change("a").error == "another one"
    else:
        assert reloader.change("a").state == DONE


@pytest.mark.parametrize(
    "path", ["../secret", "link", "/", "nothing", "a/../../secret", ".\0", "", "   ", None, 3, "x" * 5000]
)
def test_only_folders_below_the_operators_are_looked_at(reloader: Reloader, path: object) -> None:
    with pytest.raises(Refusal, match=r"is no folder below|no checkpoint was named"):
        reloader.start(path)
    assert reloader.last == Reload()


def test_one_change_at_a_time(reloader: Reloader) -> None:
    reloader.last = Reload(RUNNING, 1, "other")
    with pytest.raises(Refusal, match="other is being loaded"):
        reloader.start("a")


def test_a_job_between_requests_waits_for_the_one_that_runs_and_outlives_its_errors() -> None:
    with serving() as served:
        served.puppet.go.clear()
        with RobotInferenceClient(port=served.port) as client:
            asking = threading.Thread(target=lambda: client.get_action({"state.arm": np.zeros((1, 5))}))
            asking.start()
            wait_until(lambda: served.puppet.calls)
            done: list[str] = []
            job = threading.Thread(target=lambda: served.worker.between(lambda: done.append("done")))
            job.start()
            assert done == []
            served.puppet.go.set()
            job.join(5)
            asking.join(5)
            assert done == ["done"]
            with pytest.raises(ZeroDivisionError):
                served.worker.between(lambda: 1 / 0)
            assert client.ping()
    with pytest.raises(ServiceError, match="shutting down"):
        served.worker.between(lambda: None)


def test_flags_that_cannot_work(pair: Path) -> None:
    built: Any = SimpleNamespace(resolved=object())
    worker: Any = None
    with pytest.raises(UsageError, match="no such folder"):
        reloader_of(settings(pair / "nowhere"), built, {}, worker, lambda: None, print)
    bundled: Deployment | Any = SimpleNamespace(resolved=None)
    with pytest.raises(PlanError, match="nothing was built here"):
        reloader_of(settings(pair), bundled, {}, worker, lambda: None, print)


def test_the_program_without_a_server(pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = [str(pair / "new"), "--build", "--data_config", "fourier_gr1_arms_only", "--device", "cpu"]
    assert main([*line, "--denoising_steps", "1"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:2] == [f"checked: {pair / 'new'}", "engines built: 0, from the cache: 0"]
    assert out[2].startswith("from checkpoint to first action: ")
    assert main(["--build", "--device", "cpu"]) == 2
    assert "no checkpoint was named" in capsys.readouterr().err
    assert main(["x", "--port", "0"]) == 2
    assert main(["x", "--prot", "1"]) == 2
    assert "did you mean --port" in capsys.readouterr().err
