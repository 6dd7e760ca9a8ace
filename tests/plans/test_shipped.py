"""The plans that come with the package: found by name from anywhere, described by their headers, printed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gr00t_trt.__main__ import main
from gr00t_trt.errors import PlanError
from gr00t_trt.plans.load import load_plan, plan_yaml
from gr00t_trt.plans.schema import Plan
from gr00t_trt.plans.shipped import shipped_plans

FOLDER = Path(__file__).parents[2] / "compile_configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_plan_of_the_repository_is_known_by_its_name_and_described() -> None:
    assert set(shipped_plans()) == {path.stem for path in FOLDER.glob("*.yaml")}
    for name, plan in shipped_plans().items():
        assert load_plan(name) == load_plan(plan.path)
        for text in (plan.purpose, plan.hardware, plan.engines):
            assert len(text) > 10
            assert not text.startswith("#")


def test_a_name_is_a_shipped_plan_first_and_a_file_with_its_suffix() -> None:
    for name in ("fp16", "fp16.yaml", "own"):
        Path(name).write_text("precision: fp32\n")
    assert load_plan("fp16").precision == "fp16"
    assert load_plan("fp16.yaml").precision == "fp32"
    assert load_plan("./fp16").precision == "fp32"
    assert load_plan(Path("fp16")).precision == "fp32"
    assert load_plan("own").precision == "fp32"


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("fp61", "did you mean fp16?"),
        ("fp16.yaml", "did you mean fp16?"),
        ("jetson_thr", "did you mean jetson_thor?"),
        ("plan", "gr00t-trt plans lists those"),
        ("no/such/folder/plan.yaml", "gr00t-trt plans lists those"),
    ],
)
def test_a_name_that_is_none_is_answered_with_those_that_are(named: str, words: str) -> None:
    with pytest.raises(PlanError, match="no such plan file") as caught:
        load_plan(named)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", sorted(shipped_plans()))
def test_a_plan_written_out_in_full_is_the_same_plan(name: str) -> None:
    Path("whole.yaml").write_text(plan_yaml(load_plan(name)))
    assert load_plan("whole.yaml") == load_plan(name)


def test_the_command_lists_them_with_backend_precision_purpose_and_needs(capsys: pytest.CaptureFixture) -> None:
    assert main(["plans"]) == 0
    out = capsys.readouterr().out
    for plan in shipped_plans().values():
        settings = load_plan(plan.path)
        (line,) = (line for line in out.splitlines() if line.startswith(f"{plan.name} "))
        assert settings.backend in line
        assert settings.precision in line
    assert max(map(len, out.splitlines())) <= 80
    assert " ".join(shipped_plans()["jetson_thor"].hardware.split()) in " ".join(out.split())


def test_the_command_prints_one_as_a_file_that_can_be_loaded(capsys: pytest.CaptureFixture) -> None:
    assert main(["plans", "jetson_orin"]) == 0
    text = capsys.readouterr().out
    assert text == (FOLDER / "jetson_orin.yaml").read_text()
    assert yaml.safe_load(text)["precision"] == "fp16"
    assert main(["plans", "jetson_orion"]) == 2
    assert "did you mean jetson_orin?" in capsys.readouterr().err


def test_the_default_plan_is_written_out_too() -> None:
    Path("default.yaml").write_text(plan_yaml(Plan()))
    assert load_plan("default.yaml") == Plan()
