"""Batches are the same ones whatever makes them, and what goes wrong in a worker is told like anything else."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_samples import GR1, options, part_of, same

from gr00t_trt.common.notice import warn_once
from gr00t_trt.data import LeRobotDataset, write_synthetic_dataset
from gr00t_trt.errors import DatasetError, PlanError
from gr00t_trt.finetune import loader
from gr00t_trt.finetune.loader import Batch, batches, held_out_batches
from gr00t_trt.finetune.samples import TrainingData, open_training_data

TEXT = "eagle_input_ids"


@pytest.fixture(scope="module")
def data(folder: Path) -> TrainingData:
    path = write_synthetic_dataset(folder / "gr1", data_config=GR1, episodes=4, length=10, resolution=(32, 32))
    return open_training_data(options([path], folder / "cache", eval_episodes=1))


def take(data: TrainingData, **changes) -> list[Batch]:
    settings = {"seed": 42, "start_step": 0, "steps": 4, "batch_size": 4, **changes}
    return list(batches(data, **settings))


def equal(left: list[Batch], right: list[Batch]) -> bool:
    return all(
        (a.positions, a.names, a.step, a.micro) == (b.positions, b.names, b.step, b.micro) and same(a.inputs, b.inputs)
        for a, b in zip(left, right, strict=True)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_make_the_same_batches(data, folder, workers):
    random = torch.get_rng_state()
    cold = replace_cache(data, folder / f"cold-{workers}")
    assert equal(take(data), take(cold, workers=workers))
    assert torch.equal(random, torch.get_rng_state())


def replace_cache(data: TrainingData, cache: Path) -> TrainingData:
    return open_training_data(options([data.recordings[0].path], cache, eval_episodes=1))


def test_a_resumed_run_gets_the_rest(data):
    whole = take(data)
    assert equal(take(data, start_step=3), whole[3:])
    assert equal(take(data, start_step=2, workers=2), whole[2:])
    assert take(data, start_step=4) == []


@pytest.mark.parametrize(("world", "accumulate"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_accumulated_batches_share_out_the_same_samples(data, world, accumulate):
    whole = take(data, batch_size=8, steps=2)
    parts = [
        take(data, batch_size=8 // world // accumulate, steps=2, rank=r, world_size=world, accumulate=accumulate)
        for r in range(world)
    ]
    for step, batch in enumerate(whole):
        found = {}
        for part in parts:
            own = [each for each in part if each.step == step]
            assert [each.micro for each in own] == list(range(accumulate))
            for each in own:
                for place, position in enumerate(each.positions):
                    found[position] = (each.names[place], each.inputs["eagle_pixel_values"][place])
        assert sorted(found) == batch.positions
        for place, position in enumerate(batch.positions):
            assert found[position][0] == batch.names[place]
            assert torch.equal(found[position][1], batch.inputs["eagle_pixel_values"][place])
    first = [each.positions for each in (part[0] for part in parts)]
    assert first[0][0] == 0
    assert [own[0] for own in first] == list(range(world))


def test_a_pass_sees_every_frame_once(data):
    seen = Counter(name for batch in take(data, batch_size=5, steps=12) for name in batch.names)
    assert len(seen) == 30
    assert set(seen.values()) == {2}


def test_the_original_s_draws(demo, oracle, tmp_path):
    """Episodes 0 and 1 of the demonstration data as one dataset, and 2 as another."""
    wanted = json.loads((oracle.folder / "mixture.json").read_text())["mixtures"]
    found = next(mixture for mixture in wanted.values() if "first_32_of_epoch_0" in mixture)
    paths = [part_of(demo, tmp_path / str(number), episodes) for number, episodes in enumerate([[0, 1], [2]])]
    ours = open_training_data(options(paths, sampling="upstream"))
    assert (ours.pass_length, ours.steps) == (found["length"], 1356)
    for epoch in (0, 1):
        frames = [ours.frame(42, epoch * ours.pass_length + item) for item in range(32)]
        assert [["ab"[f.dataset], f.episode, f.row] for f in frames] == found[f"first_32_of_epoch_{epoch}"]
    theirs = found["merged_statistics"]["weighted_average"]
    merged = ours.metadata["gr1"].action_statistics["left_arm"]
    np.testing.assert_allclose(merged.mean, theirs["action"]["left_arm"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(merged.q99, theirs["action"]["left_arm"]["q99"], rtol=1e-6)


def test_held_out_samples_are_the_same_every_time(data):
    found = list(held_out_batches(data, batch_size=4))
    assert [each.positions for each in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all("episode 3" in name for each in found for name in each.names)
    assert equal(found, list(held_out_batches(data, batch_size=4, workers=2)))
    few = list(held_out_batches(data, batch_size=2, most=3))
    assert [each.positions for each in few] == [[0, 4], [9]]
    ranks = [list(held_out_batches(data, batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [each.positions for each in ranks[0] + ranks[1]] == [[0, 2, 4, 6], [8], [1, 3, 5, 7], [9]]
    assert list(held_out_batches(replace(data, held_out=[]), batch_size=4)) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_what_goes_wrong_in_a_worker_is_the_same_error(folder, workers):
    path = write_synthetic_dataset(folder / f"bad{workers}", data_config=GR1, episodes=1, length=6, resolution=(32, 32))
    found = open_training_data(options([path], folder / "cache"))
    video = next((path / "videos").rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:800])
    with pytest.raises(DatasetError, match=r"episode_000000.mp4: not a readable video") as caught:
        take(found, workers=workers)
    assert "Traceback" not in str(caught.value)


def test_workers_leave_signals_to_the_training_and_end_with_it(data):
    with closing(batches(data, seed=1, start_step=0, steps=50, batch_size=2, workers=2)) as found:
        next(found)
        children = multiprocessing.active_children()
        assert len(children) == 2
        for child in children:
            os.kill(child.pid, signal.SIGINT)
        assert len([next(found) for _ in range(10)]) == 10
    for child in children:
        child.join(10)
        assert not child.is_alive()


def test_a_killed_worker_is_told(data):
    with closing(batches(data, seed=1, start_step=0, steps=500, batch_size=2, workers=1)) as found:
        next(found)
        (child,) = multiprocessing.active_children()
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(DatasetError, match=r"--dataloader_num_workers 1: .* ended from outside"):
            for _ in found:
                pass


def work_beside_garbage(data: TrainingData) -> None:
    """Decoders that nobody has closed: one of the data's own, and one that only a collection would free."""
    recording = data.recordings[0]
    view = recording.dataset.modality_config["video"].modality_keys[0]
    gc.disable()
    other = LeRobotDataset(recording.path, recording.dataset.modality_config)
    for dataset in (recording.dataset, other):
        dataset.values(0, view, np.arange(3))
    cycle = [other]
    cycle.append(cycle)
    del other, dataset, cycle
    begin = loader._begin
    loader._begin = lambda worker: (begin(worker), gc.collect())  # type: ignore[assignment]
    assert len(take(replace_cache(data, Path("off")), workers=2)) == 4
    recording._kept.clear()
    assert len(take(data, workers=2)) == 4


