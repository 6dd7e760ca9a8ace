"""`gr00t-trt evaluate` as it is typed: published flags, pictures, records, refusals."""

from __future__ import annotations

import json
import shutil
import sys
from itertools import chain
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from gr00t_trt.common.install import install_extra
from gr00t_trt.data import LeRobotDataset, data_config
from gr00t_trt.errors import PlanError
from gr00t_trt.evaluate import plot
from gr00t_trt.evaluate.episodes import Prediction, Recording
from gr00t_trt.evaluate.joints import joint_labels
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
    assert 0.999 < found["difference"]["cosine"] < 1
    assert found["difference"]["sqnr_db"] > 35
    assert any("ends after 32 rows" in note["why"] for note in record["skipped"])


def test_every_trajectory_has_a_picture_of_its_own(compared) -> None:
    record, folder = compared
    assert record["evaluation"]["plots"] == [f"{folder}/plot-traj{i}.png" for i in (0, 1)]
    first, second = (matplotlib.image.imread(path)[..., :3] for path in record["evaluation"]["plots"])
    assert min(first.shape[:2]) > 600
    assert first.shape != second.shape or not np.array_equal(first, second)
    ink = {
        name: _near(first, shade) for name, shade in (("recorded", 0x000000), ("eager", 0x0072B2), ("bf16", 0xD55E00))
    }
    assert all(own.sum() > 6 * 300 for own in ink.values())  # a dot or a piece of line for each row of six panels


def _near(picture: np.ndarray, shade: int) -> np.ndarray:
    """Where a picture has a colour, ``0xRRGGBB``."""
    wanted = np.array([shade >> 16, shade >> 8 & 255, shade & 255]) / 255
    return np.abs(picture[..., :3] - wanted).max(axis=-1) < 0.02


def _drawn(folder: Path, offset: float, dimensions: int = 1) -> np.ndarray:
    """The picture of a policy that predicts what was recorded plus `offset`."""
    actions = {"action.part": np.sin(np.linspace(0, 6, 150 * dimensions)).reshape(150, dimensions)}
    recording = Recording(0, "hold <it> $still$", actions, {}, tuple(range(0, 150, 16)))
    path = folder / "new" / "one.png"
    answers = {"$a$": Prediction({"action.part": actions["action.part"] + offset}, (1.0,))}
    labels = {"action.part": [f"part {i}" for i in range(dimensions)]}
    plot.draw(path, recording, answers, {"$a$": 0.0}, labels, fps=20.0, with_state=True)
    return matplotlib.image.imread(path)


@pytest.mark.parametrize("offset", [0.0, 0.4])
@pytest.mark.parametrize("width", [390, 1280])
def test_recorded_and_predicted_are_told_apart_at_any_width(tmp_path: Path, offset: float, width: int) -> None:
    from PIL import Image

    picture = _drawn(tmp_path, offset)
    assert picture.shape[1] == 1280
    panel = Image.fromarray((picture * 255).astype(np.uint8)).convert("RGB").crop((170, 400, 1250, 660))
    seen = np.asarray(panel.resize((1080 * width // 1280, 260 * width // 1280), Image.Resampling.LANCZOS)) / 255.0
    columns = seen.shape[1]
    black = (seen.max(axis=-1) < 0.3).any(axis=0).sum()
    orange = (seen[..., 0] - seen[..., 2] > 0.4).any(axis=0).sum()
    assert black > columns * 0.5
    assert orange > columns * 0.7


@pytest.mark.parametrize("dimensions", [1, 10])
def test_one_dimension_or_many_can_be_drawn(tmp_path: Path, dimensions: int, monkeypatch) -> None:
    monkeypatch.setattr(plot, "MOST_PIXELS", 2000)  # a file format's limit, of which 200 joints would fall foul
    picture = _drawn(tmp_path, 0.1, dimensions)
    assert picture.shape[2] == 4
    assert picture.shape[0] <= 2000


def test_joints_are_called_what_the_dataset_calls_them(demo: Path, tmp_path: Path) -> None:
    config = data_config("fourier_gr1_arms_only").modality_config()
    assert joint_labels(LeRobotDataset(demo, config), "action.right_arm", 7)[:2] == [
        "right arm 0 · motor_22",
        "right arm 1 · motor_23",
    ]
    for name in ("data", "videos"):
        (tmp_path / name).symlink_to(demo / name)
    shutil.copytree(demo / "meta", tmp_path / "meta")
    modality = json.loads((demo / "meta/modality.json").read_text())
    modality["action"]["right_arm"] |= {"end": 25, "rotation_type": "axis_angle"}
    (tmp_path / "meta/modality.json").write_text(json.dumps(modality))
    info = json.loads((demo / "meta/info.json").read_text())
    info["features"]["action"]["names"] = None
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    own = LeRobotDataset(tmp_path, config)
    assert joint_labels(own, "action.right_arm", 3) == [f"right arm {i} [rad]" for i in range(3)]
    assert joint_labels(own, "action.task_progress", 1) == ["task progress"]


def test_without_matplotlib_a_plot_is_refused_before_anything_is_loaded(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*QUICK, "--plot"]) == 2
    assert install_extra("plots") in capsys.readouterr().err


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
