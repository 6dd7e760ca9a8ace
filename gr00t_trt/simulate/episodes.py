"""Episodes played to their end by a policy: which succeeded, in how many steps, and how long it was asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from ..common.interface import refuse_non_finite
from ..errors import ObservationError
from ..evaluate.policies import Policy
from .environments import LONG_VIEW, VIEW, numbers


@dataclass(frozen=True)
class Outcome:
    """One finished episode.

    Attributes:
        episode: Its number, which its video has, too: from 0, each environment's in the order in which it plays them.
        environment: Which of the environments side by side played it.
        success: Whether ``info["success"]`` was ever true.
        steps: Low-level ones; `queries`: questions to the policy.
    """

    episode: int
    environment: int
    success: bool
    steps: int
    queries: int


def share(episodes: int, environments: int) -> list[int]:
    """How many episodes each environment plays.

    Fixed beforehand: were the first to finish counted instead, quick episodes would be counted more often than slow
    ones, and successes are quick.
    """
    return [episodes // environments + (i < episodes % environments) for i in range(environments)]


def play(
    envs: gymnasium.vector.VectorEnv,
    policy: Policy,
    quotas: Sequence[int],
    *,
    seed: int,
    advance: Callable[[int, int], None],
) -> tuple[list[Outcome], list[float]]:
    """Play until every environment has finished its share.

    Args:
        envs: From `environments.make_vector`; environment i starts from seed + i and goes on from there.
        quotas: From `share`.
        advance: Told how many of how many episodes are over.
    Returns: The outcomes in the order in which they came, and the milliseconds of every query.
    Raises: ObservationError when policy and environments do not fit; what the policy raises passes through.
    """
    space: Any = envs.action_space
    observation, _ = envs.reset(seed=seed)
    count = len(quotas)
    success, over, queries = np.zeros(count, bool), np.zeros(count, bool), np.zeros(count, int)
    left = list(quotas)
    outcomes: list[Outcome] = []
    latencies: list[float] = []
    while any(left):
        if over.all():  # every environment only resets in the next step, whatever the action
            action = {key: np.zeros(own.shape, own.dtype) for key, own in space.items()}
        else:
            seen = {VIEW if key == LONG_VIEW else key: value for key, value in observation.items()}
            began = time.perf_counter()
            answer = policy.get_action(seen)
            latencies.append((time.perf_counter() - began) * 1e3)
            refuse_non_finite(answer, "the policy")
            action = _fitted(answer, space)
        observation, _, terminated, truncated, infos = envs.step(action)
        if "success" not in infos and not over.all():
            what = "the environment does not say whether it succeeded"
            raise ObservationError(what, known='a truth value under info["success"]')
        resumed, over = over, terminated | truncated
        for i in range(count):
            if resumed[i]:
                success[i], queries[i] = False, 0
                continue
            queries[i] += 1
            success[i] |= bool(np.any(infos["success"][i]))
            if over[i] and left[i]:
                number = numbers(i, quotas[i], count)[quotas[i] - left[i]]
                left[i] -= 1
                outcomes.append(Outcome(number, i, bool(success[i]), int(infos["steps"][i][0]), int(queries[i])))
                advance(len(outcomes), sum(quotas))
    envs.reset()  # a video takes its name when the next episode begins
    return outcomes, latencies


def _fitted(answer: Mapping[str, np.ndarray], space: Any) -> dict[str, np.ndarray]:
    """The actions that the environments want, cut to the rows that are executed."""
    missing = [key for key in space if key not in answer]
    if missing:
        known = f"the environment wants {', '.join(space)}; the policy gives {', '.join(answer)}"
        fix = "use the data config of this robot, such as --data_config fourier_gr1_arms_waist"
        raise ObservationError(f"the policy gives no {', '.join(missing)}", known=known, fix=fix)
    out = {}
    for key, own in space.items():
        value = np.asarray(answer[key])
        batch, rows, width = own.shape
        if value.ndim != 3 or value.shape[0] != batch or value.shape[1] < rows or value.shape[2] != width:
            fix = "lower --n_action_steps to the policy's chunk, or use another data config"
            known = f"({batch}, {rows} or more, {width})"
            raise ObservationError(f"{key} has shape {value.shape}", known=known, fix=fix)
        out[key] = value[:, :rows]
    return out