def test_workers_do_not_free_decoders_that_they_have_copied(data):
    process = multiprocessing.get_context("fork").Process(target=work_beside_garbage, args=(data,))
    process.start()
    process.join(60)
    alive = process.is_alive()
    process.kill()
    assert not alive
    assert process.exitcode == 0


def test_batches_fit_into_shared_memory(data, monkeypatch, caplog):
    warn_once.cache_clear()
    size = 8 * 3 * 224 * 224 * 4
    assert loader._bytes(data, 8) == size
    disk = loader.shutil._ntuple_diskusage
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda _: disk(0, 0, 10 * size))
    assert loader._ahead(2, 4, size) == 4
    assert caplog.records == []
    assert loader._ahead(4, 4, size) == 2
    assert "room for 2 batches of each of 4 workers, not for 4" in caplog.records[0].message
    with pytest.raises(PlanError, match=r"--dataloader_num_workers 12: [\s\S]*--shm-size=8g"):
        loader._ahead(12, 4, size)
    monkeypatch.setattr(loader, "SHARED_MEMORY", Path("/nowhere"))
    assert loader._ahead(12, 4, size) == 4


def test_the_time_that_the_training_waits_is_measured(data):
    assert all(0 < batch.wait_s < 10 for batch in take(data))


def test_samples_are_made_in_one_thread_and_the_training_keeps_its_own(data, monkeypatch):
    seen = []
    torch.set_num_threads(2)
    monkeypatch.setattr(TrainingData, "inputs", lambda *_: seen.append(torch.get_num_threads()) or {})
    take(data, steps=1)
    assert (seen, torch.get_num_threads()) == ([1], 2)
