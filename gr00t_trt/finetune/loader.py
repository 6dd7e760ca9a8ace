"""Batches of a training, made ahead by worker processes, the same ones whatever their number."""

from __future__ import annotations

import gc
import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..common.devices import one_thread
from ..common.notice import warn_once
from ..errors import DatasetError, Gr00tError, PlanError
from .samples import Frame, TrainingData

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux keeps what worker processes hand over."""


@dataclass(frozen=True)
class Batch:
    """The samples of one rank in one forward pass.

    Attributes:
        inputs: ``eagle_*`` and ``state`` as the policy's transforms make them, ``state_mask``, ``embodiment_id``;
            ``action`` float32 [B, T, A] normalised and padded, ``action_mask`` bool likewise.
        step: Optimizer step.
        micro: Which of the batches that one step accumulates.
        positions: Number of each sample since step 0, over all ranks.
        names: Each sample in words, for errors.
        wait_s: Seconds that the training waited for it.
    """

    inputs: dict[str, Tensor]
    step: int
    micro: int
    positions: list[int]
    names: list[str]
    wait_s: float = 0.0


@dataclass(frozen=True)
class _Request:
    """What a batch is made of; as in `Batch` and `TrainingData.inputs`."""

    step: int
    micro: int
    positions: list[int]
    frames: list[Frame]
    seed: int | None


def batches(
    data: TrainingData,
    *,
    seed: int,
    start_step: int,
    steps: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    accumulate: int = 1,
    prefetch: int = 4,
) -> Iterator[Batch]:
    """The batches of one rank, `accumulate` for each of the steps from `start_step` to `steps` - 1.

    Sample number i of a step, counted over all ranks and accumulated batches, is the same one for any number of ranks
    and workers. Batch a of rank r has the samples a B W + r, a B W + W + r, ... of W ranks with B samples each.

    Args:
        seed: With a sample's position it decides which frame it is and how it is augmented.
        batch_size: Of one rank and batch.
        workers: Processes that make batches; 0 makes them here.
        prefetch: Batches that each worker makes ahead; fewer where shared memory is small.
    Raises: DatasetError, ObservationError for a sample that cannot be made; PlanError without a way to start workers.
    """
    together = batch_size * world_size

    def requests() -> Iterator[_Request]:
        for step in range(start_step, steps):
            for micro in range(accumulate):
                first = (step * accumulate + micro) * together
                positions = list(range(first + rank, first + together, world_size))
                yield _Request(step, micro, positions, [data.frame(seed, p) for p in positions], seed)

    return _made(data, requests(), batch_size, workers, prefetch)


def held_out_batches(
    data: TrainingData,
    *,
    batch_size: int,
    most: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Iterator[Batch]:
    """Held-out frames without augmentation, in order; `positions` are their numbers among all held-out frames.

    Args:
        most: No more than so many, evenly spread over all.
        rank, world_size: Every rank gets every `world_size`-th of them.
    Raises: As `batches`.
    """
    count = len(data.held_out)
    chosen = np.linspace(0, count - 1, min(count, most or count)).round().astype(int).tolist() if count else []
    own = chosen[rank::world_size]

    def requests() -> Iterator[_Request]:
        for number, first in enumerate(range(0, len(own), batch_size)):
            positions = own[first : first + batch_size]
            yield _Request(number, 0, positions, [data.held_out[p] for p in positions], None)

    return _made(data, requests(), batch_size, workers, 2)


def _made(
    data: TrainingData, requests: Iterator[_Request], batch_size: int, workers: int, prefetch: int
) -> Iterator[Batch]:
    found = _begun(data, _loader(data, requests, batch_size, workers, prefetch))
    try:
        while True:
            began = time.perf_counter()
            batch = next(found, None)
            if batch is None:
                return
            if isinstance(batch, Gr00tError):
                raise batch
            yield replace(batch, wait_s=time.perf_counter() - began)
    except RuntimeError as error:
        if workers and "DataLoader worker" in str(error):
            raise DatasetError(
                f"--dataloader_num_workers {workers}: a process that makes batches has been ended from outside",
                known="most often the system does that when memory runs out",
                fix="fewer workers, or a smaller --dataloader_prefetch_factor",
            ) from error
        raise
    finally:
        # The workers end with their iterator, which an error that is kept would keep.
        del found


def _begun(data: TrainingData, loader: Iterable[Any]) -> Iterator[Any]:
    """The iterator, whose workers begin as copies of this process."""
    # A video decoder has threads, and a copy has not: it would wait for ever for them to end, when it frees one that
    # was left open or in garbage here.
    for recording in data.recordings:
        recording.dataset.close()
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def _loader(
    data: TrainingData, requests: Iterator[_Request], batch_size: int, workers: int, prefetch: int
) -> Iterable[Any]:
    if not workers:
        return map(partial(_make, data), requests)
    if "fork" not in multiprocessing.get_all_start_methods():
        raise PlanError(f"--dataloader_num_workers {workers}: this system cannot fork processes", known="0")
    ahead = _ahead(workers, prefetch, _bytes(data, batch_size))
    return DataLoader(
        _Maker(data),
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=ahead,
        collate_fn=lambda batch: batch,
        worker_init_fn=_begin,
        multiprocessing_context="fork",
        # It would take a number from the process's own generator.
        generator=torch.Generator(),
    )


class _Maker(Dataset[Any]):
    def __init__(self, data: TrainingData):
        self._data = data

    def __getitem__(self, request: _Request) -> Batch | Gr00tError:
        return _make(self._data, request)


def _make(data: TrainingData, request: _Request) -> Batch | Gr00tError:
    """A batch; what is wrong with it is handed over, for an error from a worker to be the same as one from here."""
    try:
        # Images are too small to be shared out: on a busy machine, threads wait for one another most of the time.
        with one_thread():
            inputs = data.inputs(request.frames, request.positions, request.seed)
    except Gr00tError as error:
        return error
    names = [data.name(frame) for frame in request.frames]
    return Batch(inputs, request.step, request.micro, request.positions, names)


def _begin(worker: int) -> None:
    """The main process alone answers signals, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _bytes(data: TrainingData, batch_size: int) -> int:
    """Size of a batch, which is that of its pixels in float32."""
    views = 0
    for modalities in data.modality_configs.values():
        video = modalities["video"]
        views = max(views, len(video.modality_keys) * len(video.delta_indices))
    return batch_size * views * 3 * data.prompter.image_size**2 * 4


def _ahead(workers: int, prefetch: int, size: int) -> int:
    """How many batches each worker makes ahead, so that all of them fit into shared memory.

    Raises: PlanError where not even one fits.
    """
    if not SHARED_MEMORY.is_dir():
        return prefetch
    free = shutil.disk_usage(SHARED_MEMORY).free
    ahead = min(prefetch, int(0.8 * free / (workers * size)))
    if ahead < 1:
        raise PlanError(
            f"--dataloader_num_workers {workers}: batches of {size / 1e6:.0f} MB, and {free / 1e6:.0f} MB of shared "
            f"memory in {SHARED_MEMORY}",
            known="room for one batch of every worker",
            fix="start the container with more, such as --shm-size=8g; or fewer workers",
        )
    if ahead < prefetch:
        warn_once(f"{SHARED_MEMORY} has room for {ahead} batches of each of {workers} workers, not for {prefetch}.")
    return ahead
