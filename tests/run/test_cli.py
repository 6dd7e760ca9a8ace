from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr00t_trt.backends.tensorrt.backend import TensorRTBackend
from gr00t_trt.common.command import underscored
from gr00t_trt.data import synthetic_dataset
from gr00t_trt.errors import PlanError
from gr00t_trt.plans.backends import BACKENDS, Availability, get_backend
from gr00t_trt.plans.load import merge
from gr00t_trt.plans.schema import SUBMODULES, Plan
from gr00t_trt.plans.submodules import resolve_submodule
from gr00t_trt.policy import source
from gr00t_trt.record.files import read_record
from gr00t_trt.run import job
from gr00t_trt.run.program import compared, main, onnx_overrides, overrides, parse

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--benchmark", "python_timer",
         "--num_iterations", "2", "--warmup_iterations", "0"]  # fmt: skip
EAGER = [*QUICK, "--backend", "eager"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_both_spellings_are_one() -> None:
    assert underscored(["--fn-name=dit_model", "--use-fp32-acc", "a-b", "-x-y"]) == [
        "--fn_name=dit_model",
        "--use_fp32_acc",
        "a-b",
        "-x-y",
    ]


def test_the_published_command_parses_as_printed() -> None:
    line = "--precision FP16 --use_fp32_acc --use_explicit_typing --fn_name all --benchmark cuda_event"
    args, notes = parse(line.split())
    given = {key: value for key, value in overrides(args).items() if value is not None}
    assert given == {
        "precision": "FP16",
        "build.use_fp32_acc": True,
        "build.use_explicit_typing": True,
        "benchmark.timer": "cuda_event",
    }
    assert (args.fn_name, args.model_path, args.dataset_path) == (
        "all",
        "nvidia/GR00T-N1.5-3B",
        "./demo_data/robot_sim.PickNPlace",
    )
    assert notes == []


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fn_nam", "all"], "no such flag: --fn_nam"),
        (["extra"], "'extra' belongs to no flag"),
        (["--seed", "x"], "--seed: 'x' is not a whole number"),
        (["--step", "-3"], "--step: -3 is out of range"),
        (["--seed", str(2**63)], "--seed: 9223372036854775808 is out of range"),
        (["--engine_dir", ""], "--engine_dir: '' is empty"),
        (["--model_path= "], "--model_path: ' ' is empty"),
        (["--attn_implementation", "flash"], "did you mean flash_attention_2?"),
        (["--compare", ""], "--compare: '' is empty"),
    ],
)
def test_flags_that_cannot_work_are_refused(argv: list[str], words: str) -> None:
    with pytest.raises(PlanError) as caught:
        parse(argv)
    assert words in str(caught.value)


def test_published_flags_without_effect_say_so() -> None:
    _, notes = parse(["--eval", "--attn_implementation", "eager"])
    assert [what for what, _ in notes] == ["--attn_implementation eager", "--eval"]


