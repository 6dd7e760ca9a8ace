"""`gr00t-trt evaluate` as it is typed: published flags, pictures, records, refusals."""

from __future__ import annotations

import json
import sys
from itertools import chain
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from gr00t_trt.errors import PlanError
from gr00t_trt.evaluate import plot
from gr00t_trt.evaluate.episodes import Prediction, Recording
from gr00t_trt.evaluate.program import main, parse

QUICK = ["--model_path", "synthetic", "--dataset_path", "synthetic"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> tuple[dict, str]:
    """A run of everything at once: two trajectories, eager fp32 beside bf16, pictures."""
    folder = tmp_path_factory.mktemp("evaluate")
    argv = [*QUICK, "--trajs", "2", "--modality-keys", "left_hand", "--action-horizon", "12", "--plot-state"]
    argv += ["--precision", "bf16", "--compare"]
    argv += ["--save-plot-path", str(folder / "plot.png"), "--record", str(folder / "record.json")]
    assert main(argv) == 0
    return json.loads((folder / "record.json").read_text()), str(folder)


def test_the_record_holds_errors_latencies_and_the_difference(compared) -> None:
    record, _ = compared
    found = record["evaluation"]
    eager, reduced = found["candidates"]
    assert (eager["name"], reduced["name"]) == ("eager fp32", "eager bf16")
    assert set(reduced["backends"].values()) == {"eager bf16"}
    for candidate in (eager, reduced):
        assert [(t["trajectory"], t["steps"], t["queries"]) for t in candidate["trajectories"]] == [
            (0, 32, 3),
            (1, 32, 3),
        ]
        assert candidate["mean_mse"] == pytest.approx(np.mean([t["mse"] for t in candidate["trajectories"]]))
        per_dimension = candidate["trajectories"][0]["per_dimension_mse"]
        assert candidate["trajectories"][0]["mse"] == pytest.approx(np.mean([*chain(*per_dimension.values())]))
        assert candidate["latency_ms"]["iterations"] == 6
    # The same noise on both sides: what is left is rounding, far below what fresh noise would do.
    assert found["difference"]["between"] == ["eager fp32", "eager bf16"]
    assert 0 < found["difference"]["per_key"]["action.left_arm"]["max_abs"] < 0.1
    assert any("ends after 32 rows" in note["why"] for note in record["skipped"])


def test_every_trajectory_has_a_picture_of_its_own(compared) -> None:
    record, folder = compared
    assert record["evaluation"]["plots"] == [f"{folder}/plot-traj{i}.png" for i in (0, 1)]
    first, second = (matplotlib.image.imread(path)[..., :3] for path in record["evaluation"]["plots"])
    assert min(first.shape[:2]) > 600
    assert first.shape != second.shape or not np.array_equal(first, second)
    red = (first[..., 0] > 0.75) & (first[..., 1] < 0.25) & (first[..., 2] < 0.25)
    assert red.sum() > 6 * 3 * 10  # a dot for each of three queries in each of six subplots


@pytest.mark.parametrize("dimensions", [1, 10])
def test_one_dimension_or_many_can_be_drawn(tmp_path: Path, dimensions: int) -> None:
    actions = {"action.part": np.linspace(0, 1, 20 * dimensions).reshape(20, dimensions)}
    recording = Recording(0, "hold <it> $still$", actions, {}, (0, 16))
    path = tmp_path / "new" / "one.png"
    plot.draw(
        path, recording, {"a": Prediction(actions, (1.0,))}, {"a": 0.0}, ["action.part"], fps=20.0, with_state=True
    )
    assert matplotlib.image.imread(path).shape[2] == 4


def test_without_matplotlib_a_plot_is_refused_before_anything_is_loaded(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*QUICK, "--plot"]) == 2
    assert "pip install 'gr00t_trt[plots]'" in capsys.readouterr().err


def test_where_pictures_go(tmp_path: Path) -> None:
    assert plot.plot_path("a/b.png", 3, 1) == Path("a/b.png")
    assert plot.plot_path("a/b.png", 3, 2) == Path("a/b-traj3.png")
    assert plot.plot_path(str(tmp_path), 3, 1) == tmp_path / "traj3.png"


def test_the_published_command_line_means_what_it_did() -> None:
    line = "--plot --model-path None --modality-keys right_arm left_arm --steps 150 --trajs 1 --action-horizon None"
    args = parse([*line.split(), "--video-backend", "decord", "--embodiment-tag", "gr1", "--save_plot_path", "None"])
    assert (args.model_path, args.action_horizon, args.save_plot_path) == (None, None, None)
    assert (args.host, args.port, args.plot, args.plot_state) == ("localhost", 5555, True, False)
    assert parse(["--no-plot"]).plot is False


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--video_backend", "torchcode"], "did you mean torchcodec"),
        (["--steps", "0"], "--steps: 0 is out of range"),
        (["--compare"], "--compare eager needs a local policy"),
        ([*QUICK, "--compare"], "the local policy is eager fp32 itself"),
        ([*QUICK, "--use_torch_tensorrt", "--backend", "inductor"], "exclude each other"),
        (["--precision", "bf16"], "--precision concerns a local model"),
        (["--port", "0"], "port 0 is out of range"),
        ([*QUICK, "--precision", "bf17"], "bf17"),
    ],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        parse(argv)
