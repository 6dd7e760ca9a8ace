"""The command line of the fine-tuning: the published flags with their defaults, and ours. Never imports torch."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..common.command import Parser, check_least, parse_flags, setting, switch
from ..common.install import install
from ..common.paths import check_dataset, check_model, check_output_folder
from ..errors import UsageError, unknown
from ..policy.flags import FRAME_RULES, Default, check_seed, source_flags

OUTPUT_DIR = "/tmp/gr00t"
PUBLISHED: Mapping[str, float] = {
    "batch_size": 32,
    "max_steps": 10000,
    "save_steps": 1000,
    "learning_rate": 1e-4,
    "dropout": 0.2,
    "dataloader_num_workers": 12,
}
"""Defaults that a generated model has others for."""
GENERATED: Mapping[str, float] = {
    "batch_size": 8,
    "max_steps": 60,
    "save_steps": 1000,
    "learning_rate": 2e-3,
    "dropout": 0.0,
    "dataloader_num_workers": 0,
}
"""The same for ``synthetic``: to see the program work, in less than a minute."""

PRECISIONS = ("bf16", "fp32")
PADDINGS = ("inference", "upstream")
REPORTS = ("wandb", "tensorboard", "azure_ml", "none")

EPILOG = """\
examples:
  try it, nothing needed (a generated model and dataset), in less than a minute:
    gr00t-trt finetune --base_model_path synthetic --dataset_path synthetic
  as published, on one GPU:
    gr00t-trt finetune --dataset-path demo_data/robot_sim.PickNPlace --episodes present --output-dir finetuned
  your own SO-101 arm, the last five episodes held out, on two GPUs:
    gr00t-trt finetune --dataset_path my_recordings --data_config so100 --eval_episodes 5 --num_gpus 2
  a small adapter instead of the whole action head:
    gr00t-trt finetune --dataset_path my_recordings --data_config so100 --lora_rank 64 --lora_alpha 128

SIGTERM or Ctrl-C saves a checkpoint and ends; --resume goes on from the last one as if nothing had happened.
exit status: 0 done, 2 bad input or a training that diverged, 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """All flags; those whose default depends on the model have None."""
    what = "Train a checkpoint further, with demonstrations that a robot has recorded."
    p = Parser(prog="gr00t-trt finetune", description=what, epilog=EPILOG)
    _model_flags(p.add_argument_group("what is trained"))
    _data_flags(p.add_argument_group("demonstrations"))
    _training_flags(p.add_argument_group("how"))
    _lora_flags(p.add_argument_group("an adapter (LoRA) instead of whole matrices"))
    _result_flags(p.add_argument_group("results"))
    return p


def _model_flags(g: Any) -> None:
    help = "checkpoint folder, hub id, `synthetic` (tiny) or `synthetic:full`"
    setting(g, "base_model_path", "nvidia/GR00T-N1.5-3B", help, metavar="PATH")
    switch(g, "tune_llm", help="train the language model too")
    switch(g, "tune_visual", help="train the vision tower and its connector too")
    switch(g, "tune_projector", default=True, help="train the robot's encoders and decoder [on; --no_tune_projector]")
    switch(g, "tune_diffusion_model", default=True, help="train the DiT [on; --no_tune_diffusion_model]")
    source_flags(g, "tokenizer")


