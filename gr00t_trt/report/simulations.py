"""The part of a page that shows simulations: success rates with their intervals, pairs, episodes. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..record.simulation import Episode, Pairs, Played, Simulation, p_text, short
from ..record.success import Rate, as_published, share
from .charts import Bar, Bars
from .columns import Cell, Table, median, number
from .markup import Child, Html, element, section
from .svg import draw
from .views import Loaded

COLOR, OTHERS = "#009E73", "published"
LEAD = (
    "Episodes that ended as they should. Whisker: Wilson's 95 % interval, within which the true rate may lie; few "
    "episodes make it wide. A success counts where the last row of a chunk shows one, as the original counts. "
)
PAIRED = (
    "The same scenes and the same noise for both, so that they differ by nothing else. Only episodes that ended "
    "differently tell anything; p is McNemar's exact test: below 0.05, one of them is better."
)


def simulations(loaded: Sequence[Loaded], written: Callable[[Table], Html]) -> Html | None:
    """The section; None where no record is of a simulation.

    Args:
        written: How the page writes a table.
    """
    known = [(one, found) for one in loaded if (found := one.record.simulation) is not None and found.played]
    if not known:
        return None
    parts: list[Child] = []
    for one, found in known:
        parts.append(element("h3", f"{one.tag} {one.name}") if len(loaded) > 1 else None)
        *shown, episodes = map(written, tables(found))
        folded = element("details", element("summary", "Every episode"), episodes)
        parts += [draw(Bars("", "%", tuple(_bars(found)), 100.0)), *shown, folded]
    return section("How often it succeeded", LEAD + PAIRED, parts)


def _bars(found: Simulation) -> Iterator[Bar]:
    """A bar for each policy in each environment; published means behind those of a suite."""
    for one in found.played:
        where = short(one.environment) if len(found.environments) > 1 else ""
        who = one.name if len(found.names) > 1 or not where else ""
        label = ", ".join(filter(None, (where, who)))
        yield _bar(label, one.rate)
    for other in found.published:
        if other.mean is not None:
            text = as_published(other.mean)
            title = f"Published: {other.source}: {text}, the mean of the tasks"
            yield Bar(f"published: {other.model}", 100 * other.mean, text, title, OTHERS)


def _bar(label: str, rate: Rate) -> Bar:
    if rate.rate is None or rate.low is None or rate.high is None:
        return Bar(label, None, "no finished episode", f"{label}: no finished episode", COLOR)
    shown = f"{share(rate.rate)} of {rate.trials}"
    return Bar(label, 100 * rate.rate, shown, f"{label}: {rate.text}", COLOR, low=100 * rate.low, high=100 * rate.high)


def tables(found: Simulation) -> list[Table]:
    """Success rates, pairs where there are any, and every episode."""
    rates = Table("Success", RATES, tuple(map(_rate, found.played)), texts=2)
    pairs = [Table(f"Pairs, against {found.names[0]}", PAIRS, tuple(map(_pair, found.pairs)))] if found.pairs else []
    rows = tuple(_episode(one, each) for one in found.played for each in one.episodes)
    return [rates, *pairs, Table("Episodes", EPISODES, rows, texts=5)]


RATES = ("policy", "environment", "episodes", "succeeded", "rate %", "from %", "to %", "by any row", "lost", "p50 ms")
PAIRS = ("policy", "both succeed", "only the first", "only this one", "neither", "p")
EPISODES = ("policy", "environment", "result", "instruction", "lost", "episode", "seed", "steps", "queries", "p50 ms")


def _count(value: int) -> Cell:
    return Cell(str(value), float(value))


def _percent(value: float | None) -> Cell:
    return Cell() if value is None else Cell(f"{100 * value:.1f}", 100 * value)


def _rate(one: Played) -> tuple[Cell, ...]:
    rate = one.rate
    ends = (_percent(rate.rate), _percent(rate.low), _percent(rate.high))
    counts = (_count(one.rate_any_row.successes), _count(len(one.lost)))
    tried = (_count(rate.trials), _count(rate.successes))
    return (Cell(one.name), Cell(one.environment), *tried, *ends, *counts, median(one.latency_ms))


def _pair(pair: Pairs) -> tuple[Cell, ...]:
    counts = (pair.both, pair.only_first, pair.only_second, pair.neither)
    return (Cell(pair.second, notes=(pair.verdict,)), *map(_count, counts), Cell(p_text(pair.p_value), pair.p_value))


def _episode(one: Played, each: Episode) -> tuple[Cell, ...]:
    texts = (one.name, short(one.environment), each.outcome, each.instruction or "-", each.lost or "-")
    counts = (each.episode, each.seed, each.steps, each.queries)
    return (*map(Cell, texts), *map(_count, counts), number(each.latency_ms))
