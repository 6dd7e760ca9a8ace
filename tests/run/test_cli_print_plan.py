"""`--print_plan`: what the flags come to, as a plan that comes to the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr00t_trt.plans.load import load_plan
from gr00t_trt.policy import source
from gr00t_trt.run.program import main


@pytest.fixture(autouse=True)
def nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was loaded")

    monkeypatch.chdir(tmp_path)
    for heavy in ("load_policy", "LeRobotDataset", "resolve_checkpoint"):
        monkeypatch.setattr(source, heavy, never)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--backend eager",
        "--config fast --precision fp32 --loop denoise_loop",
        "--config fp16_eager_encoders --backend inductor --vit_dtype bf16 --num_iterations 7 --max_seconds 1.5",
        "--backend eager --use_eagle_backbone_joint",
        "--backend auto --optimizations prompt_cache,kv_cache --cuda_graph on_demand --denoising_steps 8",
    ],
)
def test_a_printed_plan_is_carried_out_as_the_flags_would_be(line: str, capsys: pytest.CaptureFixture) -> None:
    assert main([*line.split(), "--print_plan"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"# gr00t-trt run {line}".rstrip())
    Path("plan.yaml").write_text(printed)
    plan = load_plan("plan.yaml")
    assert main(["--config", "plan.yaml", "--print_plan"]) == 0
    Path("again.yaml").write_text(capsys.readouterr().out)
    assert load_plan("again.yaml") == plan
    assert len(list(Path().iterdir())) == 2


def test_what_was_chosen_is_in_it(capsys: pytest.CaptureFixture) -> None:
    flags = "--config bf16 --backend inductor --loop denoise_step --warmup_iterations 3 --dit_dtype fp32"
    assert main([*flags.split(), "--print_plan"]) == 0
    Path("plan.yaml").write_text(capsys.readouterr().out)
    plan = load_plan("plan.yaml")
    assert (plan.backend, plan.precision, plan.loop, plan.benchmark.warmup) == ("inductor", "bf16", "denoise_step", 3)
    assert plan.submodules["dit_model"].precision == "fp32"


def test_a_comparison_has_no_plan_to_print(capsys: pytest.CaptureFixture) -> None:
    assert main(["--compare", "eager,inductor", "--print_plan"]) == 2
    assert "a comparison runs no plan" in capsys.readouterr().err