def _data_flags(g: Any) -> None:
    help = "LeRobot datasets, v2 or v3, or `synthetic`"
    g.add_argument("--dataset_path", nargs="+", metavar="PATH", required=True, help=help)
    help = "keys and transforms: a built-in name or module:Class; for all datasets, or one each [fourier_gr1_arms_only]"
    default = [Default("fourier_gr1_arms_only")]
    g.add_argument("--data_config", nargs="+", metavar="NAME", default=default, help=help)
    help = "projector that is trained; one for all, or one each [that of the data config's robot, else new_embodiment]"
    g.add_argument("--embodiment_tag", nargs="+", metavar="TAG", default=[Default("new_embodiment")], help=help)
    help = "of each dataset in the mixture [1 each]"
    g.add_argument("--dataset_weights", nargs="+", type=float, metavar="W", default=[], help=help)
    help = "weigh datasets by their length [on]"
    switch(g, "balance_dataset_weights", default=True, help=help)
    help = "weigh the episodes of a dataset by their length [on]"
    switch(g, "balance_trajectory_weights", default=True, help=help)
    help = "all: a listed episode that is missing is refused; present: train on those that are here"
    g.add_argument("--episodes", default="all", choices=("all", "present"), help=f"{help} [%(default)s]")
    setting(g, "eval_episodes", 0, "the last N episodes of every dataset are not trained on, and give a held-out loss")
    help = "permuted: every frame once a pass; upstream: the original's draws, with replacement"
    g.add_argument("--sampling", default="permuted", choices=("permuted", "upstream"), help=f"{help} [%(default)s]")
    switch(g, "augment", default=True, help="random crops and colours as the data config has them [on; --no_augment]")
    help = f"{', '.join(FRAME_RULES)}: whose rule picks the frame of a row; PyAV decodes [--frame_lookup's]"
    g.add_argument("--video_backend", metavar="NAME", help=help)
    source_flags(g, "frame_lookup")
    g.add_argument("--frame_cache", metavar="DIR", help="where decoded frames are kept, or off [the user's cache]")
    g.add_argument("--frame_cache_gb", type=float, metavar="GB", help="how much of it [what the disk leaves]")
    _filled(g, "dataloader_num_workers", "processes that prepare samples; at most one a core")
    setting(g, "dataloader_prefetch_factor", 4, "batches that each of them prepares ahead")


def _training_flags(g: Any) -> None:
    _filled(g, "batch_size", "samples a step of each GPU")
    _filled(g, "max_steps", "optimizer steps in all; they decide the learning rates")
    setting(g, "gradient_accumulation_steps", 1, "batches a step")
    _filled(g, "learning_rate", "the highest", kind=float)
    help = "factors on the learning rate of the parameters that have NAME in theirs, such as patch_embedding=0.01"
    g.add_argument("--learning_rate_scale", nargs="+", type=_scale, metavar="NAME=F", default=[], help=help)
    setting(g, "weight_decay", 1e-5, "AdamW's")
    setting(g, "warmup_ratio", 0.05, "share of the steps in which the learning rate rises")
    _filled(g, "dropout", "probability of it, in every block of the action head that is trained", kind=float)
    setting(g, "seed", 42, "of every draw")
    setting(g, "num_gpus", 1, "processes, each with a GPU of its own")
    help = "bf16: products in bf16, trained weights in fp32, as the original; fp32 [bf16 on a GPU, fp32 on a CPU]"
    g.add_argument("--precision", choices=PRECISIONS, help=help)
    help = "inference: a sample sees what it would see alone; upstream: the action head sees padding too"
    g.add_argument("--padding", default="inference", choices=PADDINGS, help=f"{help} [%(default)s]")
    source_flags(g, "device")


def _scale(text: str) -> tuple[str, float]:
    name, _, factor = text.partition("=")
    try:
        number = float(factor)
    except ValueError:
        number = -1.0
    if not name or not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: NAME=FACTOR is wanted, with a factor of 0 or more")
    return name, number


def _lora_flags(g: Any) -> None:
    setting(g, "lora_rank", 0, "rank of the change of every matrix; 0: no adapter")
    setting(g, "lora_alpha", 16, "the change is scaled by alpha / rank")
    setting(g, "lora_dropout", 0.1, "in front of the first matrix", metavar="P")
    switch(g, "lora_full_model", help="adapters in vision tower and language model too, not only in the action head")
    help = "train the robot's encoders and decoder whole beside the adapter [on for new_embodiment]"
    switch(g, "lora_train_projector", default=None, help=help)
    switch(g, "merge", help="at the end also write the adapter merged into its base, as a whole checkpoint")


