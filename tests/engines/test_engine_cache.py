"""Kept engines: found again when they are exactly what was asked for, and never trusted otherwise."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gr00t_trt.engines import cache as engine_cache
from gr00t_trt.engines import files as engine_files
from gr00t_trt.engines.cache import EngineCache, Slot, open_cache
from gr00t_trt.engines.files import engine_paths, place_engine, verify
from gr00t_trt.engines.key import stem_of
from gr00t_trt.engines.manifest import Binding, Description, checksum, read_manifest
from gr00t_trt.errors import BackendError, RecordError

KEY = {"schema": 1, "submodule": "dit_model", "route": "torch_tensorrt", "weights_sha256": "ab" * 32, "versions": {}}
PLAN = bytes(range(256)) * 40
DESCRIPTION = Description(
    inputs=(Binding("hidden", "float16", (1, 8, 32), (1, 20, 32), (4, 40, 32)),),
    outputs=(Binding("output0", "float16", (-1, 32), (-1, 32), (-1, 32)),),
    arguments=(1,),
    compute_capabilities=("8.9",),
    versions={"torch": "2.13.0"},
    options={},
    settings={},
    weights_sha256="ab" * 32,
    executed=False,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked here")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def slot(cache: EngineCache | None, told: list[str] | None = None) -> Slot:
    return Slot(cache, lambda: dict(KEY), ([] if told is None else told).append)


class TestGetAndPut:
    def test_what_is_put_is_got(self, cache: EngineCache) -> None:
        assert cache.get(KEY) is None
        file = cache.put(KEY, PLAN, DESCRIPTION)
        found = cache.get(KEY)
        assert found is not None
        assert (found.file, found.plan) == (file, None)
        assert (found.manifest.key, found.manifest.submodule, found.manifest.arguments) == (KEY, "dit_model", (1,))
        read = cache.get(KEY, read=True)
        assert read is not None
        assert read.plan == PLAN
        assert [p.name.split("-")[0] for p in sorted(cache.folder.iterdir())] == ["dit_model"] * 2

    def test_another_key_is_another_engine(self, cache: EngineCache) -> None:
        cache.put(KEY, PLAN, DESCRIPTION)
        assert cache.get({**KEY, "versions": {"torch": "2.14.0"}}) is None

    def test_using_an_engine_marks_it(self, cache: EngineCache) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        os.utime(file.manifest, (1000, 1000))
        cache.get(KEY)
        assert cache.entry(cache.stems()[0]).used > time.time() - 60

    @pytest.mark.parametrize("read", [False, True])
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda e, m: e.write_bytes(PLAN[:5000] + b"!" + PLAN[5001:]), "its bytes differ"),
            (lambda e, m: e.write_bytes(PLAN[:-1]), "10239 bytes where 10240 were written"),
            (lambda e, m: e.write_bytes(PLAN + b"!"), "10241 bytes where 10240 were written"),
            (lambda e, m: e.unlink(), "cannot be read"),
            (lambda e, m: m.unlink(), "no manifest"),
            (lambda e, m: m.write_text(m.read_text()[:-40]), "not a readable manifest"),
            (lambda e, m: m.write_text("[" * 100_000), "not a readable manifest"),
            (lambda e, m: rewrite(m, key={**KEY, "route": "tensorrt"}), "built for something else"),
            (lambda e, m: rewrite(m, key={}), "built for something else"),
            (lambda e, m: rewrite(m, key=[1]), "fields are missing or unknown"),
            (lambda e, m: rewrite(m, schema=2), "manifest of schema 2"),
            (lambda e, m: rewrite(m, engine="../other.engine"), "its manifest describes"),
            (lambda e, m: rewrite(m, sha256="0" * 64), "its bytes differ"),
        ],
    )
    def test_anything_else_is_refused(self, cache: EngineCache, spoil: Any, message: str, read: bool) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        spoil(file.path, file.manifest)
        with pytest.raises(RecordError, match=message):
            cache.get(KEY, read=read)

    def test_an_engine_under_a_foreign_name_is_refused(self, cache: EngineCache) -> None:
        other = {**KEY, "weights_sha256": "cd" * 32}
        theirs = cache.put(other, PLAN, DESCRIPTION)
        ours = cache.put(KEY, PLAN, DESCRIPTION)
        theirs.path.replace(ours.path)
        theirs.manifest.replace(ours.manifest)
        with pytest.raises(RecordError, match="built for something else"):
            cache.get(KEY)
        rewrite(ours.manifest, engine=ours.path.name)
        with pytest.raises(RecordError, match="built for something else"):
            cache.get(KEY)

    @settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(at=st.integers(0, 10**6), byte=st.integers(0, 255))
    def test_no_byte_of_a_manifest_can_make_it_lie(self, cache: EngineCache, at: int, byte: int) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        written = read_manifest(file.manifest)
        text = bytearray(file.manifest.read_bytes())
        text[at % len(text)] = byte
        file.manifest.write_bytes(text)
        try:
            found = cache.get(KEY, read=True)
        except RecordError:
            return
        assert found is not None
        assert (found.manifest, found.plan) == (written, PLAN)


def rewrite(manifest: Path, **changed: Any) -> None:
    """Another manifest, not a damaged one: its checksum is right."""
    fields = {**json.loads(manifest.read_text()), **changed}
    del fields["checksum"]
    manifest.write_text(json.dumps({**fields, "checksum": checksum(fields)}))


class TestSlot:
    def test_without_a_cache_nothing_happens(self) -> None:
        nothing = slot(None)
        with nothing.reserved():
            assert nothing.find() is None
            assert nothing.keep(PLAN, DESCRIPTION) is None
        assert (nothing.key, nothing.notes) == (None, [])

    def test_builds_once(self, cache: EngineCache) -> None:
        first = slot(cache)
        with first.reserved():
            assert first.find() is None
            assert first.keep(PLAN, DESCRIPTION) is not None
        second = slot(cache)
        with second.reserved():
            assert second.find() is not None
        assert first.notes == second.notes == []

    def test_a_target_without_a_key_is_built_without_the_cache(self, cache: EngineCache) -> None:
        def no_key() -> dict[str, Any]:
            raise BackendError("dit_model.extra: a object has no description")

        without = Slot(cache, no_key, lambda phase: None)
        with without.reserved():
            assert without.find() is None
            assert without.keep(PLAN, DESCRIPTION) is None
        assert without.notes == ["The engine cache was not used: dit_model.extra: a object has no description."]
        assert not cache.folder.exists()

    def test_a_damaged_engine_is_replaced_and_noted(self, cache: EngineCache) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        file.path.write_bytes(PLAN[:-1])
        again = slot(cache)
        with again.reserved():
            assert again.find() is None
            again.keep(PLAN, DESCRIPTION)
        (note,) = again.notes
        assert note.startswith("The engine in the cache was not trusted, and built again: ")
        assert cache.get(KEY) is not None

    def test_a_full_disk_costs_only_the_copy(self, cache: EngineCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(descriptor: int, data: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(engine_files.os, "write", full)
        unlucky = slot(cache)
        with unlucky.reserved():
            assert unlucky.keep(PLAN, DESCRIPTION) is None
        assert "no space left on the device" in unlucky.notes[0]
        assert cache.stems() == []
        assert [path.suffix for path in cache.folder.iterdir()] == [".lock"]

    def test_a_read_only_cache_is_used_and_not_written(self, cache: EngineCache, monkeypatch: Any) -> None:
        cache.put(KEY, PLAN, DESCRIPTION)
        read_only(monkeypatch)
        reader = slot(cache)
        with reader.reserved():
            assert reader.find() is not None
            assert reader.keep(PLAN, DESCRIPTION) is None
        assert "Read-only file system" in reader.notes[0]

    @pytest.mark.parametrize("below", ["", "below"])
    def test_a_file_where_the_folder_should_be(self, tmp_path: Path, below: str) -> None:
        (tmp_path / "file").write_text("")
        unlucky = slot(EngineCache(tmp_path / "file" / below))
        with unlucky.reserved():
            assert unlucky.find() is None
            assert unlucky.keep(PLAN, DESCRIPTION) is None
        assert unlucky.notes
        assert all("built again" in note or "not in the cache" in note for note in unlucky.notes)


def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system")

    def open_to_read(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        return refuse() if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_to_read)
    for name in ("utime", "unlink", "replace", "link"):
        monkeypatch.setattr(os, name, refuse)
    monkeypatch.setattr(engine_files.tempfile, "NamedTemporaryFile", refuse)
    monkeypatch.setattr(engine_files.tempfile, "mkstemp", refuse)


def start(work: Callable[..., None], *args: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, args=args, daemon=True)
    process.start()
    return process


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def build_slowly(cache: EngineCache, log: Path, name: str) -> None:
    told: list[str] = []
    mine = slot(cache, told)
    with mine.reserved():
        found = mine.find(read=True)
        if found is None:
            (log / f"{name} began").touch()
            until(lambda: (log / "go on").exists())
            mine.keep(PLAN, DESCRIPTION)
        assert found is None or found.plan == PLAN
        (log / f"{name} {'found' if found else 'built'}").write_text(" ".join(told + mine.notes))


def hold(path: Path, ready: Path) -> None:
    with FileLock(path).acquire(timeout=10):
        ready.touch()
        time.sleep(60)


@needs_fork
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestProcesses:
    def test_two_that_start_at_once_build_one_engine(self, cache: EngineCache, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.mkdir()
        both = [start(build_slowly, cache, log, name) for name in ("one", "two")]
        until(lambda: any(log.glob("* began")))
        time.sleep(0.3)  # long enough for the other to come to the lock
        assert len(list(log.glob("* began"))) == 1
        (log / "go on").touch()
        for process in both:
            process.join(30)
            assert process.exitcode == 0
        (waited,) = log.glob("* found")
        (built,) = log.glob("* built")
        assert waited.read_text() == "waiting for another process that builds the same engine"
        assert built.read_text() == ""
        assert cache.get(KEY) is not None

    def test_a_killed_builder_leaves_no_lock(self, cache: EngineCache, tmp_path: Path) -> None:
        log = tmp_path / "log"
        log.mkdir()
        killed = start(build_slowly, cache, log, "killed")
        until(lambda: any(log.glob("* began")))
        os.kill(killed.pid, signal.SIGKILL)
        killed.join(30)
        assert killed.exitcode == -signal.SIGKILL
        (log / "go on").touch()
        build_slowly(cache, log, "next")
        assert (log / "next built").read_text() == ""

    def test_waiting_has_an_end(self, cache: EngineCache, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(engine_cache, "LOCK_TIMEOUT_S", 0.2)
        cache.folder.mkdir()
        told: list[str] = []
        mine = slot(cache, told)
        stem = stem_of(KEY)
        holder = start(hold, cache.folder / f".{stem}.lock", tmp_path / "ready")
        try:
            until((tmp_path / "ready").exists)
            with mine.reserved():
                assert mine.find() is None
                mine.keep(PLAN, DESCRIPTION)
            assert told == ["waiting for another process that builds the same engine"]
            assert "it was not waited for any longer" in mine.notes[0]
            assert cache.get(KEY) is not None  # whole files, lock or no lock
            assert not cache.remove(stem)
        finally:
            holder.kill()
            holder.join(30)
        assert cache.remove(stem)

    def test_a_lock_file_that_its_holder_removes_locks_nobody_out(self, cache: EngineCache) -> None:
        cache.folder.mkdir()
        path = cache.folder / ".stem.lock"

        def remove_while_waited_for() -> None:
            path.unlink()
            os.close(descriptor)

        import fcntl

        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with cache.lock("stem", timeout_s=10, waiting=remove_while_waited_for) as held:
            assert held
            assert path.exists()
            with pytest.raises(TimeoutError), cache.lock("stem", timeout_s=0):
                pass


@pytest.mark.parametrize("error", [OSError("no locks available"), NotImplementedError("no flock")])
def test_without_locks_in_the_system_engines_are_kept_all_the_same(
    cache: EngineCache, monkeypatch: Any, error: Exception
) -> None:
    def acquire(self: FileLock, *args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with cache.lock("stem", timeout_s=0) as held:
        assert not held
    mine = slot(cache)
    with mine.reserved():
        mine.keep(PLAN, DESCRIPTION)
    assert cache.get(KEY) is not None
    assert cache.remove(cache.stems()[0])


class TestFolder:
    def test_entries_are_told_apart(self, cache: EngineCache) -> None:
        whole = cache.put(KEY, PLAN, DESCRIPTION)
        (cache.folder / "lost.engine").write_bytes(b"x" * 7)
        (cache.folder / "stray.manifest.json").write_text(whole.manifest.read_text())
        (cache.folder / "readme.txt").write_text("not ours")
        entries = {stem: cache.entry(stem) for stem in cache.stems()}
        assert set(entries) == {whole.path.stem, "lost", "stray"}
        assert entries[whole.path.stem].damage is None
        assert entries[whole.path.stem].bytes == whole.bytes + whole.manifest.stat().st_size
        assert entries["lost"].damage == "no manifest, so its engine is not used"
        assert entries["lost"].bytes == 7
        assert entries["stray"].damage == "its key is not the one in its name"

    def test_a_quick_look_sees_sizes_only(self, cache: EngineCache) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        file.path.write_bytes(PLAN[:-1] + b"!")
        assert cache.entry(file.path.stem, every_byte=False).damage is None
        assert cache.entry(file.path.stem).damage == "its bytes differ from those that were written"
        file.path.write_bytes(PLAN[:-1])
        assert cache.entry(file.path.stem, every_byte=False).damage == "its engine is missing, or of another size"

    def test_removal_leaves_nothing_of_it(self, cache: EngineCache) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        with slot(cache).reserved():
            pass
        assert cache.remove(file.path.stem)
        assert list(cache.folder.iterdir()) == []

    def test_what_a_killed_writer_left_is_removed_once_it_is_old(self, cache: EngineCache) -> None:
        cache.folder.mkdir()
        old, new = (cache.folder / f".dit.engine-{name}.partial" for name in ("old", "new"))
        old.touch()
        new.touch()
        os.utime(old, (1000, 1000))
        assert cache.stems() == []
        cache.sweep()
        assert list(cache.folder.iterdir()) == [new]

    def test_there_is_none(self, cache: EngineCache) -> None:
        cache.sweep()
        assert cache.stems() == []

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(RecordError, match="not a readable folder"):
            EngineCache(tmp_path / "file").stems()


class TestPlacing:
    def test_shares_the_file(self, cache: EngineCache, tmp_path: Path) -> None:
        kept = cache.put(KEY, PLAN, DESCRIPTION)
        for _ in range(2):  # the second time onto the very same file
            placed = place_engine(kept, tmp_path / "out", "dit_model")
        assert placed.path.samefile(kept.path)
        assert verify(placed.path).key == KEY
        assert sorted(path.name for path in placed.path.parent.iterdir()) == [
            "dit_model.engine",
            "dit_model.manifest.json",
        ]

    def test_copies_where_it_cannot_share(self, cache: EngineCache, tmp_path: Path, monkeypatch: Any) -> None:
        def other_disk(*args: Any) -> None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        monkeypatch.setattr(os, "link", other_disk)
        kept = cache.put(KEY, PLAN, DESCRIPTION)
        placed = place_engine(kept, tmp_path / "out", "dit_model")
        assert not placed.path.samefile(kept.path)
        assert verify(placed.path).bytes == len(PLAN)

    def test_a_later_build_into_the_folder_leaves_the_kept_one_alone(self, cache: EngineCache, tmp_path: Path) -> None:
        place_engine(cache.put(KEY, PLAN, DESCRIPTION), tmp_path, "dit_model")
        engine_files.write_engine(tmp_path, "dit_model", b"other", description=DESCRIPTION)
        found = cache.get(KEY, read=True)
        assert found is not None
        assert found.plan == PLAN

    def test_a_full_disk_is_an_error_and_leaves_nothing(
        self, cache: EngineCache, tmp_path: Path, monkeypatch: Any
    ) -> None:
        def full(*args: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        kept = cache.put(KEY, PLAN, DESCRIPTION)
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(engine_files.shutil, "copyfile", full)
        with pytest.raises(RecordError, match="no space left on the device"):
            place_engine(kept, tmp_path / "out", "dit_model")
        assert list((tmp_path / "out").iterdir()) == []


class TestWhere:
    def test_the_setting_then_the_variable_then_the_user_s_cache(self, monkeypatch: Any, tmp_path: Path) -> None:
        def folder(setting: str | None = None) -> Path | None:
            found = open_cache(setting)
            return None if found is None else found.folder

        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setenv("GR00T_TRT_ENGINE_CACHE", "/somewhere")
        assert folder("mine") == Path("mine")
        assert folder("~/mine") == Path.home() / "mine"
        assert folder() == Path("/somewhere")
        assert folder("off") is folder("OFF") is None
        monkeypatch.setenv("GR00T_TRT_ENGINE_CACHE", "off")
        assert folder() is None
        monkeypatch.setenv("GR00T_TRT_ENGINE_CACHE", "")
        assert folder() == tmp_path / "gr00t_trt" / "engines"
        monkeypatch.delenv("GR00T_TRT_ENGINE_CACHE")
        assert folder() == tmp_path / "gr00t_trt" / "engines"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert folder() == Path.home() / ".cache" / "gr00t_trt" / "engines"

    def test_paths_of_an_entry(self, cache: EngineCache) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        assert (file.path, file.manifest) == engine_paths(cache.folder, cache.stems()[0])
