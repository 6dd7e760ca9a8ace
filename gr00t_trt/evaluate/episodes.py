"""Recorded episodes replayed to a policy: its actions beside those of the recording, and how far apart they are."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..common.interface import ModalityConfig, Observation, refuse_non_finite
from ..data import LeRobotDataset
from ..errors import DatasetError, ObservationError, PlanError, unknown
from .policies import Policy


@dataclass(frozen=True)
class Recording:
    """The rows of one episode that are evaluated.

    Attributes:
        trajectory: ``episode_index`` in the dataset.
        actions: Action key -> float64 [N, D], what was done, in the dataset's units.
        states: State key -> float64 [N, D]; only parts that a state shares with an action, in the same width.
        queries: Rows at which the policy is asked: 0, h, 2h, ... below N.
    """

    trajectory: int
    instruction: str
    actions: Mapping[str, np.ndarray]
    states: Mapping[str, np.ndarray]
    queries: tuple[int, ...]

    def __len__(self) -> int:
        return len(next(iter(self.actions.values())))


@dataclass(frozen=True)
class Prediction:
    """What one policy answered to a `Recording`.

    Attributes:
        actions: Action key -> [N, D] in the dataset's units: chunks cut to the horizon and joined.
        latency_ms: One per query, from observation to actions.
    """

    actions: Mapping[str, np.ndarray]
    latency_ms: tuple[float, ...]


@dataclass(frozen=True)
class Score:
    """Squared error in the dataset's units: `mse` over rows and dimensions, `per_dimension` key -> float64 [D]."""

    mse: float
    per_dimension: Mapping[str, np.ndarray]


ARMS = ("right_arm", "left_arm")
"""The action parts in the error of the published script."""


def action_keys(modality_config: Mapping[str, ModalityConfig], wanted: Sequence[str] | None) -> list[str]:
    """The full keys of the wanted action parts; None: of the arms, or of all parts where there are no such arms.

    Raises: PlanError for one that the policy does not predict.
    """
    known = modality_config["action"].modality_keys
    if wanted is None:
        wanted = ARMS if all(f"action.{name}" in known for name in ARMS) else known
    out = []
    for name in wanted:
        key = name if name.startswith("action.") else f"action.{name}"
        if key not in known:
            raise unknown(PlanError, "--modality_keys", name, [k.partition(".")[2] for k in known])
        out.append(key)
    return list(dict.fromkeys(out))


def choose_horizon(modality_config: Mapping[str, ModalityConfig], wanted: int | None) -> int:
    """How many rows of each chunk are used. Raises: PlanError for more rows than a chunk has, or none."""
    offsets = list(modality_config["action"].delta_indices)
    if offsets != list(range(len(offsets))):
        known = "0, 1, 2, ...: consecutive rows of the episode"
        raise PlanError(f"the policy's action rows are at offsets {offsets}", known=known)
    if wanted is not None and not 1 <= wanted <= len(offsets):
        raise PlanError(f"--action_horizon: {wanted} is out of range", known=f"1 to {len(offsets)}, the policy's chunk")
    return wanted or len(offsets)


def read_recording(dataset: LeRobotDataset, trajectory: int, *, steps: int, horizon: int) -> Recording:
    """The first `steps` rows of an episode, or all of it where it is shorter. Raises: DatasetError."""
    found = {e.index: e.length for e in dataset.episodes}
    if trajectory not in found:
        raise DatasetError(f"{dataset.path}: no trajectory {trajectory}", known=f"{min(found)} to {max(found)}")
    rows = min(steps, found[trajectory])
    keys = dataset.modality_config["action"].modality_keys
    shared = [f"state.{key.partition('.')[2]}" for key in keys]
    spoken = dataset.modality_config.get("language")
    whole = {
        "action": ModalityConfig(list(range(rows)), list(keys)),
        "state": ModalityConfig(list(range(rows)), [k for k in shared if k in dataset.layout.keys("state")]),
        "language": ModalityConfig([0], list(spoken.modality_keys) if spoken else []),
    }
    values = LeRobotDataset(dataset.path, whole).step(trajectory, 0)
    actions = {key: values[key] for key in keys}
    refuse_broken(actions, f"{dataset.path}: trajectory {trajectory}")
    widths = {f"state.{key.partition('.')[2]}": value.shape for key, value in actions.items()}
    states = {key: values[key] for key in whole["state"].modality_keys if values[key].shape == widths[key]}
    text = next((values[key][0] for key in whole["language"].modality_keys), "")
    return Recording(trajectory, text, actions, states, tuple(range(0, rows, horizon)))