def _result_flags(g: Any) -> None:
    help = f"folder for checkpoints, metrics and a plot [{OUTPUT_DIR}, or a numbered one beside it]"
    g.add_argument("--output_dir", metavar="DIR", help=help)
    _filled(g, "save_steps", "a checkpoint, and the held-out loss, every N steps")
    setting(g, "keep", 5, "newest checkpoints that are kept, beside the best one")
    switch(g, "resume", help="go on from the last checkpoint in the output folder")
    setting(g, "eval_samples", 512, "held-out samples at most, spread over the held-out episodes")
    g.add_argument("--report_to", metavar="NAME", help="tensorboard; metrics.jsonl is written always [if installed]")


def _filled(g: Any, name: str, help: str, kind: type = int) -> None:
    """A flag whose default depends on the model."""
    shown = f"{PUBLISHED[name]:g}, synthetic: {GENERATED[name]:g}"
    g.add_argument(f"--{name}", type=kind, metavar="N", help=f"{help} [{shown}]")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, checked as far as they can be without data. Raises: UsageError."""
    args = parse_flags(parser(), argv)
    defaults = GENERATED if args.base_model_path == "synthetic" else PUBLISHED
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, min(value, os.cpu_count() or 1) if "workers" in name else value)
    check_model(args.base_model_path, "--base_model_path")
    for path in args.dataset_path:
        check_dataset(path)
    check_output_folder(args.output_dir, "--output_dir")
    check_seed(args.seed)
    _check_numbers(args)
    _check_parts(args)
    if args.video_backend is not None:
        if args.video_backend not in FRAME_RULES:
            raise unknown(UsageError, "--video_backend", args.video_backend, FRAME_RULES)
        args.frame_lookup = FRAME_RULES[args.video_backend]
    _check_report(args)
    return args


def _check_numbers(args: argparse.Namespace) -> None:
    check_least(args, batch_size=1, max_steps=1, save_steps=1, gradient_accumulation_steps=1, num_gpus=1, keep=1)
    check_least(args, dataloader_num_workers=0, dataloader_prefetch_factor=1, eval_samples=1, lora_rank=0)
    for name, within, known in (
        ("dropout", 0 <= args.dropout < 1, "0 to below 1"),
        ("lora_dropout", 0 <= args.lora_dropout < 1, "0 to below 1"),
        ("warmup_ratio", 0 <= args.warmup_ratio <= 1, "0 to 1"),
        ("learning_rate", 0 < args.learning_rate < float("inf"), "above 0; 1e-4 as published"),
        ("weight_decay", 0 <= args.weight_decay < float("inf"), "0 or more"),
        ("lora_alpha", not args.lora_rank or args.lora_alpha > 0, "above 0"),
    ):
        if not within:
            raise UsageError(f"--{name}: {getattr(args, name):g} is out of range", known=known)


def _check_parts(args: argparse.Namespace) -> None:
    """Raises: UsageError for flags that contradict one another."""
    if args.lora_rank:
        chosen = [f"--{name}" for name in ("tune_llm", "tune_visual") if getattr(args, name)]
        if chosen:
            fix = "--lora_full_model puts adapters there; or leave --lora_rank out"
            raise UsageError(f"{' and '.join(chosen)} with --lora_rank: an adapter freezes all other weights", fix=fix)
    else:
        extra = [f"--{name}" for name in ("lora_full_model", "lora_train_projector", "merge") if getattr(args, name)]
        if extra:
            raise UsageError(f"{' and '.join(extra)} without an adapter", fix="add --lora_rank 64")


def _check_report(args: argparse.Namespace) -> None:
    if args.report_to is not None and args.report_to not in REPORTS:
        raise unknown(UsageError, "--report_to", args.report_to, REPORTS)
    if args.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UsageError("--report_to tensorboard: it is not installed", fix=install("tensorboard"))
