"""One server, one model, robots of several kinds: each gets what its own policy gives it alone."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_graphs import FakeCapturer
from puppet import wait_until
from test_warm import replayed
from websockets.sync.client import connect

import gr00t_trt
from gr00t_trt.errors import ServiceError
from gr00t_trt.policy.policy import Gr00tPolicy
from gr00t_trt.serve.ask import example
from gr00t_trt.serve.batching import Batcher
from gr00t_trt.serve.client import RobotInferenceClient
from gr00t_trt.serve.flags import parse
from gr00t_trt.serve.further import further_robots
from gr00t_trt.serve.http_client import HttpInferenceClient
from gr00t_trt.serve.metrics import Metrics
from gr00t_trt.serve.mixed import mixed_actions
from gr00t_trt.serve.openpi_wire import decode_openpi, encode_openpi
from gr00t_trt.serve.robots import Robot
from gr00t_trt.serve.waiting import Answer, Request
from gr00t_trt.serve.warm import warm
from gr00t_trt.serve.worker import PolicyWorker

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--server", "--model_path", "synthetic", "--data_config", "fourier_gr1_arms_only", "--port", "0"]
ALSO = ["--also", "new_embodiment=so100", "--also", "oxe_droid=oxe_droid"]


def kind(policy: Gr00tPolicy) -> Robot:
    batcher = Batcher(policy.modality_config, lambda text: len(policy.prompter.tokenizer.encode(text)))
    return Robot(policy.modality_config, None, policy, batcher)


@pytest.fixture
def robots() -> list[Robot]:
    """A humanoid of one camera, an arm of one camera, and an arm of three."""
    policy = gr00t_trt.load_policy("synthetic", data_config="fourier_gr1_arms_only", denoising_steps=2)
    others = further_robots(parse([*FLAGS, *ALSO]))
    return [kind(policy), *(kind(each.policy(policy)) for each in others)]


def observations(robots: list[Robot]) -> list[dict[str, Any]]:
    """Of each kind, with equally long instructions."""
    own = [dict(robot.policy.example()) for robot in robots]
    for each in own:
        each.update({key: ["lift the pear"] for key in each if "annotation" in key})
    return own


def assert_close(actual: Any, expected: Any) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(actual[key], value, atol=1e-5 * max(1.0, np.abs(value).max()))


def test_robots_in_one_pass_get_what_they_get_alone(robots: list[Robot]) -> None:
    humanoid, arm, three_views = robots
    seen, near, far = observations(robots)
    assert humanoid.batcher.shared_form(seen) == arm.batcher.shared_form(near)
    assert humanoid.batcher.form(seen) != arm.batcher.form(near)
    assert three_views.batcher.shared_form(far) != arm.batcher.shared_form(near)  # more images: a longer prompt
    parts = [(humanoid, [seen]), (arm, [near, near])]
    torch.manual_seed(5)
    together = mixed_actions(parts)
    torch.manual_seed(5)
    noise = torch.randn(3, 16, 32)
    for i, (robot, own) in enumerate([(humanoid, seen), (arm, near), (arm, near)]):
        assert_close(together[i], robot.policy.get_action(own, noise=noise[i : i + 1]))


def test_a_worker_takes_what_waits_of_all_kinds_together_and_the_rest_after(robots: list[Robot]) -> None:
    passes: list[list[int]] = []
    policy = robots[0].policy
    run = policy.model.get_action

    def counted(inputs: Any, noise: Any = None) -> Any:
        passes.append(inputs["embodiment_id"].tolist())
        return run(inputs, noise=noise)

    policy.model.get_action = counted
    worker = PolicyWorker(policy, Metrics(), batcher=robots[0].batcher, several=True, max_batch=4)
    answers: dict[int, Answer] = {}
    own = observations(robots)
    for i, which in enumerate((0, 1, 2, 1)):
        robot = None if which == 0 else robots[which]
        finish = lambda answer, i=i: answers.__setitem__(i, answer)  # noqa: E731
        worker.submit(Request(i, own[which], finish, robot=robot))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: len(answers) == 4, 30)
    finally:
        worker.stop()
        thread.join(10)
    assert sorted(map(sorted, passes)) == [[17], [24, 31, 31]]
    keys = {"action.left_arm", "action.right_arm"}, {"action.single_arm", "action.gripper"}
    assert keys[0] <= set(answers[0].action)  # type: ignore[arg-type]
    assert keys[1] <= set(answers[1].action)  # type: ignore[arg-type]
    assert set(answers[3].action) == set(answers[1].action)  # type: ignore[arg-type]


def test_batches_of_different_kinds_have_one_graph_of_each_size(robots: list[Robot]) -> None:
    capturer, (humanoid, arm, three_views) = FakeCapturer(), robots
    replayed(humanoid.policy, capturer)
    for each in (arm, three_views):
        each.policy.model = humanoid.policy.model
    notes: list[str] = []
    warm(humanoid, humanoid.policy.example(), [arm, three_views], [2], notes.append)
    # Alone and by twos for each kind, and one graph for any two of the kinds with one camera.
    assert (capturer.captured, len(humanoid.policy.model.graphs), notes) == (7, 7, [])
    seen, near, _ = (dict(robot.policy.example()) for robot in robots)
    before = capturer.replays
    mixed_actions([(humanoid, [seen]), (arm, [near])])
    mixed_actions([(arm, [near]), (humanoid, [seen])])
    assert (capturer.captured, capturer.replays) == (7, before + 2)


@pytest.fixture(scope="module")
def ports() -> Iterator[dict[str, int]]:
    command = [sys.executable, "-m", "gr00t_trt.serve", *FLAGS, *ALSO, "--http_port", "0", "--websocket_port", "0"]
    command += ["--precision", "fp32", "--backend", "eager", "--max_batch", "4", "--engine_cache", "off"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline().strip() for _ in range(3)]
            yield {line.split()[1].partition(":")[0]: int(line.rpartition(":")[2]) for line in lines}
        finally:
            process.terminate()
            process.wait(timeout=30)


@pytest.mark.parametrize("tag", [None, "gr1", "new_embodiment", "oxe_droid"])
def test_a_request_says_of_which_kind_its_robot_is(ports: dict[str, int], robots: list[Robot], tag: str | None) -> None:
    robot = dict(zip((None, "gr1", "new_embodiment", "oxe_droid"), [robots[0], *robots], strict=True))[tag]
    expected = None
    for client in (
        RobotInferenceClient("127.0.0.1", ports["tcp"], embodiment_tag=tag, resize=True),
        HttpInferenceClient("127.0.0.1", ports["http"], embodiment_tag=tag),
    ):
        with client:
            keys = client.get_modality_config()
            assert {n: c.modality_keys for n, c in keys.items()} == {
                n: c.modality_keys for n, c in robot.modality_config.items()
            }
            found = client.get_action(robot.policy.example(), seed=3)
            assert list(found) == keys["action"].modality_keys
            if expected is not None:
                assert_close(found, expected)
            expected = found
    with connect(f"ws://127.0.0.1:{ports['ws']}", compression=None, proxy=None) as socket:
        socket.recv()
        asked = {**robot.policy.example(), "seed": 3, **({} if tag is None else {"embodiment_tag": tag})}
        socket.send(encode_openpi(asked))
        found = decode_openpi(socket.recv())
    assert expected is not None
    together = np.concatenate([expected[key] for key in keys["action"].modality_keys], axis=-1)
    np.testing.assert_allclose(found["actions"], together, atol=1e-5 * np.abs(together).max())


def test_a_kind_that_is_not_served_is_refused_in_words(ports: dict[str, int]) -> None:
    with RobotInferenceClient("127.0.0.1", ports["tcp"]) as client:
        status = client.status()
        assert list(status["robots"]) == ["gr1", "new_embodiment", "oxe_droid"]
        assert status["robots"]["new_embodiment"]["data_config"] == "so100"
        seen = example(status["observation"])
    wanted = "no 'oxe_droit' is served here, but gr1, new_embodiment, oxe_droid; did you mean oxe_droid?"
    with RobotInferenceClient("127.0.0.1", ports["tcp"], embodiment_tag="oxe_droit") as client:
        with pytest.raises(ServiceError, match=wanted.replace("?", r"\?")):
            client.get_action(seen)
        with pytest.raises(ServiceError, match="start it with --also"):
            client.get_modality_config()
    other = RobotInferenceClient("127.0.0.1", ports["tcp"], embodiment_tag="new_embodiment")
    with other, pytest.raises(ServiceError, match=r"video\.webcam|video\.ego_view"):  # another robot's keys
        other.get_action(seen)


@pytest.mark.parametrize(
    ("further", "words"),
    [
        (["--also", "so100"], "names no robot"),
        (["--also", "new_embodiment=so1000"], "so1000"),
        (["--also", "nobody=so100"], "nobody"),
        (["--also", "gr1=fourier_gr1_arms_waist"], "gr1 is named twice"),
        (["--also", "new_embodiment=so100,missing.json"], "missing.json"),
        (["--also", "new_embodiment=so100", "--replicas", "2"], "--replicas is for a server of one kind of robot"),
    ],
)
def test_what_also_cannot_mean_is_told_before_weights_are_read(further: list[str], words: str) -> None:
    with pytest.raises(gr00t_trt.errors.Gr00tError, match=words):
        further_robots(parse([*FLAGS, *further]))