def refuse_broken(actions: Mapping[str, np.ndarray], source: str) -> None:
    """Raises: DatasetError for a recorded action that is not finite."""
    for key, value in actions.items():
        if not np.isfinite(value).all():
            row, column = np.argwhere(~np.isfinite(value))[0]
            what = f"{source}: {key} holds {value[row, column]} at row {row}, dimension {column}"
            fix = "leave the trajectory out with --start_traj and --trajs, or record it again"
            raise DatasetError(what, known="finite numbers", fix=fix)


def replay(
    policy: Policy,
    dataset: LeRobotDataset,
    recording: Recording,
    *,
    horizon: int,
    source: str,
    advance: Callable[[int, int], None],
) -> Prediction:
    """Ask a policy at every query row; each answer stands until the next.

    Args:
        source: What to call the policy in errors.
        advance: Told how many of how many queries are done.
    Raises: AccuracyError for an answer that is not finite, ObservationError for one that lacks a key, a row or a
        dimension of the recording; whatever the policy raises passes through.
    """
    chunks: dict[str, list[np.ndarray]] = {key: [] for key in recording.actions}
    latencies = []
    for number, row in enumerate(recording.queries):
        observation = observed(dataset, recording.trajectory, row)
        began = time.perf_counter()
        answer = policy.get_action(observation)
        latencies.append((time.perf_counter() - began) * 1e3)
        refuse_non_finite(answer, f"{source}, trajectory {recording.trajectory}, row {row}")
        rows = min(horizon, len(recording) - row)
        for key, recorded in recording.actions.items():
            value = np.asarray(answer.get(key, np.zeros((0, 0))))
            if value.ndim != 2 or value.shape[0] < rows or value.shape[1] != recorded.shape[1]:
                given = f"has shape {value.shape}" if key in answer else "is missing"
                known = f"at least {rows} rows of {recorded.shape[1]}, as in {dataset.path}"
                fix = "use the data config that the policy was trained with"
                raise ObservationError(f"{source}: {key} {given}", known=known, fix=fix)
            chunks[key].append(value[:rows])
        advance(number + 1, len(recording.queries))
    return Prediction({key: np.concatenate(parts) for key, parts in chunks.items()}, tuple(latencies))


def observed(dataset: LeRobotDataset, trajectory: int, row: int) -> Observation:
    """What a robot would have seen at a row: the step without its recorded actions."""
    return {k: v for k, v in dataset.step(trajectory, row).items() if not k.startswith("action.")}


def score(recording: Recording, prediction: Prediction, keys: Sequence[str]) -> Score:
    """How far the predicted actions are from the recorded ones over some action keys."""
    squared = {key: np.square(prediction.actions[key] - recording.actions[key]) for key in keys}
    mse = float(np.concatenate(list(squared.values()), axis=1).mean())
    return Score(mse, {key: value.mean(axis=0) for key, value in squared.items()})


def difference(
    first: Sequence[Prediction], second: Sequence[Prediction], span: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float | None]]:
    """How far two policies' actions are apart, per action key, in the dataset's units.

    Args:
        span: Action key -> [D], largest minus smallest value that the model was trained on.
    Returns: Key -> ``max_abs``, ``mean_abs``, and ``max_percent_of_range``: the largest share of a dimension's span,
        None where no dimension of the key moves.
    """
    out: dict[str, dict[str, float | None]] = {}
    for key in first[0].actions:
        gap = np.concatenate([np.abs(a.actions[key] - b.actions[key]) for a, b in zip(first, second, strict=True)])
        moves = span[key] > 0
        share = gap[:, moves] / span[key][moves] * 100
        percent = float(share.max()) if moves.any() else None
        out[key] = {"max_abs": float(gap.max()), "mean_abs": float(gap.mean()), "max_percent_of_range": percent}
    return out


def closeness(
    first: Sequence[Prediction], second: Sequence[Prediction], ranges: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, float | None]:
    """How much a second policy's actions are those of the first, all rows and dimensions together.

    Every dimension counts on the scale that the model works in, -1 to 1 over its range; one that never moves is left
    out.

    Args:
        ranges: Action key -> [D] each, the smallest and the largest value that the model was trained on.
    Returns: ``cosine``, and ``sqnr_db``: signal over noise in decibels, None where nothing differs.
    """
    ours, theirs = (
        np.concatenate([_scaled(one.actions[key], *span) for one in side for key, span in ranges.items()])
        for side in (first, second)
    )
    noise, signal = float(np.square(theirs - ours).sum()), float(np.square(ours).sum())
    norms = math.sqrt(signal * float(np.square(theirs).sum()))
    return {
        "cosine": float(ours @ theirs) / norms if norms else None,
        "sqnr_db": 10 * math.log10(signal / noise) if noise and signal else None,
    }


def _scaled(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[N, D] -> float64 [N times D' moving dimensions], -1 to 1 over their range."""
    moves = high > low
    scaled: np.ndarray = 2 * (values[:, moves].astype(np.float64) - low[moves]) / (high - low)[moves] - 1
    return scaled.ravel()
