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

from gr00t_trt.common import files as whole_files
from gr00t_trt.errors import RecordError
from gr00t_trt.record import environment, files
from gr00t_trt.record.environment import Git
from gr00t_trt.record.result import Agreement, Build, Candidate, Result, Status
from gr00t_trt.record.schema import Inputs, ModelInfo, Record, Skipped, StageTime, new_record

ROOT = Path(__file__).parents[2]


def sample(**extra):
    return dataclasses.replace(new_record("run.py --x", device="cpu", inputs=Inputs(views=1)), **extra)


def written(value):
    """As it stands in a file."""
    return json.loads(files.dumps(value))


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize(
    "module",
    [
        *(f"record.{name}" for name in ("schema", "schema1", "files", "numbers", "samples", "environment")),
        *(f"report.{name}" for name in ("program", "terminal", "markdown", "png")),
        "common.progress",
        "plans.load",
        "plans.resolve",
    ],
)
def test_importing_stays_light(module):
    code = f"import sys, gr00t_trt.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


# --- what a new record holds


def test_unmeasured_is_null_not_zero():
    record = written(sample())
    assert record["schema"] == 2
    assert record["inputs"] == {**dict.fromkeys(field.name for field in dataclasses.fields(Inputs)), "views": 1}
    assert record["results"] == []
    assert record["drift"] is None
    assert record["wall_s"] is None
    entry = written(Result("run", "eager", "dit_model", Candidate("eager", "fp32")))
    named = ("group", "name", "subject", "candidate", "status", "failures", "notes", "stages_ms")
    assert {v for k, v in entry.items() if k not in named} == {None}
    empty = ("phases_s", "unsupported", "settings", "arguments", "from_cache")
    assert {v for k, v in written(Build()).items() if k not in empty} == {None}


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'latency'"):
        Result("run", "eager", "dit_model", latency=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'p50'"):
        StageTime("dit_model", p50=1)
    with pytest.raises(TypeError, match="unexpected keyword argument 'batch'"):
        new_record("x", inputs=Inputs(batch=1))


def test_a_built_submodule_fills_its_entry():
    from gr00t_trt.backends.base import Built
    from gr00t_trt.engines.manifest import Coverage, EngineFile
    from gr00t_trt.measure.harness import Harness
    from gr00t_trt.measure.results import build_of

    built = Built(
        call=print, coverage=Coverage(10, 9, 2, {"aten.x": 1}), engine_bytes=7, runs=False, build_s=1.5,
        engine=EngineFile(Path("engines/dit.engine"), Path("engines/dit.json"), 7), phases_s={"export": 1.0},
        settings={"min_block_size": 1}, notes=("built, not run",), from_cache=True, layers_before=20,
    )  # fmt: skip
    target = SimpleNamespace(name="dit_model", argument_names=(), inputs=(), ranges=())
    own = SimpleNamespace(backend="torch_tensorrt", precision="fp16", gate=None)
    part = SimpleNamespace(
        target=target, resolved=own, built=built, peak_bytes=None, agreement=None, failures=(), is_baseline=False,
        quantized=None,
    )  # fmt: skip
    plan = SimpleNamespace(optimizations=(), loop="submodules")
    base = SimpleNamespace(plan=plan, reference=SimpleNamespace(base=SimpleNamespace(workload=None)))
    result = Harness.part_result(base, part)
    assert result.build == Build(
        seconds=1.5, phases_s={"export": 1.0}, from_cache=True, operators=10, converted=9, coverage_percent=90.0,
        engines=2, unsupported={"aten.x": 1}, layers_before=20, layers_after=None, engine_bytes=7,
        engine_path=str(Path("engines/dit.engine")), settings={"min_block_size": 1},
    )  # fmt: skip
    assert result.status is Status.BUILT_NOT_RUN
    assert result.notes == ("built, not run",)
    bare = dataclasses.replace(built, coverage=None, engine=None, engine_bytes=None)
    assert build_of(bare).coverage_percent is None


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
        record.skip("latency", "no GPU")
    assert record.skipped == [Skipped("latency", "no GPU")]


# --- the machine


def test_environment_without_a_gpu(monkeypatch):
    monkeypatch.setattr(environment, "_output", lambda *_: None)
    found = environment.environment()
    assert found.gpu is None
    assert found.sm is None
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.distributions["numpy"] == np.__version__
    assert found.distributions["tensorrt-cu12"] is None or isinstance(found.distributions["tensorrt-cu12"], str)


def test_environment_reads_nvidia_smi(monkeypatch):
    asked = []

    def answer(command, env=None):
        asked.append(command)
        return "NVIDIA H200, 9.0, 570.1, 143771, 345, 1980, 3201, [N/A]\n"

    monkeypatch.setattr(environment, "_output", answer)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-abc")
    found = environment.environment("cuda:1")
    assert asked[0][-2:] == ("-i", "GPU-abc")
    assert (found.gpu, found.sm, found.driver) == ("NVIDIA H200", 90, "570.1")
    assert found.gpu_memory_bytes == 143771 * 2**20
    assert (found.sm_clock_mhz, found.max_sm_clock_mhz, found.power_limit_w) == (345.0, 1980.0, None)
    assert environment.environment("cuda:2").gpu is None


@pytest.mark.parametrize("text", ["", "No devices were found\n", "a,b\n"])
def test_environment_survives_odd_answers(monkeypatch, text):
    monkeypatch.setattr(environment, "_output", lambda *_: text)
    assert environment.environment().gpu is None


def test_no_host_and_no_user_is_recorded(tmp_path, monkeypatch):
    home = tmp_path / "home" / "ada"
    monkeypatch.setenv("HOME", str(home))
    record = sample(command=f"run.py --model_path {home}/models --x={home}", model=ModelInfo(str(home / "m")))
    text = files.dumps(record)
    assert str(home) not in text
    assert json.loads(text)["command"] == "run.py --model_path ~/models --x=~"
    assert os.uname().nodename not in files.dumps(record.environment) or len(os.uname().nodename) < 4


def git(folder, *args):
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, "-C", str(folder), *args], check=True, capture_output=True)


