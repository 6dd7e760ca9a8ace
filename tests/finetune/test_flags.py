"""The command line: the published flags in both spellings, defaults, and what contradicts itself."""

from __future__ import annotations

from typing import Any

import pytest

from gr00t_trt.errors import UsageError
from gr00t_trt.finetune.flags import parse

PUBLISHED = """
--dataset-path synthetic --output-dir out --data-config so100 --batch-size 4 --max-steps 20 --num-gpus 1
--save-steps 5 --base-model-path synthetic --no-tune-llm --tune-visual --tune-projector --no-tune-diffusion-model
--resume --learning-rate 1e-4 --weight-decay 1e-5 --warmup-ratio 0.05 --lora-rank 0 --lora-alpha 16
--lora-dropout 0.1 --no-lora-full-model --dataloader-num-workers 2 --dataloader-prefetch-factor 4
--gradient-accumulation-steps 2 --report-to wandb --embodiment-tag new_embodiment --video-backend torchcodec
--balance-dataset-weights --no-balance-trajectory-weights
"""


@pytest.mark.parametrize("spelled", [PUBLISHED, PUBLISHED.replace("-", "_").replace("__", "--").replace("1e_", "1e-")])
def test_the_published_flags(spelled: str) -> None:
    args = parse(spelled.split())
    assert (args.batch_size, args.max_steps, args.gradient_accumulation_steps) == (4, 20, 2)
    assert (args.tune_llm, args.tune_visual, args.tune_projector, args.tune_diffusion_model) == (
        False,
        True,
        True,
        False,
    )
    assert args.frame_lookup == "on_screen"
    assert args.balance_dataset_weights
    assert not args.balance_trajectory_weights


def test_the_published_defaults() -> None:
    args = parse(["--dataset_path", "synthetic"])
    published = {
        "base_model_path": "nvidia/GR00T-N1.5-3B", "data_config": ["fourier_gr1_arms_only"], "batch_size": 32,
        "max_steps": 10000, "num_gpus": 1, "save_steps": 1000, "tune_llm": False, "tune_visual": False,
        "tune_projector": True, "tune_diffusion_model": True, "resume": False, "learning_rate": 1e-4,
        "weight_decay": 1e-5, "warmup_ratio": 0.05, "lora_rank": 0, "lora_alpha": 16, "lora_dropout": 0.1,
        "lora_full_model": False, "gradient_accumulation_steps": 1, "dataloader_prefetch_factor": 4,
        "embodiment_tag": ["new_embodiment"], "balance_dataset_weights": True, "balance_trajectory_weights": True,
        "dropout": 0.2,
    }  # fmt: skip
    assert {name: getattr(args, name) for name in published} == published


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_steps 0", "--max_steps: 0 is out of range"),
        ("--dropout 1", "--dropout: 1 is out of range"),
        ("--learning_rate 0", "--learning_rate: 0 is out of range"),
        ("--learning_rate nan", "--learning_rate: nan is out of range"),
        ("--warmup_ratio 2", "--warmup_ratio: 2 is out of range"),
        ("--tune_visual --lora_rank 8", "--tune_visual with --lora_rank"),
        ("--merge", "--merge without an adapter"),
        ("--video_backend opencv", "--video_backend: unknown value 'opencv'"),
        ("--report_to mlflow", "--report_to: unknown value 'mlflow'"),
        ("--base_model_path synthetik", "--base_model_path synthetik: no such folder"),
        ("--learning_rat 1e-4", "no such flag: --learning_rat"),
    ],
)
def test_refused(flags: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(["--dataset_path", "synthetic", *flags.split()])


def test_a_generated_model_has_defaults_of_its_own(monkeypatch: Any) -> None:
    args = parse(["--dataset_path", "synthetic", "--base_model_path", "synthetic", "--batch_size", "32"])
    assert (args.batch_size, args.max_steps, args.dataloader_num_workers) == (32, 60, 0)
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert parse(["--dataset_path", "synthetic"]).dataloader_num_workers == 4
