"""Simulations on a page: success rates with intervals, pairs, every episode; and no section without any."""

from __future__ import annotations

import re

from gr00t_trt.record.samples import Samples
from gr00t_trt.record.schema import Record, new_record
from gr00t_trt.record.simulation import Episode, Played, Published, Simulation
from gr00t_trt.report.findings import answer, key_figures
from gr00t_trt.report.page import page
from gr00t_trt.report.simulations import tables
from gr00t_trt.report.views import together


def played(name: str, successes: int, environment: str = "world/Task_GR1_Env", lost: str | None = None) -> Played:
    episodes = [Episode(i, i, success=i < successes, success_any_row=i < successes + 1, steps=9) for i in range(10)]
    episodes += [Episode(10, 10, instruction="<b>lift</b>", lost=lost)] if lost else []
    return Played(name, environment, {}, episodes, Samples((3.0, 4.0, 5.0)))


def record(found: Simulation) -> Record:
    made = new_record("gr00t-trt simulate")
    made.simulation = found
    made.exit_reason = "done"
    return made


def text_of(made: Record) -> str:
    plain = re.sub(r"<(script|style)>.*?</\1>", "", page(together([("r.json", made)]), "title"), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", plain))


COMPARED = Simulation(
    played=[played("eager fp32", 9), played("inductor bf16", 1, lost="killed by <SIGKILL>")],
    simulator={"mujoco": "3.17.0", "renderer": "llvmpipe"},
)


def test_rates_intervals_pairs_and_lost_episodes_are_on_the_page() -> None:
    text = text_of(record(COMPARED))
    assert "How often it succeeded" in text
    assert "9 of 10, 90 % (60–98 %)" in text
    assert "eager fp32 succeeds more often than inductor bf16: p = 0.0078" in text
    assert "killed by &lt;SIGKILL&gt;" in text
    assert "&lt;b&gt;lift&lt;/b&gt;" in text
    assert "mujoco 3.17.0, renderer llvmpipe" in text
    assert "failure, success in between" in text


def test_the_head_of_the_page_says_what_was_found() -> None:
    (one,) = together([("r.json", record(COMPARED))])
    assert answer(one).startswith("eager fp32: success rate: 9 of 10, 90 % (60–98 %); by any row")
    assert ("success, eager fp32", "90 %", "9 of 10, 90 % (60–98 %)") in key_figures(one)


def test_every_episode_is_a_row() -> None:
    rates, pairs, episodes = tables(COMPARED)
    assert [row[2].text for row in rates.rows] == ["10", "10"]
    assert [cell.text for cell in pairs.rows[0]] == ["inductor bf16", "1", "8", "0", "1", "0.0078"]
    assert len(episodes.rows) == 21


def test_published_means_stand_beside_those_of_a_suite() -> None:
    tasks = [played("eager fp32", 6, f"gr1_unified/Task{i}_GR1_Env") for i in range(2)]
    found = Simulation(
        played=tasks, suite="gr1_24", tasks=2, published=[Published("N1.5, zero shot", "its README", 0.42)]
    )
    text = text_of(record(found))
    assert "mean success rate of 2 tasks: 60 %; all episodes: 12 of 20, 60 % (39–78 %)" in text
    assert "published: N1.5, zero shot" in text
    assert "Published: its README: 42 %" in text


def test_a_record_without_a_simulation_has_no_such_section() -> None:
    for made in (new_record("gr00t-trt run"), record(Simulation())):
        assert "How often it succeeded" not in text_of(made)
