"""Records: written whole or not at all, honest about what is missing, and light to import."""

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gr00t_trt.errors import RecordError
from gr00t_trt.record import environment, records

ROOT = Path(__file__).parents[2]


def sample(**extra):
    return {**records.new_record("run.py --x", device="cpu", workload={"views": 1}), **extra}


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("module", ["record.records", "record.environment", "report", "common.progress", "plans"])
def test_importing_stays_light(module):
    code = f"import sys, gr00t_trt.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- what a new record holds


def test_unmeasured_is_null_not_zero():
    record = sample()
    assert record["schema"] == 1
    assert record["workload"] == {**dict.fromkeys(records.WORKLOAD_FIELDS), "views": 1}
    assert set(record["end_to_end"].values()) == {None}
    assert record["accuracy"]["normalised"] is None
    assert record["wall_s"] is None
    entry = records.submodule_entry("dit_model", "eager", "fp32")
    assert {v for k, v in entry.items() if k not in ("name", "backend", "precision", "notes", "failures")} == {None}


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="submodule entry has no field latency"):
        records.submodule_entry("dit_model", "eager", "fp32", latency=1)
    with pytest.raises(TypeError, match="stage entry has no field p50"):
        records.stage_entry("dit_model", p50=1)
    with pytest.raises(TypeError, match="workload entry has no field batch"):
        records.new_record("x", workload={"batch": 1})


def test_a_built_submodule_fills_its_entry():
    coverage = SimpleNamespace(operators=10, converted=9, percent=90.0, engines=2, unsupported={"aten.x": 1})
    engine = SimpleNamespace(path=Path("engines/dit.engine"))
    built = SimpleNamespace(
        coverage=coverage, engine=engine, engine_bytes=7, runs=False, build_s=1.5,
        phases_s={"export": 1.0}, settings={"min_block_size": 1}, notes=("built, not run",), from_cache=True,
        layers_before=20, layers_after=None,
    )  # fmt: skip
    entry = records.submodule_entry("dit_model", "torch_tensorrt", "fp16", **records.built_fields(built))
    assert (entry["operators"], entry["coverage_percent"], entry["engines"]) == (10, 90.0, 2)
    assert entry["engine_path"] == str(Path("engines/dit.engine"))
    assert entry["runs"] is False
    assert (entry["layers_before"], entry["layers_after"]) == (20, None)
    assert entry["notes"] == ["built, not run"]
    bare = SimpleNamespace(**{**vars(built), "coverage": None, "engine": None, "engine_bytes": None})
    assert records.built_fields(bare)["coverage_percent"] is None


def test_built_fields_cover_what_backends_give():
    from gr00t_trt.backends.base import Built

    given = {field.name for field in dataclasses.fields(Built)} - {"call"}
    assert given == {
        "runs",
        "build_s",
        "phases_s",
        "coverage",
        "engine",
        "engine_bytes",
        "layers_before",
        "layers_after",
        "settings",
        "notes",
        "from_cache",
    }


def test_skipping_twice_is_said_once():
    record = sample()
    for _ in range(2):
        records.skip(record, "latency", "no GPU")
    assert record["skipped"] == [{"what": "latency", "why": "no GPU"}]


# --- the machine


def test_environment_without_a_gpu(monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *_: None)
    found = environment.environment()
    assert found["gpu"] is None
    assert found["sm"] is None
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["distributions"]["numpy"] == np.__version__
    assert found["distributions"]["tensorrt-cu12"] is None or isinstance(found["distributions"]["tensorrt-cu12"], str)


def test_environment_reads_nvidia_smi(monkeypatch):
    asked = []

    def answer(command, env=None):
        asked.append(command)
        return "NVIDIA H200, 9.0, 570.1, 143771, 345, 1980, 3201, [N/A]\n"

    monkeypatch.setattr(environment, "_output", answer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    found = environment.environment(device_index=1)
    assert asked[0][-2:] == ("-i", "GPU-abc")
    assert (found["gpu"], found["sm"], found["driver"]) == ("NVIDIA H200", 90, "570.1")
    assert found["gpu_memory_bytes"] == 143771 * 2**20
    assert (found["sm_clock_mhz"], found["max_sm_clock_mhz"], found["power_limit_w"]) == (345.0, 1980.0, None)
    assert environment.environment(device_index=2)["gpu"] is None


@pytest.mark.parametrize("text", ["", "No devices were found\n", "a,b\n"])
def test_environment_survives_odd_answers(monkeypatch, text):
    monkeypatch.setattr(environment, "_output", lambda *_: text)
    assert environment.environment()["gpu"] is None


def test_no_host_and_no_user_is_recorded(tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada"
    monkeypatch.setenv("HOME", str(home))
    record = sample(command=f"run.py --model_path {home}/models --x={home}", model={"path": home / "m", "config": None})
    text = records.dumps(record)
    assert str(home) not in text
    assert json.loads(text)["command"] == "run.py --model_path ~/models --x=~"
    assert os.uname().nodename not in json.dumps(record["environment"]) or len(os.uname().nodename) < 4


def git(folder, *args):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, "-C", str(folder), *args], check=True, capture_output=True)