@pytest.mark.parametrize("installed", [True, False])
def test_the_onnx_flags_choose_a_backend_for_their_submodule(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Availability(installed, "" if installed else "TensorRT is missing")
    monkeypatch.setattr(TensorRTBackend, "availability", lambda self: found)
    args, _ = parse(["--use-onnx-vit", "--use_onnx_llm", "--backend", "inductor"])
    keys, notes = onnx_overrides(args)
    route = "tensorrt" if installed else "onnxruntime"
    plan = merge(Plan(), {**overrides(args), **keys})
    assert {name: resolve_submodule(plan, name).backend for name in SUBMODULES} == {
        **dict.fromkeys(SUBMODULES, "inductor"),
        "vision_model": route,
        "language_model": route,
    }
    assert [what for what, _ in notes] == ["--use_onnx_vit", "--use_onnx_llm"]
    assert all(route in why for _, why in notes)
    assert onnx_overrides(parse([])[0]) == ({}, [])


def test_ready_made_engines_need_their_folder_and_the_plain_model(capsys: pytest.CaptureFixture) -> None:
    args, _ = parse(["--trt-engine-path", "nowhere", "--backend", "tensorrt"])
    plan = merge(Plan(), overrides(args))
    assert plan.build.trt_engine_path == "nowhere"
    assert plan.optimizations == ()
    assert main([*QUICK, "--backend", "tensorrt", "--trt_engine_path", "nowhere"]) == 2
    assert "trt_engine_path: nowhere: no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--fn_name", "dit"], "did you mean dit_model?"),
        (["--precision", "fp17"], "did you mean fp16?"),
        (["--vit_dtype", "fp8"], "a quantised precision needs a calibration"),
        (["--backend", "tensort"], "did you mean tensorrt?"),
        (["--data_config", "fourier_gr1"], "did you mean fourier_gr1_"),
        (["--embodiment_tag", "gr2"], "did you mean gr1?"),
        (["--frame_lookup", "nearst"], "did you mean nearest?"),
        (["--benchmark", "cuda"], "did you mean cuda_event?"),
        (["--num_iterations", "0"], "out of range"),
        (["--device", "gpu"], "'gpu' is not a device"),
        (["--device", "cuda:99"], "'cuda:99'"),
        (["--record", "/dev/null"], "/dev/null: a link or a device"),
        (["--data_config", "no:X:"], "--data_config no:X:"),
        (["--model_path", "/no/such/folder"], "/no/such/folder: no such folder"),
        (["--model_path", "synthetic:huge"], "did you mean synthetic:full?"),
        (["--dataset_path", "/no/such/dataset"], "/no/such/dataset"),
        (["--episode", "9"], "episode 9"),
        (["--step", "999"], "episode 0 has no row 999"),
        (["--config", "nothing.yaml"], "no such plan file"),
        (["--tokenizer", "/no/tokenizer"], "no such file or folder"),
        (["--denoising_steps", "0"], "denoising_steps"),
    ],
)
def test_bad_input_ends_with_2_and_one_clear_error(argv: list[str], words: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*EAGER, *argv]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(Path("records").glob("*")) if Path("records").exists() else True


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--compare", "eager,tensort"], "did you mean tensorrt?"),
        (["--compare", "inductor,"], "--compare: unknown value ''"),
        (["--compare", ",,"], "--compare: unknown value ''"),
        (["--compare", "inductor,Inductor"], "--compare: inductor is named twice"),
        (["--compare", "all,inductor"], "--compare: unknown value 'all'"),
        (["--compare", "eager"], "nothing to compare it with"),
        (["--compare", "all", "--backend", "inductor"], "leave --backend out"),
        (["--compare", "all", "--write_plan", "p.yaml"], "--write_plan p.yaml: this run chooses no plan"),
        (["--write_plan", "p.yaml"], "--write_plan p.yaml: this run chooses no plan"),
        (["--backend", "auto", "--write_plan", "."], ".: a folder, not a file"),
        (["--backend", "auto", "--write_plan", "/dev/null"], "/dev/null: a link or a device"),
        (["--backend", "auto", "--write_plan", "file/p.yaml"], "file/p.yaml: the plan cannot be written"),
        (["--backend", "auto", "--cpu_offload"], "whose weights it would move away"),
        (["--backend", "auto", "--fn_name", "dit"], "did you mean dit_model?"),
        (["--backend", "aut"], "did you mean auto?"),
    ],
)
def test_comparisons_that_cannot_work_are_refused_before_anything_is_loaded(
    argv: list[str], words: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(job, "load_source")
    Path("file").write_text("")
    assert main([*QUICK, *argv]) == 2
    out, err = capsys.readouterr()
    assert words in err
    assert out == ""
    assert not Path("p.yaml").exists()


def test_eager_is_always_among_what_is_compared() -> None:
    assert compared(parse(["--compare", "inductor"])[0]) == ("eager", "inductor")
    assert compared(parse(["--compare", " Inductor , EAGER"])[0]) == ("eager", "inductor")
    assert compared(parse(["--compare", "all"])[0]) == tuple(BACKENDS)
    assert compared(parse([])[0]) == ()


def test_a_comparison_interrupted_midway_leaves_nothing(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(get_backend("inductor"), "build", interrupted, raising=False)
    for way in (["--compare", "inductor"], ["--backend", "auto", "--write_plan", "out/p.yaml"]):
        assert main([*QUICK, *way, "--fn_name", "state_encoder", "--record", "out/r.json"]) == 130
        assert "interrupted" in capsys.readouterr().err
        assert list(Path("out").iterdir()) == []


def test_an_unwritable_record_is_found_before_anything_is_loaded(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr(job, "run", never)
    Path("file").write_text("")
    assert main([*EAGER, "--record", "file/record.json"]) == 2
    assert "file/record.json: the record cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("optimizations", "max_abs"), [("all", 1e-5), ("none", 0.0)])
def test_a_run_in_fp32_agrees_with_itself_and_leaves_a_whole_record(
    optimizations: str, max_abs: float, capsys: pytest.CaptureFixture
) -> None:
    asked = ["--precision", "fp32", "--optimizations", optimizations, "--record", "out/run.json"]
    assert main([*EAGER, *asked]) == 0
    out, err = capsys.readouterr()
    assert out == "out/run.json\n"
    assert "PASS" in err
    record = read_record("out/run.json")
    assert record.exit_reason == "done"
    assert [s.subject for s in record.submodules] == list(SUBMODULES)
    assert all(s.accuracy.exact and len(s.latency_ms.samples) == 2 for s in record.submodules)
    assert record.inputs.sequence_length == 294
    assert record.inputs.views == 1
    assert record.request.accuracy.max_abs <= max_abs
    assert set(record.per_key) == {
        "action.left_arm",
        "action.right_arm",
        "action.left_hand",
        "action.right_hand",
    }
    stages = {s.stage: s.calls_per_request for s in record.stages}
    assert stages["preprocess"] == stages["postprocess"] == stages["vl_components"] == 1
    assert stages["dit_model"] == 4
    assert [p.name for p in Path("out").iterdir()] == ["run.json"]


def test_json_prints_the_record_alone_on_stdout(capsys: pytest.CaptureFixture) -> None:
    assert main([*EAGER, "--fn_name", "action_decoder", "--json", "--record", "r.json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path("r.json").read_text())


def test_a_failed_gate_ends_with_1_and_names_the_submodule(capsys: pytest.CaptureFixture) -> None:
    Path("strict.yaml").write_text(
        "backend: eager\nprecision: fp16\nsubmodules:\n  action_decoder: {gate: {max_abs: 0.0}}\n"
    )
    assert main([*QUICK, "--config", "strict.yaml", "--fn_name", "action_decoder", "--record", "r.json"]) == 1
    assert "FAIL" in capsys.readouterr().err
    record = read_record("r.json")
    assert record.exit_reason == "gate failed"
    assert record.submodules[0].failures[0].startswith("action_decoder: max_abs ")
    assert record.plan_path == "strict.yaml"


def test_an_interrupted_run_ends_with_130_and_leaves_no_record(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "run", interrupted)
    assert main([*EAGER, "--record", "r.json"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not Path("r.json").exists()


def test_bad_names_are_found_before_the_weights_are_loaded(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr("gr00t_trt.policy.policy.load_model", never)
    assert main([*EAGER, "--embodiment_tag", "gr2"]) == 2
    dataset = synthetic_dataset("data", resolution=(64, 48))
    stats = dataset / "meta" / "stats.json"
    columns = json.loads(stats.read_text())
    columns["observation.state"]["min"][0] = 9.0
    stats.write_text(json.dumps(columns))
    assert main([*EAGER, "--dataset_path", str(dataset)]) == 2
    assert "min 9 exceeds max" in capsys.readouterr().err


def test_a_backend_without_engines_says_that_none_are_written() -> None:
    assert main([*EAGER, "--fn_name", "action_decoder", "--engine_dir", "engines", "--record", "r.json"]) == 0
    skipped = {note.what: note.why for note in read_record("r.json").skipped}
    assert "only the torch_tensorrt, tensorrt, onnxruntime backends write files" in skipped["--engine_dir engines"]
    assert not Path("engines").exists()


class _Gone(io.StringIO):
    """A stream that nobody reads, or that has no room."""

    def __init__(self, error: OSError):
        super().__init__()
        self.error = error
        self.descriptor = os.open(os.devnull, os.O_WRONLY)

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        return self.descriptor


@pytest.mark.parametrize(
    ("error", "status"), [(BrokenPipeError(), 0), (OSError(errno.ENOSPC, "No space left on device"), 2)]
)
def test_the_record_outlives_a_broken_stdout(
    error: OSError, status: int, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", _Gone(error))
    assert main([*EAGER, "--fn_name", "action_decoder", "--record", "r.json"]) == status
    assert read_record("r.json").exit_reason == "done"
    assert ("stdout cannot be written" in capsys.readouterr().err) == (status == 2)


def test_a_run_whose_messages_nobody_reads_ends_as_after_sigpipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", _Gone(BrokenPipeError()))
    assert main([*EAGER, "--record", "r.json"]) == 141
    assert not Path("r.json").exists()


def test_what_others_print_does_not_reach_stdout(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = source.load_policy

    def noisy(*args: object, **kwargs: object) -> object:
        print("a compiler's banner")
        return original(*args, **kwargs)

    monkeypatch.setattr(source, "load_policy", noisy)
    assert main([*EAGER, "--fn_name", "action_decoder", "--record", "r.json"]) == 0
    out, err = capsys.readouterr()
    assert out == "r.json\n"
    assert "a compiler's banner" in err


def test_help_explains_every_flag_without_importing_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "run_groot_torchtrt.py"), "--help"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert "examples:" in done.stdout
    for flag in (
        "--fn_name",
        "--precision",
        "--engine_dir",
        "--engine_cache",
        "--use_eagle_backbone_joint",
        "--cpu_offload",
    ):
        assert flag in done.stdout
    assert " torch\n" not in done.stderr
