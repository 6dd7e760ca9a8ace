"""What people type wrong, and what they read then: one clear message, no class name, no traceback, exit status 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t_trt.__main__ import main
from gr00t_trt.policy import source

GOOD = ["--model_path", "synthetic", "--dataset_path", "synthetic", "--backend", "eager"]


@pytest.fixture(autouse=True)
def in_a_folder_with_a_file_and_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("folder").mkdir()
    Path("bad.yaml").write_text("precision: fp61\n")
    Path("broken.yaml").write_text("{")


SLIPS = [
    ("rum", "no such command: rum; did you mean run?"),
    ("--hepl", "no such command: --hepl; did you mean --help?"),
    ("plans fp61", "plan: unknown value 'fp61'; did you mean fp16?"),
    ("engines lst", "gr00t-trt engines: unknown value 'lst'; did you mean list? (known: list, prune)"),
    ("run --fn_nam all", "no such flag: --fn_nam; did you mean --fn_name?"),
    ("run --fn-nam=all", "no such flag: --fn_nam; did you mean --fn_name?"),
    ("run --fn_name dit", "--fn_name: unknown value 'dit'; did you mean dit_model?"),
    ("run --precision fp17", "--precision: unknown value 'fp17'; did you mean fp16? "
     "(known: fp32, fp16, bf16, fp8, int8, nvfp4)"),
    ("run --vit_dtype fp17", "--vit_dtype: unknown value 'fp17'; did you mean fp16? "
     "(known: fp32, fp16, bf16, fp8, int8, nvfp4)"),
    ("run --backend tensort", "--backend: unknown value 'tensort'; did you mean tensorrt?"),
    ("run --loop step", "--loop: unknown value 'step'; did you mean denoise_step? "
     "(known: submodules, denoise_step, denoise_loop)"),
    ("run --benchmark cuda", "--benchmark: unknown value 'cuda'; did you mean cuda_event? "
     "(known: cuda_event, python_timer)"),
    ("run --config fp61", "fp61: no such plan file; did you mean fp16?"),
    ("run --config bad.yaml", "bad.yaml: precision: unknown value 'fp61'; did you mean fp16? "
     "(known: fp32, fp16, bf16, fp8, int8, nvfp4)"),
    ("run --data_config so10", "--data_config: unknown value 'so10'; did you mean so100?"),
    ("run --model_path syntetic", "--model_path syntetic: no such folder; did you mean synthetic?"),
    ("run --dataset_path syntetic", "--dataset_path syntetic: no such folder; did you mean synthetic?"),
]  # fmt: skip

OTHERS = [
    ("-x", "gr00t-trt --help lists the commands"),
    ("--print_completion", "--print_completion takes one shell"),
    ("--print_completion tcsh", "known: bash, zsh"),
    ("run --ünïcode x", "no such flag: --ünïcode\n  gr00t-trt run --help"),
    ("run --precision", "--precision: its value is missing"),
    ("run --precision --fn_name all", "--precision: its value is missing"),
    ("run --precision fp16 bf16", "'bf16' is one value too many: --precision takes one value"),
    ("run --precision=", "--precision: '' is empty"),
    ("run --precision fp8", "a quantised precision needs a calibration"),
    ("run --json yes", "'yes' is one value too many: --json takes no value"),
    ("run --json=yes", "--json takes no value, and was given 'yes'"),
    ("run --seed x", "--seed: 'x' is not a whole number"),
    ("run --seed 1.5", "--seed: '1.5' is not a whole number"),
    ("run --step -3", "--step: -3 is out of range"),
    ("run --max_seconds abc", "--max_seconds: 'abc' is not a number"),
    ("run --max_seconds nan", "--max_seconds: nan is out of range"),
    ("run --num_iterations 0", "--num_iterations: 0 is out of range\n  known: 1 to 1000000"),
    ("run --denoising_steps 0", "--denoising_steps: 0 is out of range"),
    ("run --optimizations al", "--optimizations[0]: unknown value 'al'"),
    ("run --cuda_graph yes", "--cuda_graph: unknown value 'yes'\n  known: none, startup, on_demand"),
    ("run --config folder", "folder: a folder, not a plan file"),
    ("run --config broken.yaml", "broken.yaml: line 1, column 2: "),
    ("run --config file", "a plan must be a mapping, not 'x'"),
    ("run --config \x01", "?: no such plan file"),
    ("run --dataset_path file", "--dataset_path file: a file, not a folder"),
    ("run --dataset_path ./demo_data/robot_sim.PickNPlace", "git clone --depth 1 --branch n1.5-release https://"),
    ("run --dataset_path " + "a" * 5000, "cannot be a path: too long"),
    ("run --engine_dir file", "--engine_dir file: file is a file, not a folder"),
    ("run --engine_dir file/engines", "--engine_dir file/engines: file is a file, not a folder"),
    ("run --engine_cache file", "--engine_cache file: file is a file, not a folder"),
    ("run --record folder", "folder: a folder, not a file"),
    ("run --device gpu", "--device: 'gpu' is not a device"),
    ("run --write_plan p.yaml", "--write_plan p.yaml: this run chooses no plan"),
    ("run --compare eager,inductor", "leave --backend out"),
    ("run --model_path file", "--model_path file: a file, not a folder"),
]


@pytest.fixture
def said(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def call(line: str) -> str:
        argv = line.split(" ")
        # A flag given later wins, so that the mistake stands after what is right.
        argv = [argv[0], *GOOD, *argv[1:]] if argv[0] == "run" else argv
        assert main(argv) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert "Error" not in err
        assert "Traceback" not in err
        return err.strip()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    for heavy in ("load_policy", "LeRobotDataset"):
        monkeypatch.setattr(source, heavy, never)
    return call


@pytest.mark.parametrize(("line", "message"), SLIPS)
def test_a_slip_of_the_finger_is_answered_in_one_line_with_the_suggestion_in_it(line: str, message: str, said) -> None:
    assert said(line) == message


@pytest.mark.parametrize(("line", "words"), OTHERS, ids=lambda text: text[:60])
def test_other_mistakes_say_what_is_wrong_before_anything_is_loaded(line: str, words: str, said) -> None:
    assert words in said(line)


def test_another_spelling_of_a_precision_is_in_the_help(capsys: pytest.CaptureFixture) -> None:
    for program in ("run", "serve", "evaluate"):
        with pytest.raises(SystemExit):
            main([program, "--help"])
        assert "half" in capsys.readouterr().out