def test_git_state(tmp_path, monkeypatch):
    nothing = {"commit": None, "dirty": None}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state(tmp_path) == nothing
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    assert environment.git_state(tmp_path) == nothing
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a", "--no-verify")
    clean = environment.git_state(tmp_path)
    assert len(clean["commit"]) == 40
    assert clean["dirty"] is False
    (tmp_path / "b").write_text("b")
    assert environment.git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}
    (tmp_path / ".gitignore").write_text("venv\n")
    (tmp_path / "venv").mkdir()
    assert environment.git_state(tmp_path / "venv") == nothing
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(tmp_path) == nothing


# --- writing


def test_round_trip(tmp_path):
    record = sample(wall_s=1.25, model={"path": Path("m"), "config": {"layers": np.int64(12)}})
    record["submodules"].append(
        records.submodule_entry("dit_model", "eager", "fp16", build_s=np.float32(0.5), runs=True)
    )
    path = records.write_record(record, tmp_path / "new" / "folder" / "r.json")
    back = records.read_record(path)
    assert back["wall_s"] == 1.25
    assert back["model"] == {"path": "m", "config": {"layers": 12}}
    assert back["submodules"][0]["build_s"] == 0.5
    assert back["submodules"][0]["latency_ms"] is None
    assert leftovers(path.parent) == ["r.json"]
    assert list(back) == list(record)


def test_nan_and_infinity_become_null_and_are_named(tmp_path):
    record = sample()
    record["submodules"].append(
        records.submodule_entry("dit_model", "eager", "fp16", accuracy={"max_abs": float("nan")})
    )
    record["end_to_end"]["first_call_ms"] = np.float32("inf")
    back = records.read_record(records.write_record(record, tmp_path / "r.json"))
    assert back["submodules"][0]["accuracy"]["max_abs"] is None
    assert back["end_to_end"]["first_call_ms"] is None
    assert back["non_finite"] == [
        {"at": "submodules[0].accuracy.max_abs", "value": "nan"},
        {"at": "end_to_end.first_call_ms", "value": "inf"},
    ]
    assert record["non_finite"] == []


def test_values_without_a_form_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"record: plan\.x: a object has no form in JSON"):
        records.write_record(sample(plan={"x": object()}), tmp_path / "r.json")
    assert leftovers(tmp_path) == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch, function):
    path = tmp_path / "r.json"
    path.write_text("old")
    monkeypatch.setattr(records.os, function, full_disk)
    with pytest.raises(RecordError, match=r"r\.json: the record cannot be written: No space left on device"):
        records.write_record(sample(), path)
    assert leftovers(tmp_path) == ["r.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, function):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(records.os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        records.write_record(sample(), tmp_path / "r.json")
    assert leftovers(tmp_path) == []


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(RecordError, match="a folder, not a file"):
        records.write_record(sample(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="the record cannot be written"):
        records.write_record(sample(), tmp_path / "file" / "r.json")
    with pytest.raises(RecordError, match="the record cannot be written"):
        records.write_record(sample(), tmp_path / ("x" * 300))
    assert leftovers(tmp_path) == ["file"]
    with pytest.raises(RecordError, match="the record cannot be written"):
        records.prepare_record(f"{tmp_path}/a\0b")


@pytest.mark.parametrize("write", [records.prepare_record, lambda path: records.write_record(sample(), path)])
def test_devices_and_links_are_not_replaced(tmp_path, write):
    link = tmp_path / "latest.json"
    link.symlink_to("/dev/null")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (link, pipe):
        with pytest.raises(RecordError, match=r"a link or a device[\s\S]*--json"):
            write(path)
    assert link.is_symlink()
    assert leftovers(tmp_path) == ["latest.json", "pipe"]


def test_default_path_names_time_and_subject_and_is_free(tmp_path, monkeypatch):
    path = records.default_record_path(tmp_path, "fp16: all/../x")
    assert path.parent == tmp_path / "records"
    assert path.name.endswith("Z-fp16-all-..-x.json")
    taken = [True, True]
    monkeypatch.setattr(Path, "exists", lambda self: bool(taken) and taken.pop())
    assert records.default_record_path(tmp_path, "a").name.endswith("Z-a-3.json")
    assert records.default_record_path(tmp_path, "///").name.endswith("Z-run.json")


# --- reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a record: Expecting value"),
        ("[1]", "it has no schema number"),
        ('{"schema": 2}', "schema 2 is not known to this release\n  known: schema 1"),
        ('{"schema": 1}', "created_utc is missing"),
        ('{"schema": NaN}', "NaN is not JSON"),
        ("\x00", "not a record"),
    ],
)
def test_files_that_are_no_record(tmp_path, text, words):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        records.read_record(path)
    assert words in str(caught.value)


def test_misshapen_fields(tmp_path):
    path = tmp_path / "r.json"
    for change, words in (
        ({"submodules": {}}, "submodules is a dict"),
        ({"comparison": None}, "comparison is a NoneType"),
        ({"measurements": 3}, "measurements is a int"),
        ({"stages": [{}]}, r"stages\[0\] has no stage"),
    ):
        path.write_text(json.dumps({**sample(), **change}))
        with pytest.raises(RecordError, match=words):
            records.read_record(path)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(RecordError, match="no such record"):
        records.read_record(tmp_path / "none.json")
    with pytest.raises(RecordError, match="the record cannot be read"):
        records.read_record(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="not a record"):
        records.read_record(tmp_path / "b")
