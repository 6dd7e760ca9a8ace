"""Several steps at once, videos, and fair counting, on an environment whose every number is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from gr00t_trt.errors import AccuracyError, ObservationError
from gr00t_trt.simulate.caption import caption
from gr00t_trt.simulate.environments import abandon, numbers
from gr00t_trt.simulate.episodes import play, share
from gr00t_trt.simulate.wrappers import EpisodeVideo, MultiStep


class Counting(gymnasium.Env):
    """Step n shows n, pays n for n up to 3 and 0 afterwards, and ends after `length` steps; succeeds in the third."""

    def __init__(self, length: int = 5, prefix: str = "state", success: bool = True):
        self.length, self.prefix, self.success = length, prefix, success
        self.observation_space = spaces.Dict(
            {
                "video.ego_view": spaces.Box(0, 255, (32, 32, 3), np.uint8),
                f"{prefix}.part": spaces.Box(-99, 99, (2,), np.float64),
                "annotation.task": spaces.Text(20),
            }
        )
        self.action_space = spaces.Dict({"action.part": spaces.Box(-1, 1, (2,), np.float32)})

    def _observation(self) -> dict[str, Any]:
        image = np.full((32, 32, 3), 40 * self.n % 256, np.uint8)
        return {"video.ego_view": image, f"{self.prefix}.part": np.full(2, float(self.n)), "annotation.task": "count"}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n = 0
        return self._observation(), {"success": False}

    def step(self, action):
        self.n += 1
        success = self.success and self.n == 3
        return (
            self._observation(),
            float(self.n if self.n < 4 else 0),
            self.n >= self.length,
            False,
            {"success": success},
        )

    def render(self):
        return self._observation()["video.ego_view"]


class Saying(Counting):
    """One step long, with an instruction of its own."""

    def __init__(self, text: str):
        super().__init__(1, success=False)
        self.text = text

    def _observation(self) -> dict[str, Any]:
        return {**super()._observation(), "annotation.task": self.text}


def several(env: gymnasium.Env) -> MultiStep:
    return MultiStep(env, n_action_steps=4, video_offsets=(0,), state_offsets=(0,))


CHUNK = {"action.part": np.zeros((4, 2), np.float32)}


def test_a_chunk_is_carried_out_row_by_row_until_the_episode_ends() -> None:
    env = several(Counting())
    observation, _ = env.reset()
    assert observation["video.ego_view"].shape == (1, 32, 32, 3)
    assert observation["annotation.task"] == "count"
    observation, reward, terminated, truncated, info = env.step(CHUNK)
    assert observation["state.part"].tolist() == [[4.0, 4.0]]
    assert (reward, terminated, truncated) == (3.0, False, False)
    assert (info["success"].tolist(), info["steps"].tolist()) == ([True], [4])  # in the third row, not the last
    assert (info["rewards"], info["dones"]) == ([1.0, 2.0, 3.0, 0.0], [False] * 4)
    observation, reward, terminated, _, info = env.step(CHUNK)
    assert (observation["state.part"][0, 0], terminated, len(info["actions"])) == (5.0, True, 1)
    assert reward == 3.0  # the largest of the whole episode


def test_older_frames_are_stacked_and_the_first_one_is_repeated() -> None:
    env = MultiStep(Counting(), n_action_steps=2, video_offsets=(0,), state_offsets=(-2, 0))
    assert env.reset()[0]["state.part"][:, 0].tolist() == [0.0, 0.0]
    observation, *_ = env.step({"action.part": np.zeros((2, 2))})
    assert observation["state.part"][:, 0].tolist() == [0.0, 2.0]
    assert env.observation_space["state.part"].shape == (2, 2)
    assert env.action_space["action.part"].shape == (2, 2)


def test_the_time_limit_counts_low_level_steps() -> None:
    env = several(TimeLimit(Counting(100), 6))
    env.reset()
    assert env.step(CHUNK)[3] is False
    *_, terminated, truncated, info = env.step(CHUNK)
    assert (terminated, truncated, info["steps"].tolist()) == (False, True, [6])


def test_an_observation_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ObservationError, match=r"observes 'sound\.part'"):
        several(Counting(prefix="sound"))


def test_videos_are_named_by_result_and_play(tmp_path: Path) -> None:
    env = EpisodeVideo(Counting(7), tmp_path, episodes=[3, 5])
    for _ in range(3):  # the third is one too many, and is not recorded
        env.reset()
        for _ in range(7):
            env.step(None)
    env.env.success = False
    env.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["episode0003_count_success1.mp4", "episode0005_count_success1.mp4"]
    with av.open(str(tmp_path / names[0])) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.profile) == ("h264", "yuv420p", "High")
        assert stream.average_rate == 10
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    levels = [frame[:32].mean() for frame in frames]
    np.testing.assert_allclose(levels, [0, 80, 160, 240, 280 % 256], atol=4)  # the reset, every other step, the last


def test_a_failure_is_named_so_and_an_unfinished_episode_leaves_nothing(tmp_path: Path) -> None:
    env = EpisodeVideo(Counting(2, success=False), tmp_path, episodes=[0, 1])
    env.reset()
    env.step(None)
    env.step(None)
    env.reset()
    env.step(None)
    env.close()
    (path,) = tmp_path.iterdir()
    assert path.name == "episode0000_count_success0.mp4"


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
    env = EpisodeVideo(Saying(text), tmp_path, episodes=[0])
    env.reset()
    env.step(None)
    env.close()
    (path,) = tmp_path.iterdir()
    assert path.name == "_".join(filter(None, ("episode0000", name, "success0.mp4")))


class Still:
    """Asks for nothing in particular."""

    def __init__(self, value: float = 0.0, rows: int = 16, key: str = "action.part"):
        self.value, self.rows, self.key, self.asked = value, rows, key, 0

    def get_action(self, observation):
        self.asked += 1
        assert observation["state.part"].shape == (2, 1, 2)
        assert list(observation["annotation.task"]) == ["count", "count"]
        return {self.key: np.full((2, self.rows, 2), self.value)}

    def get_modality_config(self):
        return {}


def side_by_side(lengths: tuple[int, int], successes: tuple[bool, bool] = (True, True)) -> gymnasium.vector.VectorEnv:
    def maker(length: int, success: bool):
        return lambda: several(Counting(length, success=success))

    return gymnasium.vector.SyncVectorEnv([maker(n, s) for n, s in zip(lengths, successes, strict=True)])


def test_shares_are_fixed_beforehand_so_that_quick_episodes_do_not_crowd_out_slow_ones() -> None:
    assert share(5, 2) == [3, 2]
    assert share(4, 4) == [1, 1, 1, 1]
    policy, told = Still(), []
    envs = side_by_side((4, 20), (True, False))
    outcomes, latencies = play(envs, policy, share(6, 2), seed=0, advance=lambda *n: told.append(n))
    assert sorted((o.environment, o.success, o.steps, o.queries) for o in outcomes) == [
        *[(0, True, 4, 1)] * 3,
        *[(1, False, 20, 5)] * 3,
    ]
    assert [o.episode for o in outcomes if o.environment == 0] == numbers(0, 3, 2) == [0, 2, 4]
    assert [o.episode for o in outcomes if o.environment == 1] == numbers(1, 3, 2) == [1, 3, 5]
    assert told == [(i, 6) for i in range(1, 7)]
    assert len(latencies) == policy.asked


@pytest.mark.parametrize(
    ("policy", "error", "words"),
    [
        (Still(np.nan), AccuracyError, "the policy: action.part holds nan"),
        (Still(rows=3), ObservationError, r"shape \(2, 3, 2\)"),
        (Still(key="action.leg"), ObservationError, "the policy gives no action.part"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused(policy, error, words) -> None:
    with pytest.raises(error, match=words):
        play(side_by_side((4, 4)), policy, [1, 1], seed=0, advance=lambda *_: None)


class Stuck:
    """Processes that are gone: closing them fails, politely and by force."""

    def __init__(self) -> None:
        self.tried, self.closed = [], False

    def close(self, **settings) -> None:
        self.tried.append(settings)
        raise BrokenPipeError


def test_environments_that_cannot_be_closed_are_given_up() -> None:
    envs = Stuck()
    abandon(envs)
    assert envs.tried == [{"timeout": 2.0}, {"terminate": True}]
    assert envs.closed  # or gymnasium would try a third time when Python ends
    working = side_by_side((4, 4))
    abandon(working)
    assert working.closed