def test_git_state(tmp_path, monkeypatch):
    nothing = Git()
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_state(tmp_path) == nothing
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    assert environment.git_state(tmp_path) == nothing
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a", "--no-verify")
    clean = environment.git_state(tmp_path)
    assert len(clean.commit) == 40
    assert clean.dirty is False
    (tmp_path / "b").write_text("b")
    assert environment.git_state(tmp_path) == Git(clean.commit, True)
    (tmp_path / ".gitignore").write_text("venv\n")
    (tmp_path / "venv").mkdir()
    assert environment.git_state(tmp_path / "venv") == nothing
    monkeypatch.setenv("PATH", "")
    assert environment.git_state(tmp_path) == nothing


# --- writing


def test_round_trip(tmp_path):
    record = sample(wall_s=1.25, model=ModelInfo(str(Path("m")), {"layers": np.int64(12)}))
    settings = {"workspace": None, "levels": [1]}
    build = Build(np.float32(0.5), settings=settings)
    record.results.append(
        Result("run", "eager", "dit_model", Candidate("eager", "fp16"), status=Status.MEASURED, build=build)
    )
    path = files.write_record(record, tmp_path / "new" / "folder" / "r.json")
    back = files.read_record(path)
    assert back.wall_s == 1.25
    assert back.model == ModelInfo("m", {"layers": 12})
    assert back.results[0].build.seconds == 0.5
    assert back.results[0].build.settings == settings
    assert back.results[0].latency_ms is None
    assert back == record
    assert leftovers(path.parent) == ["r.json"]
    assert list(json.loads(path.read_text())) == [field.name for field in dataclasses.fields(Record)]


def test_nan_and_infinity_become_null_and_are_named(tmp_path):
    record = sample()
    wrong = Agreement(max_abs=float("nan"))
    record.results.append(Result("run", "eager", "dit_model", accuracy=wrong, first_call_ms=np.float32("inf")))
    back = files.read_record(files.write_record(record, tmp_path / "r.json"))
    assert back.results[0].accuracy.max_abs is None
    assert back.results[0].first_call_ms is None
    assert [(lost.at, lost.value) for lost in back.non_finite] == [
        ("results[0].first_call_ms", "inf"),
        ("results[0].accuracy.max_abs", "nan"),
    ]
    assert record.non_finite == []


