"""Compiled code in a file: found again by another process of the same versions, and left alone by any other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from gr00t_trt.errors import RecordError
from gr00t_trt.measure.compile_cache import HEAD, CompileCache, keep_in

CPU = torch.device("cpu")


def hits() -> int:
    return int(torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"])


def test_what_was_compiled_is_found_in_an_empty_folder(tmp_path: Path, monkeypatch) -> None:
    def work(x: torch.Tensor) -> torch.Tensor:
        return (x * 3 + 1).relu()

    cache = CompileCache(tmp_path / "cache.bin", CPU)
    assert cache.load() == "none was there: everything is compiled anew"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "first"))
    torch._dynamo.reset()
    expected = torch.compile(work)(torch.ones(5))
    assert cache.save() is None
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "second"))
    torch._dynamo.reset()
    assert CompileCache(tmp_path / "cache.bin", CPU).load().startswith("loaded, ")
    before = hits()
    assert torch.equal(torch.compile(work)(torch.ones(5)), expected)
    assert hits() == before + 1
    torch._dynamo.reset()


@pytest.fixture
def saved(tmp_path: Path, monkeypatch) -> Path:
    """A file of some bytes, whose loading is an error."""

    def load(artifacts: bytes) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (b"artifacts", None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    path = tmp_path / "cache.bin"
    assert CompileCache(path, CPU).save() is None
    assert path.read_bytes().endswith(b"\nartifacts")
    return path


def test_what_another_torch_or_gpu_made_is_left_alone(saved: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        made = json.loads(saved.read_bytes().split(b"\n")[0].removeprefix(HEAD))["torch"]
        assert CompileCache(saved, CPU).load() == f"ignored: it was made with torch {made}, not 9.9"
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    said = CompileCache(saved, torch.device("cuda")).load()
    assert said == "ignored: it was made with gpu none, not NVIDIA H100 80GB HBM3"


@pytest.mark.parametrize("content", [b"", b"\x80\x05junk", HEAD + b"{}", HEAD + b"[1]\nx", HEAD + b"{\nx"])
def test_a_file_that_is_no_cache_is_ignored(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    assert CompileCache(saved, CPU).load().startswith("ignored: it ")


def test_damaged_artifacts_cost_no_more_than_compiling(saved: Path) -> None:
    assert CompileCache(saved, CPU).load() == "ignored: it cannot be loaded: AssertionError"


def test_a_file_above_what_can_be_carried_is_written_and_told(saved: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (bytes(17 * 10**6), None))
    assert CompileCache(saved, CPU).save() == "the file has 17.0 MB, above the 16 MB it is meant to have"
    assert saved.stat().st_size > 17 * 10**6
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: None)
    assert CompileCache(saved, CPU).save() is None


def test_a_place_that_cannot_be_written_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="a folder, not a file"):
        CompileCache(tmp_path, CPU)


def test_compilers_keep_theirs_in_one_folder_unless_told_otherwise(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", "elsewhere")
    keep_in(tmp_path)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "inductor")
    assert os.environ["TRITON_CACHE_DIR"] == "elsewhere"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
