"""Sessions: who is asked together, with which noise, what a lost episode costs, and policies that do not fit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from gr00t_trt.common.interface import ModalityConfig
from gr00t_trt.errors import AccuracyError, ObservationError, ServiceError
from gr00t_trt.simulate.actors import AnyPolicy, Question, RecordedActions, ServedActor, served_actor
from gr00t_trt.simulate.episodes import Session
from gr00t_trt.simulate.step import Lost, Started, Step

ROWS = 2
TASKS = ("lift it", "put the long one down")


class World:
    """Environments that last as many chunks as the seed says; episode number 3 is lost in its second chunk."""

    parts = {"action.arm": 1}  # noqa: RUF012
    lost_at_reset: tuple[int, ...] = ()

    def __init__(self, count: int):
        self.count = count
        self.now: dict[int, list[int]] = {}

    def reset(self, episodes: Mapping[int, tuple[int, int]]) -> dict:
        out = {}
        for i, (number, seed) in episodes.items():
            self.now[i] = [number, seed, 0]
            task = TASKS[number % 2]
            lost = number in self.lost_at_reset
            out[i] = (
                Lost("it does not start") if lost else Started({"state.arm": np.array([[seed]]), "text": task}, task)
            )
        return out

    def step(self, actions: Mapping[int, Mapping[str, np.ndarray] | None]) -> dict:
        out = {}
        for i, action in actions.items():
            number, seed, done = self.now[i]
            self.now[i][2] += 1
            if number == 3 and done == 1:
                out[i] = Lost("killed by SIGKILL")
                continue
            taken = action or {"action.arm": np.full((ROWS, 1), -1.0)}
            observation = {"state.arm": np.array([[seed + 100 * done]]), "text": TASKS[number % 2]}
            over = done == seed % 3
            out[i] = Step(observation, ROWS, ROWS * (done + 1), over, over and seed % 2 == 0, over, 0.0, taken)
        return out


class Actor:
    """Remembers what it was asked; its actions tell the question's noise."""

    together, timed = True, True

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[Question]]] = []

    def get_modality_config(self):
        return {"action": ModalityConfig(list(range(16)), ["action.arm"])}

    def answer(self, observation, questions):
        assert observation["state.arm"].shape == (len(questions), 1, 1)
        self.asked.append((observation["text"], list(questions)))
        noise = np.array([q.noise_seed for q in questions], float)
        return {"action.arm": np.repeat(noise[:, None, None], 16, axis=1)}


def session(count: int, actor, world: World | None = None, **more) -> Session:
    return Session(world or World(count), actor, n_action_steps=ROWS, **more)


JOBS = [(number, 10 + number) for number in range(7)]


def test_every_episode_is_played_once_and_the_lost_one_costs_no_other() -> None:
    told: list[tuple[int, int]] = []
    found = session(3, Actor(), advance=lambda *done: told.append(done)).play(JOBS)
    assert [(e.episode, e.seed) for e in found] == JOBS
    assert [e.lost for e in found] == [None, None, None, "killed by SIGKILL", None, None, None]
    assert [e.success for e in found] == [True, False, True, None, True, False, True]
    assert [e.queries for e in found] == [2, 3, 1, 2, 3, 1, 2]
    assert [e.steps for e in found] == [4, 6, 2, 0, 6, 2, 4]
    assert told[-1] == (7, 7)
    assert all(e.success_any_row for e in found if e.lost is None)


def test_how_many_environments_play_side_by_side_changes_no_question() -> None:
    asked = []
    for count in (1, 2, 3):
        actor = Actor()
        session(count, actor).play(JOBS)
        asked.append({q for _, questions in actor.asked for q in questions})
    assert asked[0] == asked[1] == asked[2]
    assert len({q.noise_seed for q in asked[0]}) == len(asked[0])
    assert all(0 <= q.noise_seed < 2**63 for q in asked[0])


def test_instructions_that_differ_are_not_asked_about_together() -> None:
    actor = Actor()
    played = session(3, actor)
    played.play(JOBS)
    assert played.apart
    assert all(len(set(texts)) == 1 for texts, _ in actor.asked)
    assert max(len(questions) for _, questions in actor.asked) > 1
    alone = session(1, Actor())
    alone.play(JOBS)
    assert not alone.apart


