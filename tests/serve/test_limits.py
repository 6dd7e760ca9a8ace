"""What one request may ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from puppet import CONFIG, LIMITS, observation, repeated

from gr00t_trt.serve.limits import CHARACTERS_PER_TOKEN, Limits
from gr00t_trt.serve.options import Options, options_of
from gr00t_trt.serve.refusal import Refusal


def test_samples_are_counted_by_the_batch_axis_of_arrays_and_lists() -> None:
    assert LIMITS.samples(observation()) == 1
    assert LIMITS.samples(repeated(observation(), 4)) == 4
    assert LIMITS.samples({"state.arm": [[[0.0] * 5]] * 3}) == 3
    assert LIMITS.samples({"state.arm": [[0.0] * 5]}) == 1
    assert LIMITS.samples({"state.arm": np.zeros((0, 1, 5))}) == 1  # the policy says what it thinks of it
    assert LIMITS.samples({}) == 1


@pytest.mark.parametrize(
    "request_",
    [
        repeated(observation(), 5),
        {**observation(), "state.arm": np.zeros((5, 1, 5))},
        {"state.arm": [[[0.0] * 5]] * 120},
    ],
)
def test_more_samples_than_the_limit_are_refused(request_: dict[str, Any]) -> None:
    with pytest.raises(Refusal, match=r"a batch of (5|120), more than the 4 of one request .`ranges: batch`"):
        LIMITS.samples(request_)


def test_a_prompt_beyond_the_limit_is_refused_and_an_endless_one_is_not_even_tokenized() -> None:
    asked: list[str] = []
    limits = Limits(CONFIG, max_samples=4, max_tokens=10, count_tokens=lambda text: asked.append(text) or len(text))
    limits.check_length(observation(text="ten chars!"))
    with pytest.raises(Refusal, match=r"a prompt of 11 tokens, more than the 10 .* by 1 tokens"):
        limits.check_length(observation(text="eleven char"))
    with pytest.raises(Refusal, match="a prompt of 11 tokens"):
        limits.check_length({"annotation.task": np.array(["short", "eleven char"])})
    limits.check_length({"annotation.task": [7, None, b"x"]})
    assert asked == ["ten chars!", "eleven char", "short"]
    endless = "x" * (10 * CHARACTERS_PER_TOKEN + 1)
    with pytest.raises(Refusal, match="an instruction of 321 characters, more than the 320 that are looked at"):
        limits.samples(observation(text=endless))


def test_noise_is_checked_before_it_is_used() -> None:
    single, many = np.zeros((16, 3)), np.zeros((2, 16, 3), np.float32)
    assert LIMITS.noise(single, 1).shape == LIMITS.noise(single[None], 1).shape == (1, 16, 3)
    assert LIMITS.noise(many, 2).dtype == np.float32
    for value, samples in ((single, 2), (many, 1), (np.zeros((16, 4)), 1), (np.zeros((16, 3), "U1"), 1)):
        with pytest.raises(Refusal, match=r"noise is .* not numbers \["):
            LIMITS.noise(value, samples)
    for value in (np.nan, np.inf, 1e39):
        with pytest.raises(Refusal, match="noise holds a NaN or an infinity"):
            LIMITS.noise(np.full((16, 3), value), 1)


def test_options_are_read_beside_the_observation() -> None:
    noise = np.zeros((16, 3))
    assert options_of({"endpoint": "get_action", "later": 1}) == Options()
    assert options_of(
        {"timings": True, "served_by": True, "seed": 0, "timeout_ms": 1500, "client_id": "me"}
    ) == Options(timings=True, served_by=True, seed=0, timeout_s=1.5, client_id="me")
    assert options_of({"noise": noise}).noise is noise


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("seed", value) for value in (-1, 2**63, 1.0, "1", True, [1])),
        *(("noise", value) for value in ([0.0], "x", 1)),
        *(("timeout_ms", value) for value in (0, -1, float("nan"), float("inf"), 10**400, "1", True)),
        *(("client_id", value) for value in ("", "x" * 65, 7, b"x")),
    ],
)
def test_an_option_that_is_none_is_refused_with_its_name(key: str, value: Any) -> None:
    with pytest.raises(Refusal, match=f"^{key} is "):
        options_of({key: value})


def test_seed_and_noise_exclude_each_other() -> None:
    with pytest.raises(Refusal, match="exclude each other"):
        options_of({"seed": 1, "noise": np.zeros((16, 3))})
