"""A recording for the Rerun viewer: what a policy was shown, what it answered, how long it took.

The file that imports rerun. Never imports torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.files import prepare_file
from ..common.install import install_extra
from ..common.interface import Observation
from ..errors import PlanError, RecordError, UsageError

if TYPE_CHECKING:
    from ..data import LeRobotDataset
    from .episodes import Prediction, Recording

SUFFIX = ".rrd"
JPEG_QUALITY = 90

Place = Sequence[str]
"""Where something stands in the viewer's tree, from the root."""


@dataclass(frozen=True)
class Moment:
    """When something happened: `seconds` from the beginning; `step`, a row of an episode or a simulator's step."""

    seconds: float
    step: int | None = None

    def later(self, rows: int, period: float) -> Moment:
        return Moment(self.seconds + rows * period, None if self.step is None else self.step + rows)


def rerun_flag(group: Any) -> None:
    """``--rerun FILE.rrd``, for `open_timeline`."""
    help = "write frames, states, actions and latencies for the Rerun viewer [not written]"
    group.add_argument("--rerun", metavar=f"FILE{SUFFIX}", help=help)


def open_timeline(path: str | None, program: str) -> Timeline | None:
    """The timeline of `--rerun`, None without it.

    Args:
        program: What the viewer calls the recording's application, such as ``evaluate``.
    Raises: as `Timeline`.
    """
    return None if path is None else Timeline(Path(path), program)


class Timeline:
    """A file for Rerun that grows with every call. A context manager: the file is complete when it closes.

    Frames are kept as JPEG. Everything is written by a thread of its own, so that a robot's loop waits for none of it.

    Args:
        path: Ends in ``.rrd``, which is how the viewer knows its files; its folder is made.
        program: As for `open_timeline`.
    Raises: UsageError for another suffix, PlanError without rerun-sdk, RecordError where nothing can be written.
    """

    def __init__(self, path: Path, program: str):
        if path.suffix != SUFFIX:
            raise UsageError(f"--rerun: {path} does not end in {SUFFIX}", fix=f"name it {path.with_suffix(SUFFIX)}")
        try:
            import rerun
        except ImportError as error:
            raise PlanError("--rerun needs rerun-sdk: not installed", fix=install_extra("rerun")) from error
        prepare_file(path, "Rerun file", "--rerun")
        self.path, self._rerun = path, rerun
        self._stream = rerun.RecordingStream(f"gr00t_trt {program}")
        self._stream.save(path)
        rerun.set_strict_mode(True)  # else the SDK only warns of what it cannot write
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="rerun")
        self._failure: Exception | None = None
        self._began = time.perf_counter()

    def now(self, step: int | None = None) -> Moment:
        """This moment, in seconds since the timeline was made."""
        return Moment(time.perf_counter() - self._began, step)

    def shown(self, when: Moment, observation: Observation, under: Place = ()) -> None:
        """The newest frames and states of one observation: ``video.*`` [T, H, W, 3] and ``state.*`` [T, D].

        Args:
            under: Where in the tree ``frames`` and ``state`` stand.
        """
        for key, value in observation.items():
            kind, _, part = key.partition(".")
            if kind == "video":
                self._later(self._frame, when, (*under, "frames", part), np.array(value[-1]))
            elif kind == "state":
                self.value(when, (*under, "state", part), np.array(value[-1]))

    def answered(
        self,
        when: Moment,
        chunk: Mapping[str, np.ndarray],
        latency_ms: float,
        *,
        rows: int,
        period: float,
        under: Place = (),
    ) -> None:
        """An answer of a policy: its whole chunk, the first `rows` of it as curves, and its latency.

        Args:
            chunk: ``action.<part>`` [T, D].
            period: Seconds from one row to the next.
        """
        self.value(when, (*under, "latency_ms"), np.array([latency_ms]))
        for key, value in chunk.items():
            part = key.partition(".")[2]
            self._later(self._tensor, when, (*under, "chunk", part), np.array(value))
            for row in range(min(rows, len(value))):
                self.value(when.later(row, period), (*under, "predicted", part), value[row])

    def value(self, when: Moment, place: Place, values: np.ndarray) -> None:
        """One curve for each of `values` [D]."""
        self._later(self._curve, when, place, np.array(values, np.float64))

    def close(self) -> None:
        """Wait until all is written. Raises: RecordError where it could not be."""
        self._writer.shutdown()
        self._stream.flush()
        self._stream.disconnect()
        if self._failure is not None:
            why = f"{type(self._failure).__name__}: {self._failure}"
            raise RecordError(f"{self.path}: cannot be written: {why}", fix="name another file with --rerun")

    def __enter__(self) -> Timeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _later(self, what: Callable[[Any], Any], when: Moment, place: Place, value: np.ndarray) -> None:
        self._writer.submit(self._log, what, when, place, value)

    def _log(self, what: Callable[[Any], Any], when: Moment, place: Place, value: np.ndarray) -> None:
        try:
            self._stream.reset_time()
            self._stream.set_time("time", duration=when.seconds)
            if when.step is not None:
                self._stream.set_time("step", sequence=when.step)
            self._stream.log(list(place), what(value))
        except Exception as error:  # whatever the SDK raises; told when the file is closed
            self._failure = self._failure or error

    def _frame(self, image: np.ndarray) -> Any:
        return self._rerun.Image(image).compress(jpeg_quality=JPEG_QUALITY)

    def _tensor(self, chunk: np.ndarray) -> Any:
        return self._rerun.Tensor(chunk, dim_names=("row", "dimension"))

    def _curve(self, values: np.ndarray) -> Any:
        return self._rerun.Scalars(values)


def write_evaluation(
    timeline: Timeline,
    dataset: LeRobotDataset,
    recordings: Sequence[Recording],
    predictions: Mapping[str, Sequence[Prediction]],
    fps: float,
) -> None:
    """Episodes as recorded, beside what each policy predicted, a branch of the tree for each.

    Args:
        predictions: What to call a policy -> its predictions, one per recording.
        fps: Rows per second.
    Raises: DatasetError for a frame that cannot be read.
    """
    from .episodes import observed

    for number, recording in enumerate(recordings):
        branch = (f"trajectory {recording.trajectory}",)
        for kind, whole in (("recorded", recording.actions), ("state", recording.states)):
            for key, values in whole.items():
                place = (*branch, kind, key.partition(".")[2])
                for row, value in enumerate(values):
                    timeline.value(Moment(row / fps, row), place, value)
        for row in recording.queries:
            timeline.shown(Moment(row / fps, row), _frames(observed(dataset, recording.trajectory, row)), branch)
        for name, own in predictions.items():
            _write_answers(timeline, recording, own[number], (*branch, name), fps)


def _frames(observation: Observation) -> Observation:
    return {key: value for key, value in observation.items() if key.startswith("video.")}


def _write_answers(timeline: Timeline, recording: Recording, own: Prediction, under: Place, fps: float) -> None:
    """The rows of each answer that were used: those before the next query."""
    ends = [*recording.queries[1:], len(recording)]
    for start, end, latency in zip(recording.queries, ends, own.latency_ms, strict=True):
        chunk = {key: value[start:end] for key, value in own.actions.items()}
        moment = Moment(start / fps, start)
        timeline.answered(moment, chunk, latency, rows=end - start, period=1 / fps, under=under)
