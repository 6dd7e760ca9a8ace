from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.data import LeRobotDataset, data_config
from gr00t_trt.data.frame_lookup import by_number, by_time, refuse_other_rate
from gr00t_trt.data.parquet import Table
from gr00t_trt.data.video import VideoReader
from gr00t_trt.errors import DatasetError

RATES = (10, 20, 24, 25, 29.97, 30, 50, 60)
ROWS = np.arange(200)


@dataclass
class Video:
    starts_s: np.ndarray
    end_s: float
    path: Path = Path("episode_000000.mp4")


def video(fps: float, frames: int = 200, *, tick: float = 1 / 90000) -> Video:
    """Frames at a fixed rate, their times rounded to ticks as in a file."""
    starts = np.round(np.arange(frames) / fps / tick) * tick
    return Video(starts, float(starts[-1] + 1 / fps))


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("tick", [1 / 90000, 1 / 15360, 1 / 10240])
@pytest.mark.parametrize("shift", [-5e-5, 0.0, 5e-5])
def test_timestamps_of_the_frames_give_frame_i_for_row_i(fps, tick, shift):
    for kind in (np.float32, np.float64):
        times = (ROWS / fps).astype(kind).astype(np.float64) + shift
        # What float32 rounds off and a tick is well below the tolerance, as long as both stay below a minute.
        for rule in ("nearest", "on_screen"):
            assert by_time(rule, ROWS, times, video(fps, tick=tick)).tolist() == ROWS.tolist(), kind


@pytest.mark.parametrize("fps", RATES)
@pytest.mark.parametrize("rule", ["nearest", "on_screen"])
def test_a_timestamp_outside_the_video_is_an_error(fps, rule):
    film, times = video(fps), ROWS / fps
    for shift, row in ((-2e-4, 0), (1 / fps + 2e-4, 199), (12.5, 199), (1.76e9, 0)):
        words = rf"episode_000000\.mp4: row {row} has timestamp {times[row] + shift:.6f} s[\s\S]*lasts from 0\.000000 s"
        with pytest.raises(DatasetError, match=words + rf" to {film.end_s:.6f} s[\s\S]*--frame_lookup index"):
            by_time(rule, np.array([row]), times + shift, film)
    by_time(rule, np.array([199]), times + 1 / fps + 5e-5, film)
    by_time(rule, np.array([0]), times - 5e-5, film)


def test_only_the_rows_that_are_asked_for_must_lie_in_the_video():
    assert by_time("on_screen", np.array([0, 149]), ROWS / 30, video(30, 150)).tolist() == [0, 149]
    with pytest.raises(DatasetError, match="row 160 has timestamp"):
        by_time("on_screen", np.array([149, 160]), ROWS / 30, video(30, 150))


def test_timestamps_just_before_the_next_frame_mean_the_one_before():
    late = (ROWS + 1) * 0.05 - np.linspace(5e-8, 2.2e-5, 200)
    assert by_time("on_screen", ROWS, late, video(20)).tolist() == ROWS.tolist()
    assert by_time("nearest", ROWS, late, video(20)).tolist() == [*range(1, 200), 199]


def test_demo_rows_keep_the_frames_of_the_original(demo):
    film = VideoReader(demo / "videos/chunk-000/observation.images.ego_view/episode_000000.mp4")
    times = Table(demo / "data/chunk-000/episode_000000.parquet").numbers("timestamp")[:, 0]
    rows = np.arange(416)
    assert by_time("on_screen", rows, times, film).tolist() == rows.tolist()
    assert by_time("nearest", rows, times, film).tolist() == [*range(1, 416), 415]
    refuse_other_rate(times, film)


def test_frames_by_number():
    assert by_number(np.array([0, 8]), video(30, 9)).tolist() == [0, 8]
    with pytest.raises(DatasetError, match=r"no frame for row 9[\s\S]*9 frames"):
        by_number(np.array([8, 9]), video(30, 9))


def test_frames_of_another_rate_are_not_taken_by_number():
    for frames, rows, fps in ((600, 10, 30), (100, 30, 10)):
        times = np.arange(int(frames / fps * rows)) / rows
        with pytest.raises(DatasetError, match=rf"{frames} frames in [\s\S]*on_screen"):
            refuse_other_rate(times, video(fps, frames))
    for frames in (100, 199, 200, 260):  # cut short, or filmed on after the last row
        refuse_other_rate(ROWS / 30, video(30, frames))
    refuse_other_rate(ROWS * 33.3, video(30))  # milliseconds
    refuse_other_rate(np.zeros(1), video(30, 1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: np.where(np.arange(20) == 5, np.nan, t), r"'timestamp' holds nan in row 5, element 0"),
        (lambda t: t[::-1].copy(), r"timestamp 0\.900000 in row 1 after 0\.950000"),
        (lambda t: np.zeros(20), r"timestamp 0\.000000 in row 1 after 0\.000000"),
        (lambda t: t + 12.5, r"row 3 has timestamp 12\.650000 s"),
        (lambda t: t + 1_760_000_000, r"row 3 has timestamp 1760000000\.150000 s"),
    ],
)
def test_timestamps_that_say_nothing(damaged, change, words):
    from test_lerobot import rewrite

    rewrite(damaged, 0, lambda columns: columns.update(timestamp=change(columns["timestamp"])))
    config = data_config("fourier_gr1_arms_only").modality_config()
    for rule in ("nearest", "on_screen"):
        with pytest.raises(DatasetError, match=words):
            LeRobotDataset(damaged, config, frame_lookup=rule).step(0, 3)
    LeRobotDataset(damaged, config).step(0, 3)
