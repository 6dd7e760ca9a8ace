"""Plays one of RoboCasa's tasks with fixed actions, and prints what it saw as JSON; run where RoboCasa is installed."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from typing import Any

import numpy as np

from gr00t_trt.simulate.environments import facts, make_plain

STEPS, CHUNK = 32, 16


def digest(observation: dict[str, Any]) -> str:
    found = hashlib.sha256()
    for key in sorted(observation):
        value = observation[key]
        found.update(
            key.encode() + (value.encode() if isinstance(value, str) else np.ascontiguousarray(value).tobytes())
        )
    return found.hexdigest()


def play(env: Any, seed: int, *, lazy: bool) -> dict[str, Any]:
    """Digests of what is seen at the ends of chunks, and of all states; CPU milliseconds a step."""
    observation, info = env.reset(seed=seed)
    seen, states, successes = [digest(observation)], [], [info["success"]]
    start = {key.replace("state", "action"): value for key, value in observation.items() if key.startswith("state.")}
    began = time.process_time()
    for i in range(STEPS):
        end = i % CHUNK == CHUNK - 1
        env.pictures_wanted = end or not lazy
        now, _, terminated, truncated, info = env.step(
            {key: value + 0.02 * np.sin(i / 3) for key, value in start.items()}
        )
        assert not terminated
        assert not truncated
        seen += [digest(now)] if end else []
        states.append(digest({key: value for key, value in now.items() if key.startswith("state.")}))
        successes.append(info["success"])
    ms = (time.process_time() - began) / STEPS * 1e3
    return {"seen": seen, "states": states, "successes": [bool(success) for success in successes], "ms": ms}


def main(env_id: str) -> None:
    env = make_plain(env_id)
    observation, _ = env.reset(seed=5)
    described = {key: getattr(value, "shape", value) for key, value in observation.items()}
    widths = {key: space.shape for key, space in env.action_space.items()}
    kinds = {key: str(getattr(value, "dtype", "text")) for key, value in observation.items()}
    runs = {"eager": play(env, 5, lazy=False), "lazy": play(env, 5, lazy=True), "other": play(env, 6, lazy=True)}
    print(json.dumps({"keys": described, "kinds": kinds, "actions": widths, "facts": facts(env_id), **runs}))
    env.close()


if __name__ == "__main__":
    main(sys.argv[1])
