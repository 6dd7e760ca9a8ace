"""From flags to what is trained: robots, widths, adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gr00t_trt.errors import UsageError
from gr00t_trt.finetune import job
from gr00t_trt.finetune.checkpoints import latest
from gr00t_trt.finetune.flags import parse
from gr00t_trt.finetune.program import main
from gr00t_trt.finetune.start import Start
from gr00t_trt.model import load_model

WIDE = """
from gr00t_trt.data import So100DataConfig

class Wide(So100DataConfig):
    def transform(self):
        chain = super().transform()
        chain.transforms[-1].max_action_dim = 40
        return chain
"""


def start(*flags: str) -> Start:
    return Start(parse(["--base_model_path", "synthetic", "--dataset_path", "synthetic", *flags]))


@pytest.mark.parametrize(
    ("flags", "tag"),
    [
        ((), "gr1"),
        (("--data_config", "so100"), "new_embodiment"),
        (("--data_config", "so100", "--embodiment_tag", "new_embodiment"), "new_embodiment"),
        (("--data_config", "oxe_droid"), "oxe_droid"),
    ],
)
def test_the_projector_is_that_of_the_data_configs_robot(flags: tuple[str, ...], tag: str) -> None:
    chosen = start(*flags)
    assert [source.tag for source in chosen.sources] == [tag]
    command = job.next_command(chosen.args, chosen.sources[0], Path("out/step-1"))
    assert ("--embodiment_tag" in command) == (tag == "new_embodiment")


def test_a_new_projector_for_a_pretrained_robot_is_refused() -> None:
    with pytest.raises(UsageError, match="made for gr1"):
        _ = start("--embodiment_tag", "new_embodiment").sources


def test_adapters_train_the_projector_of_a_new_robot_only() -> None:
    rank = ("--lora_rank", "4")
    assert not start(*rank).parts.robot_slots
    assert start(*rank, "--lora_train_projector").parts.robot_slots
    assert start(*rank, "--data_config", "so100").parts.robot_slots
    assert not start(*rank, "--data_config", "so100", "--no_lora_train_projector").parts.robot_slots


@pytest.mark.training
def test_more_action_columns_leave_other_robots_as_they_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wide_robot.py").write_text(WIDE)
    monkeypatch.chdir(tmp_path)
    flags = ["--base_model_path", "synthetic", "--dataset_path", "synthetic", "--max_steps", "2", "--batch_size", "1"]
    flags += ["--data_config", "wide_robot:Wide", "--output_dir", str(tmp_path / "out")]
    assert main([*flags, "--no_tune_projector"]) == 2
    assert "add --tune_projector" in capfd.readouterr().err
    assert main(flags) == 0
    before: Any = load_model("synthetic")
    found = latest(tmp_path / "out")
    assert found is not None
    after: Any = load_model(found)
    assert after.config.action_head.action_dim == 40
    old, new = (model.action_head.action_decoder.layer2.W for model in (before, after))
    assert torch.equal(new[:31, :, :32], old[:31])
    assert not torch.equal(new[31, :, :32], old[31])
    assert not new[:31, :, 32:].any()
