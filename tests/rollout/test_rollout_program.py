"""`gr00t-trt rollout` as it is typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.errors import PlanError, ServiceError
from gr00t_trt.rollout.program import asker, main, parse

QUICK = ["--model_path", "synthetic", "--actions_to_execute", "3", "--control_hz", "20", "--warmup", "1"]


def test_both_ways_of_executing_are_timed_and_compared(tmp_path: Path, capsys) -> None:
    path = tmp_path / "r.json"
    assert main([*QUICK, "--compare-overlap", "--record", str(path)]) == 0
    record = json.loads(path.read_text())
    modes = record["rollout"]["modes"]
    assert list(modes) == ["synchronous", "overlapped"]
    for found in modes.values():
        assert found["actions"] == 24
        assert found["period_ms"]["iterations"] == 23
        assert found["inference_ms"]["p50"] > 0
        assert 1 < found["actions_per_s"] <= 21
    assert modes["synchronous"]["queries"] == 3
    assert modes["synchronous"]["skipped_rows"] == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == str(path)
    assert all(word in printed.err for word in ("jitter", "actions per s", "stale rows skipped"))


class Policy:
    """Keeps what it is asked; tells its frame size, or does not."""

    def __init__(self, size: tuple[int, int] | None):
        self.size, self.asked = size, []

    def get_modality_config(self):
        return {"language": ModalityConfig([0], ["annotation.human.task_description"])}

    def get_action(self, observation):
        self.asked.append(observation)
        return {}

    def frame_sizes(self):
        if self.size is None:
            raise ServiceError("Server error: Unknown endpoint: status")
        return {"video.front": self.size}


def test_frames_of_any_size_are_brought_to_the_models_and_the_instruction_is_added() -> None:
    policy = Policy((24, 32))
    ask, note = asker(policy, "put it there")
    frame = np.repeat(np.arange(96, dtype=np.uint8)[:, None], 128, axis=1)[None, ..., None].repeat(3, axis=-1)
    ask({"video.front": frame, "state.gripper": np.ones((1, 1))})
    (seen,) = policy.asked
    assert note is None
    assert seen["video.front"].shape == (1, 24, 32, 3)
    # Four rows become their mean: 0 to 3 are 1.5, and so on.
    np.testing.assert_allclose(seen["video.front"][0, :, 0, 0], np.arange(24) * 4 + 1.5, atol=0.5)
    assert seen["annotation.human.task_description"] == ["put it there"]


def test_a_server_that_does_not_tell_its_size_gets_frames_as_they_are() -> None:
    policy = Policy(None)
    ask, note = asker(policy, "go")
    frame = np.zeros((1, 96, 128, 3), np.uint8)
    ask({"video.front": frame})
    assert policy.asked[0]["video.front"] is frame
    assert "sent as they are" in str(note)


def test_published_flags_and_defaults() -> None:
    args = parse([])
    assert (args.host, args.port, args.action_horizon, args.actions_to_execute) == ("localhost", 5555, 8, 350)
    line = (
        "--robot.type=so101_follower --robot.port=/dev/ttyACM1 --robot.id=x --policy-host 10.0.0.2 --policy_port 5556"
    )
    args = parse([*line.split(), "--robot.cameras", "{ front: {type: opencv, index_or_path: 9} }"])
    assert (args.robot_type, args.robot_port, args.host, args.port) == (
        "so101_follower",
        "/dev/ttyACM1",
        "10.0.0.2",
        5556,
    )


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--robot.type", "so102"], "did you mean"),
        (["--robot.type", "so100"], r"needs --robot\.port and --robot\.cameras"),
        (["--robot.port", "/dev/ttyACM0"], r"--robot\.port concerns an arm"),
        (["--control_hz", "0"], "--control_hz: 0 is out of range"),
        (["--action_horizon", "0"], "--action_horizon: 0 is out of range"),
        (["--warmup", "-1"], "--warmup: -1 is out of range"),
    ],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse(argv)


def test_a_horizon_beyond_the_chunk_is_refused_before_the_robot_moves(tmp_path: Path, capsys) -> None:
    assert main([*QUICK, "--action_horizon", "17", "--record", str(tmp_path / "r.json")]) == 2
    assert "1 to 16" in capsys.readouterr().err
