"""An engine is code that runs with our rights: what somebody else may have put into the cache is not used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from test_engine_cache import DESCRIPTION, KEY, PLAN, slot

from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.errors import RecordError


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


needs_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")


class TestTrust:
    def test_the_folder_is_made_for_this_user_alone(self, cache: EngineCache) -> None:
        cache.put(KEY, PLAN, DESCRIPTION)
        assert cache.folder.stat().st_mode & 0o777 == 0o700
        with cache.lock("other", timeout_s=1) as locked:
            assert locked

    @pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
    def test_a_folder_that_others_can_write_to_is_not_used(self, cache: EngineCache, mode: int) -> None:
        cache.put(KEY, PLAN, DESCRIPTION)
        cache.folder.chmod(mode)
        for ask in (lambda: cache.get(KEY), lambda: cache.put(KEY, PLAN, DESCRIPTION)):
            with pytest.raises(RecordError, match=f"others may write to it .mode {mode:04o}"):
                ask()
        with cache.lock("dit_model", timeout_s=1) as locked:
            assert not locked  # the lock's file may be a link to anywhere
        assert "others may write" in str(cache.entry(cache.stems()[0]).damage)
        cache.folder.chmod(0o755)  # as folders of an earlier version are
        assert cache.get(KEY) is not None

    @pytest.mark.parametrize("which", [0, 1])
    def test_a_file_that_others_can_write_to_is_not_used(self, cache: EngineCache, which: int) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        (file.path, file.manifest)[which].chmod(0o666)
        with pytest.raises(RecordError, match="others may write to it"):
            cache.get(KEY)

    @needs_root
    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_what_belongs_to_somebody_else_is_not_used(self, cache: EngineCache, which: int) -> None:
        file = cache.put(KEY, PLAN, DESCRIPTION)
        os.chown((cache.folder, file.path, file.manifest)[which], 65534, 65534)
        with pytest.raises(RecordError, match="it belongs to user 65534, and this is user 0"):
            cache.get(KEY)

    def test_that_is_said_once_for_all_engines(self, cache: EngineCache) -> None:
        cache.put(KEY, PLAN, DESCRIPTION)
        cache.folder.chmod(0o777)
        slots = [slot(cache), slot(cache)]
        for each in slots:
            with each.reserved():
                assert each.find() is None
                assert each.keep(PLAN, DESCRIPTION) is None
        assert [len(each.notes) for each in slots] == [2, 0]
        assert "was not trusted, and built again" in slots[0].notes[0]
