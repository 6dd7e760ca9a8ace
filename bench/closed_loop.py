#!/usr/bin/env python3
"""Does compilation cost success? A small GR00T, trained here, in the same scenes under several plans.

    python bench/closed_loop.py FOLDER                 an hour on two cores, without a GPU
    python bench/closed_loop.py FOLDER --demonstrations 4 --steps 20 --episodes 2      a rehearsal

An SO-101 arm in MuJoCo picks a cube up and puts it on a disc. Every part is a command of the package, and is not done
again where FOLDER has its result:

    demonstrations/   the scripted expert, its joints pushed at times so that recoveries are seen
    base/             a GR00T N1.5 of 1 M parameters with random weights: vision tower, language model, DiT, all small
    run/              all of it trained on the demonstrations, from random weights, with the published loss
    expert.json, untrained.json, plans.json     50 scenes that none of them has seen, the same for all
    accuracy-*.json   each of `JUDGED` against eager fp32 on the demonstrations that were held out of the training

Nothing is pretrained, so the start decides whether pictures are used at all: see `made_to_see`.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from rich.console import Console
from torch import nn

import gr00t_trt
from gr00t_trt.common.command import Parser, check_least, parse_flags, run_program
from gr00t_trt.data import LeRobotDataset, data_config, synthetic_tokenizer
from gr00t_trt.model.config_writer import config_file, eagle_file
from gr00t_trt.model.folders import CONFIG, EAGLE_CONFIG
from gr00t_trt.model.n1_5 import config as geometry
from gr00t_trt.model.n1_5.gr00t import Gr00tN1d5
from gr00t_trt.model.n1_5.inputs import PIXELS
from gr00t_trt.model.weight_writer import from_tensor, write_json, write_weights

ROBOT = ("--data_config", "so100", "--embodiment_tag", "new_embodiment")
SLOT, JOINTS = 31, 6
PICTURES = 64
"""Frames whose mean the position table takes away."""
HELD_OUT = 10
PLANS = ("eager:fp32", "eager:bf16", "inductor:fp32", "inductor:bf16", "onnxruntime:fp32")
QUANTIZED = ("int8", "fp8")
JUDGED: dict[str, dict[str, Any]] = {
    **{name: {"precision": name} for name in ("bf16", "int8", "fp8", "nvfp4")},
    # The worst layers of each submodule stay in bf16 until it reaches this.
    "fp8-kept": {"precision": "fp8", "keep": ["auto"], "gate": {"cosine": 0.9995}},
    "nvfp4-kept": {"precision": "nvfp4", "keep": ["auto"], "gate": {"cosine": 0.995}},
}
"""Plan -> its settings, without the calibration."""
ROWS = 5
"""Of each prediction before the policy is asked again about a held-out demonstration."""

_TOKENS = dict(zip(geometry.PUBLIC_SPECIAL_TOKENS, (1021, 1022, 1023, 1018, 1019, 1020), strict=True))
SMALL = geometry.Gr00tConfig(
    backbone=geometry.BackboneConfig(select_layer=1),
    eagle=geometry.EagleConfig(
        # 16 tokens a picture: the frames are the data config's, 224 x 224.
        vision=geometry.VisionConfig(64, 2, 4, 128, patch_size=56, image_size=224),
        text=geometry.TextConfig(64, 1, 4, 2, 16, 128, vocab_size=1024),
        image_token_index=1021,
        special_tokens=_TOKENS,
    ),
    action_head=geometry.ActionHeadConfig(
        diffusion=geometry.DiTConfig(4, 24, 4, output_dim=96, cross_attention_dim=64, interleave_self_attention=True),
        vl_self_attention=geometry.TransformerConfig(4, 16, 1),
        action_dim=32,
        action_horizon=16,
        max_state_dim=64,
        num_inference_timesteps=4,
        backbone_embedding_dim=64,
        input_embedding_dim=96,
        hidden_size=96,
        max_seq_len=64,
        num_target_vision_tokens=4,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def parser() -> Any:
    p = Parser(prog="closed_loop.py", description=__doc__)
    p.add_argument("folder", metavar="FOLDER")
    p.add_argument("--demonstrations", type=int, default=250, metavar="N", help="episodes of the expert [%(default)s]")
    p.add_argument("--steps", type=int, default=4000, metavar="N", help="optimizer steps of 32 samples [%(default)s]")
    p.add_argument("--episodes", type=int, default=50, metavar="N", help="unseen scenes [%(default)s]")
    return p


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    check_least(args, demonstrations=1, steps=1, episodes=1)
    folder = Path(args.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    held_out = min(HELD_OUT, args.demonstrations // 2)
    demonstrations, base, run = folder / "demonstrations", folder / "base", folder / "run"
    if not demonstrations.is_dir():
        expert = ("--scripted", "--jolts", "0.15", "--seed", "1000", "--n_episodes", str(args.demonstrations))
        kept = ("--save_dataset", "demonstrations", "--keep", "successes", "--record", "demonstrations.json")
        call(folder, "simulate", *expert, *kept)
    if not base.is_dir():
        make_base(base, demonstrations)
    trained = run / f"step-{args.steps}"
    if not trained.is_dir():
        train(folder, args.steps, held_out)
    scenes = ("--n_episodes", str(args.episodes), "--seed", "0")
    played(folder, "expert", "--scripted", *scenes)
    asked = (*ROBOT, "--n_action_steps", "8", *scenes)
    played(folder, "untrained", "--model_path", "base", "--backend", "eager", "--precision", "fp32", *asked)
    plans = (*PLANS, *quantized_plans(folder, trained))
    model = ("--model_path", trained.relative_to(folder))
    played(folder, "plans", *model, "--compare", ",".join(plans), *asked)
    for name in JUDGED:
        judged(folder, name, model, args.demonstrations - held_out, held_out)
    return 0


def train(folder: Path, steps: int, held_out: int) -> None:
    """Everything, without augmentation and dropout: the camera stands still, and the demonstrations are many."""
    what = ("--base_model_path", "base", "--dataset_path", "demonstrations", *ROBOT, "--tune_llm", "--tune_visual")
    how = ("--batch_size", "32", "--max_steps", str(steps), "--learning_rate", "3e-3", "--warmup_ratio", "0.03")
    # A patch's filter has 9408 inputs, which all see the same background: at the rate of the others, each step would
    # move all of a picture's features together, and what differs between pictures would drown.
    patches = ("--learning_rate_scale", "patch_embedding.weight=0.008")
    plain = ("--dropout", "0", "--no_augment", "--precision", "fp32", "--dataloader_num_workers", "1")
    kept = ("--output_dir", "run", "--save_steps", "500", "--eval_episodes", str(held_out))
    again = ("--resume",) if (folder / "run" / "latest").is_file() else ()
    call(folder, "finetune", *what, *how, *patches, *plain, *kept, *again)


def quantized_plans(folder: Path, trained: Path) -> list[str]:
    """A plan file for each of `JUDGED`, computed by its reference in eager PyTorch; those that scenes are played by."""
    calibration = folder / "calibration.safetensors"
    if not calibration.is_file():
        data = ("--dataset_path", "demonstrations", *ROBOT, "--frames", "32", "--out", calibration.name)
        call(folder, "calibrate", "--model_path", trained.relative_to(folder), *data, "--rank", "fp8", "nvfp4")
    for name, settings in JUDGED.items():
        plan = {"backend": "eager", **settings}
        if name != "bf16":
            plan["calibration"] = calibration.name
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(plan))
    return [f"{precision}.yaml" for precision in QUANTIZED]


def played(folder: Path, name: str, *flags: object) -> None:
    """Play the scenes, and keep the record."""
    record = folder / f"{name}.json"
    if not record.is_file():
        call(folder, "simulate", *flags, "--record", record.name)


def judged(folder: Path, name: str, model: Sequence[object], first: int, episodes: int) -> None:
    """Hold the actions of a plan against those of eager fp32 and the expert's, and keep the record."""
    record = folder / f"accuracy-{name}.json"
    if not record.is_file():
        frames = ("--start_traj", first, "--trajs", episodes, "--action_horizon", ROWS)
        what = ("--dataset_path", "demonstrations", *ROBOT, *frames, "--config", f"{name}.yaml", "--compare")
        call(folder, "evaluate", *model, *what, "--record", record.name)


