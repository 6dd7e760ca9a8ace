"""Kept engines by the command itself, on the real observation: built once, by one process, and verified on use."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from gr00t_trt.backends.tensorrt import network as trt_network
from gr00t_trt.backends.torch_tensorrt import engine as trt_build
from gr00t_trt.engines import program as engines
from gr00t_trt.engines.cache import EngineCache
from gr00t_trt.engines.files import engine_paths, verify
from gr00t_trt.plans.backends import get_backend
from gr00t_trt.record.files import read_record
from gr00t_trt.record.result import Result
from gr00t_trt.run.program import main

ROOT = Path(__file__).resolve().parents[2]
BUILT = ("state_encoder", "action_encoder", "action_decoder")
PLAN = """\
precision: fp16
submodules: {vl_components: {backend: eager}, dit_model: {backend: eager}}  # which take longer to build
"""
WAITING = "waiting for another process that builds the same engine"

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU"),
    pytest.mark.filterwarnings("ignore"),
]


class Kept:
    """One backend's cache, and the command line that fills it."""

    def __init__(self, backend: str, demo: Path, folder: Path):
        self.backend, self.demo, self.folder = backend, demo, folder
        self.cache = EngineCache(folder / "cache")
        (folder / "plan.yaml").write_text(PLAN)

    def flags(self, name: str) -> list[str]:
        """The command's flags; engines and record of the run get this name."""
        return (
            f"--model_path synthetic --dataset_path {self.demo} --config {self.folder / 'plan.yaml'} "
            f"--backend {self.backend} --fn_name action_head --benchmark python_timer --num_iterations 1 "
            f"--warmup_iterations 0 --engine_cache {self.cache.folder} --engine_dir {self.folder / name} "
            f"--record {self.folder / name}.json"
        ).split()

    def run(self, name: str) -> dict[str, Result]:
        assert main(self.flags(name)) == 0
        return self.entries(name)

    def entries(self, name: str) -> dict[str, Result]:
        """The record's results of the three submodules that get an engine, each of which must be whole."""
        record = read_record(self.folder / f"{name}.json")
        found = {entry.subject: entry for entry in record.submodules if entry.subject in BUILT}
        assert list(found) == list(BUILT)
        for submodule, entry in found.items():
            manifest = verify(self.folder / name / f"{submodule}.engine")
            assert (entry.candidate.backend, entry.passed) == (self.backend, True)
            assert (entry.build.engine_bytes, entry.build.layers_before) == (manifest.bytes, manifest.layers)
            assert manifest.layers
        return found


@pytest.fixture(scope="module", params=["torch_tensorrt", "tensorrt"])
def first(request: pytest.FixtureRequest, demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    available = get_backend(request.param).availability()
    if not available.installed or "tensorrt_rtx" not in available.versions:
        pytest.skip("only TensorRT-RTX builds engines without a GPU")
    kept = Kept(request.param, demo, tmp_path_factory.mktemp(request.param))
    assert not any(entry.build.from_cache for entry in kept.run("first").values())
    return kept


@pytest.fixture
def kept(first: Kept, demo: Path, tmp_path: Path) -> Kept:
    """The first run's cache, for one test to do with as it likes."""
    shutil.copytree(first.cache.folder, tmp_path / "cache")
    return Kept(first.backend, demo, tmp_path)


def forbid_building(patch: pytest.MonkeyPatch) -> None:
    for module in (trt_build, trt_network):
        patch.setattr(module, "build_engine", lambda *_: pytest.fail("an engine was built"))


def test_a_second_run_builds_nothing(first: Kept, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_building(monkeypatch)
    again = kept.run("second")
    assert all(entry.build.from_cache for entry in again.values())
    for name, before in first.entries("first").items():
        for same in ("engine_bytes", "layers_before", "coverage_percent", "settings"):
            assert getattr(again[name].build, same) == getattr(before.build, same)
        assert again[name].accuracy == before.accuracy
        engine = kept.folder / "second" / f"{name}.engine"
        assert verify(engine).sha256 == verify(Path(before.build.engine_path)).sha256


def test_one_changed_byte_costs_that_engine_its_trust(kept: Kept, capsys: pytest.CaptureFixture) -> None:
    stem = next(stem for stem in kept.cache.stems() if stem.startswith("action_encoder"))
    engine, _ = engine_paths(kept.cache.folder, stem)
    with engine.open("r+b") as file:
        file.seek(engine.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    assert engines.main(["list", "--engine_cache", str(kept.cache.folder)]) == 1
    again = kept.run("again")
    assert {name: entry.build.from_cache for name, entry in again.items()} == {
        "state_encoder": True,
        "action_encoder": False,
        "action_decoder": True,
    }
    assert any("was not trusted, and built again" in note for note in again["action_encoder"].notes)
    capsys.readouterr()
    assert engines.main(["list", "--engine_cache", str(kept.cache.folder), "--json"]) == 0
    assert {row["status"] for row in json.loads(capsys.readouterr().out)} == {"valid"}


def test_two_processes_at_once_build_each_engine_once(kept: Kept) -> None:
    if kept.backend != "torch_tensorrt":
        pytest.skip("the lock is the cache's own, and one backend is enough to try it with")
    stems = kept.cache.stems()
    assert engines.main(["prune", "--all", "--engine_cache", str(kept.cache.folder)]) == 0
    assert kept.cache.stems() == []
    names = ("one", "two")
    with ExitStack() as stack:
        held = stack.enter_context(ExitStack())
        for stem in stems:
            held.enter_context(kept.cache.lock(stem, timeout_s=0))
        logs = {name: stack.enter_context((kept.folder / f"{name}.log").open("w")) for name in names}
        both = {
            name: subprocess.Popen(
                [sys.executable, str(ROOT / "run_groot_torchtrt.py"), *kept.flags(name)],
                cwd=kept.folder, stdout=subprocess.DEVNULL, stderr=logs[name],
            )
            for name in names
        }  # fmt: skip
        for process in both.values():
            stack.callback(process.kill)
        deadline = time.monotonic() + 120
        while not all(WAITING in (kept.folder / f"{name}.log").read_text() for name in names):
            assert time.monotonic() < deadline
            assert all(process.poll() is None for process in both.values())
            time.sleep(0.1)
        held.close()  # both stand before the same engine, and now one of them may build it
        for name, process in both.items():
            assert process.wait(timeout=120) == 0, (kept.folder / f"{name}.log").read_text()
    one, two = (kept.entries(name) for name in names)
    for submodule in BUILT:
        assert one[submodule].build.from_cache != two[submodule].build.from_cache, submodule
        assert len({verify(kept.folder / name / f"{submodule}.engine").sha256 for name in names}) == 1
    assert kept.cache.stems() == stems
    assert all(kept.cache.entry(stem).damage is None for stem in stems)
