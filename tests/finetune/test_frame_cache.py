"""The cache of decoded episodes: exact, bounded, and indifferent to who else writes, dies or removes files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from gr00t_trt.common.notice import warn_once
from gr00t_trt.errors import RecordError, UsageError
from gr00t_trt.finetune import frame_cache
from gr00t_trt.finetune.frame_cache import Column, Episode, FrameCache, name_of, open_frame_cache

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 6, 8, 3), np.uint8)
STATES = np.random.default_rng(1).normal(size=(9, 2))
NAME = name_of({"episode": 1})
fork = multiprocessing.get_context("fork")


def episode(calls: list | None = None, pause_s: float = 0.0) -> Episode:
    if calls is not None:
        calls.append(1)

    def blocks():
        for first in range(0, 9, 4):
            time.sleep(pause_s)
            yield FRAMES[first : first + 4]

    columns = {"video.a": Column("|u1", FRAMES.shape, blocks), "state.b": Column("<f8", STATES.shape, lambda: [STATES])}
    return Episode(columns, {"annotation.c": ["push", "lift"]})


def rows(*numbers: int) -> dict[str, np.ndarray]:
    return dict.fromkeys(("video.a", "state.b"), np.array(numbers))


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    found = open_frame_cache(tmp_path / "frames")
    assert found is not None
    return found


@pytest.mark.parametrize("wanted", [(0,), (8,), (2, 3, 4), (5, 5, 5), (7, 8, 8, 8), (6, 0, 1)])
def test_rows_come_back_as_they_were_written(cache, wanted):
    for _ in range(2):
        values, texts = cache.read(NAME, rows(*wanted), episode)
        np.testing.assert_array_equal(values["video.a"], FRAMES[list(wanted)])
        np.testing.assert_array_equal(values["state.b"], STATES[list(wanted)])
        assert texts == {"annotation.c": ["push", "lift"]}
    values["video.a"][:] = 0  # the caller's own
    np.testing.assert_array_equal(cache.read(NAME, rows(3), episode)[0]["video.a"][0], FRAMES[3])


def test_an_episode_is_decoded_once_for_all_runs(cache, tmp_path):
    calls: list = []
    for _ in range(3):
        for again in (cache, open_frame_cache(tmp_path / "frames")):
            again.read(NAME, rows(1), partial(episode, calls))
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["short", "empty", "header", "gone", "longer"])
def test_a_damaged_file_is_made_again(cache, damage):
    cache.read(NAME, rows(0), episode)
    path = next(cache.folder.glob("*.frames"))
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        broken = {"short": whole[:-100], "empty": b"", "header": b"x" + whole[1:], "longer": whole + b"x"}[damage]
        path.write_bytes(broken)
    for other in (FrameCache(cache.folder, cache.limit), cache):
        np.testing.assert_array_equal(other.read(NAME, rows(8), episode)[0]["video.a"][0], FRAMES[8])
    assert path.read_bytes() == whole or damage == "longer"


def write(folder: Path, started) -> None:
    started.set()
    FrameCache(folder, 10**9).read(NAME, rows(0), partial(episode, pause_s=5.0))


def test_a_killed_writer_leaves_nothing_that_counts(cache):
    started = fork.Event()
    process = fork.Process(target=write, args=(cache.folder, started))
    process.start()
    assert started.wait(20)
    deadline = time.monotonic() + 20
    while not list(cache.folder.glob(".*.partial")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    (partial_file,) = cache.folder.glob(".*.partial")
    calls: list = []
    values, _ = cache.read(NAME, rows(4), partial(episode, calls))
    np.testing.assert_array_equal(values["video.a"][0], FRAMES[4])
    assert len(calls) == 1
    cache.make_room([])
    assert partial_file.exists()  # it may be somebody's who is at work
    os.utime(partial_file, (0, 0))
    cache.make_room([])
    assert not partial_file.exists()


def read_often(folder: Path, results) -> None:
    calls: list = []
    own = FrameCache(folder, 10**9)
    right = True
    for _ in range(5):
        values, _ = own.read(NAME, rows(0, 8), partial(episode, calls, 0.05))
        right &= bool((values["video.a"] == FRAMES[[0, 8]]).all())
    results.put((right, len(calls)))


def test_processes_that_start_together_decode_an_episode_once(cache):
    results = fork.Queue()
    processes = [fork.Process(target=read_often, args=(cache.folder, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert [right for right, _ in found] == [True] * 4
    assert sum(calls for _, calls in found) == 1


def test_what_was_used_longest_ago_makes_room(cache):
    names = [name_of({"episode": number}) for number in range(4)]
    for age, name in enumerate(reversed(names)):
        cache.read(name, rows(0), episode)
        os.utime(cache.folder / f"{name}.frames", (age, age))
    size = next(cache.folder.glob("*.frames")).stat().st_size
    cache.limit = 3 * size
    other = name_of({"episode": 9})
    # Number 0 was used last; 1 is wanted again, and the new one takes the place of 3 and 2.
    assert cache.make_room([(names[1], size), (other, size)]) == {names[1], other}
    assert {path.stem for path in cache.folder.glob("*.frames")} == {names[0], names[1]}
    assert cache.make_room([(name, size) for name in (*names, other)]) == set(names[:3])
    cache.limit = 0
    assert cache.make_room([(names[1], size)]) == set()
    assert list(cache.folder.glob("*.frames")) == []


@pytest.mark.parametrize("where", ["before", "while"])
def test_a_full_disk_is_told_once_and_nothing_is_kept(cache, monkeypatch, caplog, where):
    warn_once.cache_clear()
    if where == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 10))
    else:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        monkeypatch.setattr(frame_cache, "_write_episode", lambda *_: (_ for _ in ()).throw(full))
    for _ in range(2):
        assert cache.read(NAME, rows(0), episode) is None
    (record,) = caplog.records
    assert "takes no more episodes (No space left on device): others are decoded each time" in record.message
    assert [path.name for path in cache.folder.iterdir() if not path.name.startswith(".lock")] == []


def test_settings(tmp_path, monkeypatch):
    monkeypatch.setenv("GR00T_TRT_FRAME_CACHE", str(tmp_path / "named"))
    assert open_frame_cache().folder == tmp_path / "named"
    assert open_frame_cache(limit_gb=0.5).limit == 5 * 10**8
    assert open_frame_cache("off") is None
    monkeypatch.setenv("GR00T_TRT_FRAME_CACHE", "OFF")
    assert open_frame_cache() is None
    monkeypatch.delenv("GR00T_TRT_FRAME_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_frame_cache().folder == tmp_path / "xdg" / "gr00t_trt" / "frames"
    assert oct((tmp_path / "xdg/gr00t_trt/frames").stat().st_mode)[-3:] == "700"
    for limit in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--frame_cache_gb"):
            open_frame_cache(limit_gb=limit)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"--frame_cache .*file[\s\S]*--frame_cache off"):
        open_frame_cache(tmp_path / "file")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(RecordError, match="others may write to it"):
        open_frame_cache(tmp_path / "open")