def call(folder: Path, *command: object) -> None:
    """A command of the package. Raises: SystemExit with its status where it fails."""
    line = [sys.executable, "-m", "gr00t_trt", *map(str, command)]
    print(f"$ gr00t-trt {' '.join(line[3:])}", file=sys.stderr, flush=True)
    began, before = time.monotonic(), os.times()
    status = subprocess.run(line, cwd=folder).returncode
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    print(f"{time.monotonic() - began:.0f} s, {spent:.0f} s of processor time", file=sys.stderr, flush=True)
    if status:
        raise SystemExit(status)


@torch.no_grad()
def make_base(folder: Path, demonstrations: Path) -> None:
    """Write the untrained model as a checkpoint, with the statistics that its training will use."""
    torch.manual_seed(0)
    model = Gr00tN1d5(SMALL)
    start(model)
    making = folder.with_name("base.tmp")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    write(making, model)
    call(folder.parent, "metadata", demonstrations, *ROBOT, "--out", making / "experiment_cfg" / "metadata.json")
    made_to_see(model, pictures(making, demonstrations))
    (making / "model.safetensors").unlink()
    write(making, model)
    making.rename(folder)


def write(folder: Path, model: Any) -> None:
    write_weights(folder, {name: from_tensor(value) for name, value in model.state_dict().items()})
    write_json(folder / CONFIG, config_file(SMALL))
    write_json(folder / EAGLE_CONFIG, eagle_file(SMALL.eagle))
    synthetic_tokenizer(SMALL.special_tokens, SMALL.vocab_size).write(folder)


