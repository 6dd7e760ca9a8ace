"""Videos of episodes: their names, their frames, the line below them, and what becomes of unfinished ones."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from counting import CONFIG, Counting

from gr00t_trt.errors import ObservationError
from gr00t_trt.simulate.caption import caption
from gr00t_trt.simulate.multistep import MultiStep
from gr00t_trt.simulate.video import EpisodeVideo

ACTION = {"action.part": np.zeros(2)}


def play(env: EpisodeVideo, number: int, steps: int) -> None:
    env.reset(seed=0, options={"episode": number})
    for _ in range(steps):
        env.step(ACTION)


def frames(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_videos_are_named_by_result_when_an_episode_ends_and_play(tmp_path: Path) -> None:
    env = EpisodeVideo(Counting(7), tmp_path)
    play(env, 3, 7)
    env.finish_video(True)
    assert [path.name for path in tmp_path.iterdir()] == ["episode0003_count_success1.mp4"]
    play(env, 5, 7)
    env.finish_video(False)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["episode0003_count_success1.mp4", "episode0005_count_success0.mp4"]
    with av.open(str(tmp_path / names[0])) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert stream.average_rate == 10
    levels = [frame[:32].mean() for frame in frames(tmp_path / names[0])]
    np.testing.assert_allclose(levels, [0, 80, 160, 240, 280 % 256], atol=4)  # the reset, every other step, the last


def test_ten_frames_a_second_whatever_the_rate_of_the_environment(tmp_path: Path) -> None:
    slow = Counting(4)
    slow.metadata = {"render_fps": 10}
    env = EpisodeVideo(slow, tmp_path)
    play(env, 0, 4)
    env.finish_video(False)
    assert len(frames(next(tmp_path.iterdir()))) == 5


def test_its_frames_are_drawn_even_where_nobody_else_looks(tmp_path: Path) -> None:
    env = Counting(100)
    video = EpisodeVideo(env, tmp_path)
    video.reset(seed=0, options={"episode": 0})
    for _ in range(8):
        env.pictures_wanted = False
        video.step(ACTION)
    assert env.drawn == 1 + 4


def test_a_step_that_succeeds_says_so_and_the_name_is_what_the_record_counts(tmp_path: Path) -> None:
    fast = Counting(5)
    fast.metadata = {"render_fps": 10}
    env = MultiStep(EpisodeVideo(fast, tmp_path), CONFIG, n_action_steps=4, limit=9)
    env.begin(0)
    env.act({"action.part": np.zeros((4, 2))})
    step = env.act({"action.part": np.zeros((4, 2))})
    (path,) = tmp_path.iterdir()
    assert (step.success, step.success_any_row, path.name) == (False, True, "episode0000_count_success0.mp4")
    green = [int(frame[32:, :, 1].astype(int).sum() - frame[32:, :, 0].sum()) for frame in frames(path)]
    assert green.index(max(green)) == 3


def test_an_unfinished_episode_leaves_nothing(tmp_path: Path) -> None:
    env = EpisodeVideo(Counting(9), tmp_path)
    play(env, 0, 3)
    play(env, 1, 3)
    env.close()
    assert not list(tmp_path.iterdir())


def test_an_environment_without_pictures_is_refused(tmp_path: Path) -> None:
    env = Counting()
    env.render = lambda: None  # type: ignore[method-assign]
    with pytest.raises(ObservationError, match="renders no picture"):
        EpisodeVideo(env, tmp_path).reset(seed=0)


def test_the_caption_stands_below_the_picture_and_says_the_step() -> None:
    image = np.full((256, 256, 3), 77, np.uint8)
    shown = caption(image, "STEP 12")
    assert shown.shape == (274, 256, 3)
    np.testing.assert_array_equal(shown[:256], image)
    read = ["".join("#" if pixel.max() > 128 else "." for pixel in row[:60:2]) for row in shown[256 + 4 : 256 + 14 : 2]]
    assert read == [
        "..###.###.###.###......#..###.",
        "..#....#..#...#.#.....##....#.",
        "..###..#..###.###......#..###.",
        "....#..#..#...#........#..#...",
        "..###..#..###.#.......###.###.",
    ]
    assert not np.array_equal(shown, caption(image, "STEP 13"))
    assert caption(image[:32, :32], "EPISODE 0 STEP 1000 SUCCESS").shape == (50, 32, 3)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Put it THERE, now!", "put-it-there-now"),
        ("../../etc/passwd", "etc-passwd"),
        ("", ""),
        ("拿起梨", ""),
        ("a" * 300, "a" * 80),
    ],
)
def test_an_instruction_becomes_a_harmless_file_name(tmp_path: Path, text: str, name: str) -> None:
    env = EpisodeVideo(Counting(1, text=text), tmp_path)
    play(env, 0, 1)
    env.finish_video(False)
    (path,) = tmp_path.iterdir()
    assert path.name == "_".join(filter(None, ("episode0000", name, "success0.mp4")))
