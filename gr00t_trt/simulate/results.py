"""The record of a simulation in a terminal: episodes, success rates with their intervals, pairs. No torch."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..record.schema import Record
from ..record.simulation import Played, Simulation, p_text, short
from ..record.success import as_published, share

MOST_EPISODES = 30
"""So many are listed one by one; of more, the record has them all."""
COLORS = {True: "green", False: "red", None: "yellow"}


def render(record: Record, console: Console) -> None:
    """Show what a record says of its simulation."""
    found = record.simulation
    assert found is not None
    if len(found.played) == 1 and len(found.played[0].episodes) <= MOST_EPISODES:
        console.print(_episodes(found.played[0]))
    if found.suite:
        console.print(_tasks(found))
    if found.published:
        console.print(_published(found))
    if len(found.names) > 1 and not found.suite:
        console.print(_policies(found))
    if found.pairs:
        console.print(_pairs(found))
    lines = [line for name in found.names for line in _latency(found, name)]
    lines += [f"{short(p.environment)}, episode {e.episode}: lost: {e.lost}" for p in found.played for e in p.lost]
    lines += [f"{note.what}: {note.why}" for note in record.skipped]
    lines += [f"{what}: {place}" for what, place in (("videos", found.video_dir), ("dataset", found.dataset)) if place]
    for line in lines:
        console.print(Text(line), soft_wrap=True)
    for line in found.sentences:
        console.print(Text(line, style="bold"), soft_wrap=True)


def _latency(found: Simulation, name: str) -> Iterable[str]:
    whole = found.latency(name)
    if whole is None:
        return
    last = "max" if whole.p99_is_max else "p99"
    about = f"{name}: " if len(found.names) > 1 else ""
    yield f"{about}query p50 {whole.p50:.1f} ms, {last} {whole.p99:.1f} ms over {len(whole.samples)} queries"


def _table(title: str, *heads: str, texts: int = 1) -> Table:
    table = Table(title=title, title_justify="left")
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < texts else "right", overflow="fold")
    return table


def _episodes(one: Played) -> Table:
    table = _table(one.environment, "episode", "seed", "result", "steps", "queries", "ms a query", texts=0)
    for episode in one.episodes:
        latency = "–" if episode.latency_ms is None else f"{episode.latency_ms:.1f}"
        numbers = (str(episode.steps), str(episode.queries), latency)
        result = Text(episode.outcome, style=COLORS[episode.success])
        table.add_row(str(episode.episode), str(episode.seed), result, *numbers)
    return table


def _policies(found: Simulation) -> Table:
    table = _table("success", "policy", "episodes", "succeeded", "rate", "95 % interval", "ms a query")
    for name in found.names:
        for one in found.of(name):
            p50 = f"{one.latency_ms.p50:.1f}" if one.latency_ms else "–"
            rate = one.rate
            table.add_row(name, str(rate.trials), str(rate.successes), share(rate.rate), rate.span, p50)
    return table


def _pairs(found: Simulation) -> Table:
    title = f"the same episodes, against {found.names[0]}"
    table = _table(title, "policy", "both succeed", "only the first", "only this one", "neither", "p")
    for pair in found.pairs:
        counts = (pair.both, pair.only_first, pair.only_second, pair.neither)
        table.add_row(pair.second, *map(str, counts), p_text(pair.p_value))
    return table


def _tasks(found: Simulation) -> Table:
    """Tasks down, policies across, and beside them what others measured in single tasks."""
    others = [one for one in found.published if one.tasks]
    table = _table(found.suite or "", "task", *found.names, *(f"{one.model}, {one.source}" for one in others))
    for environment in found.environments:
        own = {one.name: one.rate.text for one in found.played if one.environment == environment}
        known = [as_published(one.tasks.get(environment)) for one in others]
        table.add_row(short(environment), *(own.get(name, "–") for name in found.names), *known)
    table.add_section()
    means = [share(found.mean(name)) for name in found.names]
    table.add_row("mean of the tasks", *means, *(as_published(one.mean) for one in others))
    return table


def _published(found: Simulation) -> Table:
    table = _table("published means of the same tasks", "model", "whose", "mean", "episodes a task", texts=2)
    for one in found.published:
        if one.mean is not None:
            table.add_row(one.model, one.source, as_published(one.mean), str(one.episodes or "–"))
    return table