def test_values_without_a_form_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"record: plan\.x: a object has no form in JSON"):
        files.write_record(sample(plan={"x": object()}), tmp_path / "r.json")
    assert leftovers(tmp_path) == []


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_record_and_nothing_else(tmp_path, monkeypatch, function):
    path = tmp_path / "r.json"
    path.write_text("old")
    monkeypatch.setattr(whole_files.os, function, full_disk)
    with pytest.raises(RecordError, match=r"r\.json: the record cannot be written: No space left on device"):
        files.write_record(sample(), path)
    assert leftovers(tmp_path) == ["r.json"]
    assert path.read_text() == "old"


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_an_interrupt_leaves_nothing(tmp_path, monkeypatch, function):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(whole_files.os, function, interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_record(sample(), tmp_path / "r.json")
    assert leftovers(tmp_path) == []


def test_paths_that_cannot_be_written(tmp_path):
    with pytest.raises(RecordError, match="a folder, not a file"):
        files.write_record(sample(), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="the record cannot be written"):
        files.write_record(sample(), tmp_path / "file" / "r.json")
    with pytest.raises(RecordError, match="the record cannot be written"):
        files.write_record(sample(), tmp_path / ("x" * 300))
    assert leftovers(tmp_path) == ["file"]
    with pytest.raises(RecordError, match="the record cannot be written"):
        files.prepare_record(f"{tmp_path}/a\0b")


@pytest.mark.parametrize("write", [files.prepare_record, lambda path: files.write_record(sample(), path)])
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
    path = files.default_record_path(tmp_path, "fp16: all/../x")
    assert path.parent == tmp_path / "records"
    assert path.name.endswith("Z-fp16-all-..-x.json")
    taken = [True, True]
    monkeypatch.setattr(Path, "exists", lambda self: bool(taken) and taken.pop())
    assert files.default_record_path(tmp_path, "a").name.endswith("Z-a-3.json")
    assert files.default_record_path(tmp_path, "///").name.endswith("Z-run.json")


# --- reading


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a record: Expecting value"),
        ("[1]", "it has no schema number"),
        ('{"schema": 3}', "schema 3 is not known to this release\n  known: schema 1 or 2"),
        ('{"schema": 1}', "created_utc is missing"),
        ('{"schema": 2}', "created_utc is missing"),
        ('{"schema": 2, "created_utc": "now"}', "results is missing"),
        ('{"schema": NaN}', "NaN is not JSON"),
        ("\x00", "not a record"),
    ],
)
def test_files_that_are_no_record(tmp_path, text, words):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(RecordError) as caught:
        files.read_record(path)
    assert words in str(caught.value)


def refused(path, record, words):
    path.write_text(json.dumps(record))
    with pytest.raises(RecordError, match=words):
        files.read_record(path)


def test_misshapen_fields(tmp_path):
    for change, words in (
        ({"results": {}}, "results is a dict"),
        ({"results": None}, "results is missing"),
        ({"results": 3}, "results is a int"),
        ({"results": [{"group": "run"}]}, r"results\[0\] has no name"),
        (
            {"results": [{"group": "run", "name": "x", "subject": "y", "status": "fine"}]},
            r"results\[0\].status is 'fine'",
        ),
        ({"stages": [{}]}, r"stages\[0\] has no stage"),
        ({"plan": {"optimizations": "all"}}, r"plan\.optimizations is a str"),
    ):
        refused(tmp_path / "r.json", {**written(sample()), **change}, words)


def test_misshapen_fields_of_the_first_schema(tmp_path):
    for change, words in (
        ({"submodules": {}}, "submodules is a dict"),
        ({"comparison": None}, "comparison is a NoneType"),
        ({"measurements": 3}, "measurements is a int"),
        ({"measurements": [3]}, r"measurements\[0\] is a int"),
        ({"stages": [{}]}, r"stages\[0\] has no stage"),
    ):
        refused(tmp_path / "r.json", {"schema": 1, "created_utc": "now", **change}, words)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(RecordError, match="no such record"):
        files.read_record(tmp_path / "none.json")
    with pytest.raises(RecordError, match="the record cannot be read"):
        files.read_record(tmp_path)
    (tmp_path / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(RecordError, match="not a record"):
        files.read_record(tmp_path / "b")