def start(model: nn.Module) -> None:
    """PyTorch's own initialisation, and what it has none for: tables small, layers per robot by their inputs."""
    for name, weight in model.named_parameters():
        if name.endswith(".W"):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        elif name.endswith(".b"):
            nn.init.zeros_(weight)
        elif any(table in name for table in ("future_tokens", "position_embedding", "embed_tokens")):
            nn.init.normal_(weight, std=0.05)
    head: Any = model.action_head
    for layer in (head.state_encoder.layer1, head.action_encoder.W1):
        # Of 64 and 32 columns six are in use.
        nn.init.normal_(layer.W[SLOT], std=JOINTS**-0.5)
        layer.W[SLOT, JOINTS:] = 0


def pictures(base: Path, demonstrations: Path) -> torch.Tensor:
    """[N, 3, 224, 224], as the model sees them."""
    policy = gr00t_trt.load_policy(base, data_config="so100", embodiment_tag="new_embodiment")
    dataset = LeRobotDataset(demonstrations, data_config("so100").modality_config())
    seen = []
    for number in range(0, len(dataset), max(1, len(dataset) // PICTURES)):
        observation = {key: value for key, value in dataset[number].items() if not key.startswith("action.")}
        seen.append(policy.preprocess(observation)[0][PIXELS].float())
    return torch.cat(seen)


def made_to_see(model: Any, seen: torch.Tensor) -> None:
    """Let what differs between pictures reach the first layer at the size of what does not.

    Usual filters give a picture's features 5 to 12 % that depends on the scene; the rest is the same background. So
    filters are smooth, the mean picture is taken away through the position table, and what is left is scaled to 1.
    """
    embeddings = model.backbone.eagle_model.vision_model.vision_model.embeddings
    weight, positions = embeddings.patch_embedding.weight, embeddings.position_embedding.weight
    coarse = torch.randn(weight.shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(0))
    weight.copy_(F.interpolate(coarse, weight.shape[-2:], mode="bilinear", align_corners=False))
    embeddings.patch_embedding.bias.zero_()
    features = embeddings.patch_embedding(seen).flatten(2).transpose(1, 2)
    mean = features.mean(0)
    scale = 1 / math.sqrt(float((features - mean).square().mean()))
    weight.mul_(scale)
    positions.sub_(mean * scale)


if __name__ == "__main__":
    sys.exit(main())