def test_an_environment_that_cannot_begin_an_episode_is_given_the_next_one() -> None:
    world = World(2)
    world.lost_at_reset = (0, 5, 6)
    found = session(2, None, world).play(JOBS)
    assert [e.episode for e in found if e.lost == "it does not start"] == [0, 5, 6]
    assert [e.success is not None for e in found] == [False, True, True, False, True, False, False]
    assert not any(e.queries for e in found), "the environments' own expert is nobody who is asked"


def test_what_a_session_plays_can_be_kept() -> None:
    rows, ended = [], []

    class Keeper:
        def add(self, environment, step):
            rows.append(environment)

        def ended(self, environment, episode):
            ended.append(episode.episode)

    session(2, None, keeper=Keeper()).play(JOBS)
    assert sorted(ended) == list(range(7))
    assert len(rows) == 2 + 3 + 1 + 1 + 3 + 1 + 2


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ({"action.leg": np.zeros((1, 16, 1))}, ObservationError, "the policy gives no action.arm"),
        ({"action.arm": np.zeros((1, 1, 1))}, ObservationError, r"action.arm has shape \(1, 1, 1\)"),
        ({"action.arm": np.zeros((1, 16, 4))}, ObservationError, r"known: \(1, 2 or more, 1\)"),
        ({"action.arm": np.full((1, 16, 1), np.nan)}, AccuracyError, "holds nan"),
    ],
)
def test_a_policy_that_does_not_fit_is_one_error(answer, error, words) -> None:
    actor = Actor()
    actor.answer = lambda observation, questions: answer
    with pytest.raises(error, match=words):
        session(1, actor).play(JOBS)


class Client:
    """A server, of this package's make or another's."""

    def __init__(self, ours: bool):
        self.ours, self.seeds = ours, []

    def get_modality_config(self):
        return {}

    def status(self):
        if not self.ours:
            raise ServiceError("Server error: no such endpoint")
        return {}

    def get_action(self, observation, **more):
        self.seeds.append(more.get("seed"))
        return {"action.arm": np.zeros((len(observation["state.arm"]), 16, 1))}


def test_a_server_of_ours_is_told_the_noise_and_another_is_not_and_that_is_said() -> None:
    from gr00t_trt.evaluate.policies import ServedPolicy

    for ours in (True, False):
        client = Client(ours)
        actor, why = served_actor(ServedPolicy(client, "host:1", position_ids=False))
        assert isinstance(actor, ServedActor if ours else AnyPolicy)
        assert (why is None) is ours
        session(2, actor).play(JOBS[:2])
        assert all((seed is not None) is ours for seed in client.seeds)
        assert len(client.seeds) == len(set(client.seeds)) or not ours


def test_a_local_model_and_a_server_that_is_told_the_same_seed_draw_the_same_noise() -> None:
    from gr00t_trt.simulate.local import LocalActor

    seen = []

    class Policy:
        model = type("Model", (), {"device": torch.device("cpu"), "action_horizon": 16})()

        def get_action(self, observation, *, noise):
            seen.append(noise)
            return {}

    Policy.model.config = type("Config", (), {"action_head": type("Head", (), {"action_dim": 32})})
    actor = LocalActor(type("Local", (), {"policy": Policy()})())
    questions = [Question(0, 5, 1), Question(1, 6, 1)]
    actor.answer({}, questions)
    actor.answer({}, questions[1:])
    # As serve/worker draws it for a request with a seed.
    theirs = torch.randn((1, 16, 32), generator=torch.Generator().manual_seed(questions[1].noise_seed))
    assert torch.equal(seen[0][1:], theirs)
    assert torch.equal(seen[1], theirs)


def test_recorded_actions_come_in_order_and_the_last_one_is_held() -> None:
    actions = {4: {"action.arm": np.arange(5, dtype=np.float32)[:, None]}}
    actor = RecordedActions(2, actions)
    chunks = [actor.answer({}, [Question(4, 0, number)])["action.arm"][0, :, 0].tolist() for number in range(4)]
    assert chunks == [[0, 1], [2, 3], [4, 4], [4, 4]]
