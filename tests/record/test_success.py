"""Success rates: Wilson's interval and McNemar's exact test against published values and exact enumeration."""

from __future__ import annotations

import itertools

import pytest

from gr00t_trt.record.files import record_from
from gr00t_trt.record.simulation import Episode, Pairs, Played, Simulation
from gr00t_trt.record.success import Rate, mcnemar, wilson


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_intervals_of_newcombe_1998(successes, trials, low, high) -> None:
    """Two-sided confidence intervals for the single proportion, Statistics in Medicine 17, table I, method 3."""
    assert wilson(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_wilson_is_symmetric_and_refuses_counts_that_none_can_have() -> None:
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    assert wilson(10, 10)[1] == 1.0
    for successes, trials in ((1, 0), (-1, 5), (6, 5)):
        with pytest.raises(ValueError, match="trials"):
            wilson(successes, trials)
    assert Rate(0, 0).rate is None
    assert Rate(31, 50).text == "31 of 50, 62 % (48–74 %)"


@pytest.mark.parametrize("pairs", range(9))
def test_mcnemar_is_the_share_of_all_outcomes_that_are_as_uneven(pairs) -> None:
    """With neither policy better, each differing pair is a fair coin: all 2^n of them are counted."""
    heads = [sum(coins) for coins in itertools.product((0, 1), repeat=pairs)]
    for first in range(pairs + 1):
        uneven = abs(first - pairs / 2)
        share = sum(abs(count - pairs / 2) >= uneven for count in heads) / len(heads)
        assert mcnemar(first, pairs - first) == pytest.approx(share)


def test_mcnemar_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for first, second in ((1, 7), (3, 12), (0, 5), (10, 10), (40, 61)):
        expected = stats.binomtest(first, first + second, 0.5).pvalue
        assert mcnemar(first, second) == pytest.approx(expected)


def played(name: str, results: list[bool | None], environment: str = "world/Task-v0") -> Played:
    episodes = [Episode(i, 100 + i, success=own, success_any_row=own) for i, own in enumerate(results)]
    return Played(name, environment, episodes=episodes)


def test_pairs_leave_out_what_either_lost() -> None:
    first = played("a", [True, True, False, None, False, True])
    pairs = Pairs.over([first], [played("b", [True, False, True, True, False, None])])
    assert (pairs.both, pairs.only_first, pairs.only_second, pairs.neither) == (1, 1, 1, 1)
    assert "no difference shown" in pairs.verdict
    assert "2 of 4 pairs" in pairs.verdict


def test_a_verdict_names_the_better_one_and_never_calls_them_equal() -> None:
    worse, better = played("worse", [False] * 12), played("better", [True] * 10 + [False] * 2)
    assert Pairs.over([worse], [better]).verdict.startswith("better succeeds more often than worse: p = 0.002")
    assert Pairs.over([better], [worse]).verdict.startswith("better succeeds more often than worse: p = 0.002")
    same = Pairs.over([worse], [played("other", [False] * 12)])
    assert same.verdict == "other against worse: no difference shown; 0 of 12 pairs ended differently (95 %: 0–24 %)"


def test_scenes_of_other_seeds_or_environments_are_no_pairs() -> None:
    first = played("a", [True, True])
    other = [played("b", [True, True], "world/Other-v0")]
    assert Pairs.over([first], other).verdict == "b against a: no pair of finished episodes"


def test_a_suite_is_told_by_the_mean_of_its_tasks() -> None:
    tasks = [played("a", [True, True, False, False], "w/A"), played("a", [True, False, None], "w/B")]
    found = Simulation(played=tasks, suite="two", tasks=2)
    assert found.sentences == ["mean success rate of 2 tasks: 50 %; all episodes: 3 of 6, 50 % (19–81 %)"]
    missing = Simulation(played=tasks, suite="three", tasks=3)
    assert missing.mean("a") is None, "a mean of fewer tasks is not the benchmark's"
    assert "unknown, for only 2 have a finished episode" in missing.sentences[0]
    assert tasks[1].rate.trials == 2
    assert "1 lost and not counted" in tasks[1].sentence


def test_a_record_brings_back_every_episode(tmp_path) -> None:
    import json

    from gr00t_trt.record.files import dumps
    from gr00t_trt.record.schema import new_record

    record = new_record("gr00t-trt simulate")
    record.simulation = Simulation(played=[played("a", [True, None])], simulator={"mujoco": "3.17.0"})
    again = record_from(json.loads(dumps(record)), "r.json").simulation
    assert again == record.simulation
