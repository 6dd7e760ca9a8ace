"""`gr00t-trt engines`: what it shows of the kept engines, and what it removes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.key import SCHEMA, source_hash
from gr00t_trt.engines.manifest import Binding, Description, EngineFile, this_platform
from gr00t_trt.engines.program import main
from gr00t_trt.plans.backends import get_backend

DAY = 86400.0

NOTHING = Description(
    inputs=(),
    outputs=(),
    compute_capabilities=(),
    versions={},
    options={},
    settings={},
    weights_sha256="",
    executed=True,
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    monkeypatch.setenv("GR00T_TRT_ENGINE_CACHE", str(tmp_path / "engines"))
    return EngineCache(tmp_path / "engines")


def keep(cache: EngineCache, name: str, *, days: float = 0, size: int = 1000, **changed: Any) -> EngineFile:
    """An engine in the cache, as this package builds it here but for its bytes; last used `days` ago."""
    key = {
        "schema": SCHEMA,
        "route": "torch_tensorrt",
        "submodule": name,
        "source_sha256": source_hash(),
        "gpu": "NVIDIA H200 (9.0)",
        "versions": get_backend("torch_tensorrt").availability().versions,
        "platform": this_platform(),
        **changed,
    }
    inputs = (
        Binding("timestep", "int64", (1,), (1,), (8,)),
        Binding("hidden", "float16", (1, 49, 32), (1, 49, 32), (8, 49, 32)),
    )
    file = cache.put(key, bytes(size), replace(NOTHING, inputs=inputs, versions=key["versions"]))
    used = time.time() - days * DAY
    os.utime(file.manifest, (used, used))
    return file


def listed(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, dict[str, Any]]]:
    capsys.readouterr()
    status = main([*argv, "--json"])
    return status, {row["submodule"] or row["name"]: row for row in json.loads(capsys.readouterr().out)}


def names(cache: EngineCache) -> list[str]:
    return [stem.split("-")[0] for stem in cache.stems()]


class TestList:
    def test_an_empty_cache(self, cache: EngineCache, capsys: Any) -> None:
        assert main(["list"]) == 0
        assert capsys.readouterr().out == f"0 engines, 0.00 GB in {cache.folder}\n"
        assert listed(capsys, "list") == (0, {})

    def test_what_each_is_and_whether_it_can_be_used(self, cache: EngineCache, capsys: Any) -> None:
        keep(cache, "dit_model", days=2)
        keep(cache, "vl_components", versions={"torch": "2.9.0"})
        keep(cache, "state_encoder", source_sha256="0" * 64, platform="linux-riscv64")
        status, rows = listed(capsys, "list")
        assert status == 0
        assert {name: row["status"] for name, row in rows.items()} == {
            "dit_model": "valid",
            "vl_components": "other version",
            "state_encoder": "other version",
        }
        row = rows["dit_model"]
        assert (row["route"], row["precision"], row["gpu"]) == ("torch_tensorrt", "fp16", "NVIDIA H200 (9.0)")
        assert row["inputs"] == {"timestep": "1..8", "hidden": "1..8x49x32"}
        assert row["why"] is None
        assert row["bytes"] > 1000
        assert rows["vl_components"]["why"].startswith("other ")
        assert "torch" in rows["vl_components"]["why"]
        assert rows["state_encoder"]["why"] == "other gr00t_trt, platform"
        assert main(["list"]) == 0
        table = capsys.readouterr().out
        for text in ("dit_model", "torch_tensorrt fp16", "hidden 1..8x49x32", "NVIDIA H200 (9.0)", "2 d", "valid"):
            assert text in table
        assert table.splitlines()[-1].startswith("3 engines, 0.00 GB in ")

    def test_a_damaged_one_is_a_failed_check(self, cache: EngineCache, capsys: Any) -> None:
        keep(cache, "dit_model").path.write_bytes(b"!" * 1000)
        (cache.folder / "lost.engine").write_bytes(b"x")
        status, rows = listed(capsys, "list")
        assert status == 1
        assert sorted((row["status"], row["why"]) for row in rows.values()) == [
            ("damaged", "its bytes differ from those that were written"),
            ("damaged", "no manifest, so its engine is not used"),
        ]
        assert main(["list"]) == 1
        assert "damaged: no manifest" in " ".join(capsys.readouterr().out.split())

    def test_a_manifest_that_somebody_made_up(self, cache: EngineCache, capsys: Any) -> None:
        cache.put({"submodule": "odd", "versions": [1]}, b"x", replace(NOTHING, created="yesterday"))
        status, rows = listed(capsys, "list")
        assert (status, rows["odd"]["status"]) == (0, "other version")
        assert main(["list"]) == 0

    def test_another_folder(self, cache: EngineCache, tmp_path: Path, capsys: Any) -> None:
        keep(EngineCache(tmp_path / "other"), "dit_model")
        assert list(listed(capsys, "list", "--engine-cache", str(tmp_path / "other"))[1]) == ["dit_model"]


class TestPrune:
    def test_by_age(self, cache: EngineCache, capsys: Any) -> None:
        keep(cache, "dit_model", days=1)
        keep(cache, "vl_components", days=31)
        assert main(["prune", "--older_than", "30", "--dry_run"]) == 0
        assert "would be removed: 1 engine, 0.00 GB; left: 1 engine, 0.00 GB" in capsys.readouterr().out
        assert names(cache) == ["dit_model", "vl_components"]
        assert main(["prune", "--older_than", "30"]) == 0
        assert "removed: 1 engine" in capsys.readouterr().out
        assert names(cache) == ["dit_model"]

    def test_by_size_the_least_recently_used_first(self, cache: EngineCache) -> None:
        for days, (name, size) in enumerate({"dit_model": 15, "vl_components": 10, "state_encoder": 3}.items()):
            keep(cache, name, days=days, size=size * 100_000)
        assert main(["prune", "--max_gb", "0.0026"]) == 0
        assert names(cache) == ["dit_model", "vl_components"]
        assert main(["prune", "--max_gb", "0.002"]) == 0
        assert names(cache) == ["dit_model"]
        assert main(["prune", "--max_gb", "0"]) == 0
        assert names(cache) == []

    def test_damaged_and_of_other_versions(self, cache: EngineCache) -> None:
        keep(cache, "dit_model")
        keep(cache, "vl_components", versions={})
        keep(cache, "state_encoder").path.write_bytes(b"!" * 1000)
        assert main(["prune", "--damaged"]) == 0
        assert names(cache) == ["dit_model", "vl_components"]
        assert main(["prune", "--other-versions"]) == 0
        assert names(cache) == ["dit_model"]

    def test_everything_with_what_a_killed_process_left(self, cache: EngineCache, capsys: Any) -> None:
        keep(cache, "dit_model")
        left = cache.folder / ".dit_model.engine-abc.partial"
        left.touch()
        os.utime(left, (1000, 1000))
        status, rows = listed(capsys, "prune", "--all")
        assert (status, list(rows)) == (0, ["dit_model"])
        assert list(cache.folder.iterdir()) == []

    def test_one_that_is_being_built_or_read_stays(self, cache: EngineCache, capsys: Any) -> None:
        file = keep(cache, "dit_model")
        with cache.lock(file.path.stem, timeout_s=0):
            assert main(["prune", "--all"]) == 0
        said = capsys.readouterr()
        assert "in use by another process, and left" in said.err
        assert "removed: 0 engines, 0.00 GB; left: 1 engine" in said.out
        assert names(cache) == ["dit_model"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["lst"], "did you mean list?"),
        (["prune"], "nothing was said about what to remove"),
        (["list", "--all"], "--all belongs to prune"),
        (["list", "--dry_run"], "--dry_run belongs to prune"),
        (["prune", "--max_gb", "-1"], "--max_gb: -1.0 is out of range"),
        (["prune", "--older_than", "nan"], "--older_than: nan is out of range"),
        (["prune", "--older_then", "3"], "did you mean --older_than?"),
        (["prune", "--max_gb", "ten"], "--max_gb: 'ten' is not a number"),
        (["list", "--engine_cache", "off"], "the engine cache is off"),
        (["list", "--engine_cache", __file__], "not a readable folder"),
        ([], "missing: list|prune"),
    ],
)
def test_bad_input(argv: list[str], message: str, cache: EngineCache, capsys: Any) -> None:
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_help_teaches(capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for word in ("--older_than 30", "--max_gb 20", "other version", "exit status", "GR00T_TRT_ENGINE_CACHE"):
        assert word in text


def test_a_full_stdout_is_told(cache: EngineCache, monkeypatch: Any, capsys: Any) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["list"]) == 2
    assert "stdout cannot be written: No space left on device" in capsys.readouterr().err
