"""Counts of successes: how far the true rate may lie from what was counted, and whether two policies differ. No torch.

A rate of few episodes says little, and one without its interval says nothing: 31 of 50 is anything from 48 to 74 %.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """Successes of a number of trials.

    Attributes:
        low, high: Wilson's score interval: it stays within 0 and 1, and is of use for few trials and rates near
            both. None without a trial, as `rate`.
    """

    successes: int
    trials: int

    @property
    def rate(self) -> float | None:
        return self.successes / self.trials if self.trials else None

    @property
    def low(self) -> float | None:
        return None if not self.trials else wilson(self.successes, self.trials)[0]

    @property
    def high(self) -> float | None:
        return None if not self.trials else wilson(self.successes, self.trials)[1]

    @property
    def text(self) -> str:
        """``31 of 50, 62 % (48–74 %)``."""
        if not self.trials:
            return "0 of 0"
        return f"{self.successes} of {self.trials}, {share(self.rate)} ({self.span})"

    @property
    def span(self) -> str:
        """``48–74 %``."""
        if self.low is None or self.high is None:
            return "not known"
        return f"{100 * self.low:.0f}–{100 * self.high:.0f} %"


def share(rate: float | None) -> str:
    """``62 %``."""
    return "–" if rate is None else f"{100 * rate:.0f} %"


def as_published(rate: float | None) -> str:
    """A rate of others with the digits that they gave: ``8.5 %``."""
    return "–" if rate is None else f"{100 * rate:.3g} %"


def wilson(successes: int, trials: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a rate. Raises: ValueError without trials, or for a count that none can have."""
    if not 0 <= successes <= trials or not trials:
        raise ValueError(f"{successes} successes of {trials} trials")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rate = successes / trials
    middle = rate + z * z / (2 * trials)
    reach = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    whole = 1 + z * z / trials
    # Rounding would leave a hair beside the ends, where the interval reaches them exactly.
    low = 0.0 if successes == 0 else (middle - reach) / whole
    high = 1.0 if successes == trials else (middle + reach) / whole
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's exact test, two-sided: how probable pairs are so uneven where neither policy is the better one.

    Args:
        only_first, only_second: Pairs in which one of the two succeeded. Those with equal results say nothing.
    Returns: The p-value; 1 without a pair that differs.
    """
    pairs = only_first + only_second
    fewer = min(only_first, only_second)
    tail = sum(math.comb(pairs, count) for count in range(fewer + 1))
    return min(1.0, 2 * tail / 2**pairs)
