"""What a training starts from: flags to datasets, a model with the trained parts chosen, and an optimizer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.install import install
from ..data import GR00TTransform, Prompter, Tokenizer
from ..errors import PlanError, UsageError
from ..model import Gr00tConfig, load_config, load_model, resolve_checkpoint
from ..policy.choice import choose_data, chosen
from ..policy.lerobot import LeRobotDataConfig
from ..policy.policy import tokenizer_of
from .dropout import add_dropout
from .lora import Lora, add_lora
from .loss import FlowMatching
from .optimizer import make_optimizer
from .parts import FLAGS, Parts, dtypes_of, freeze, set_training, trained_parameters
from .ranks import Ranks
from .samples import DataOptions, Source, TrainingData, read_sources
from .slots import keep_slots
from .widths import widen_actions

NEW = "new_embodiment"
USUAL_WIDTH = 32
"""`max_action_dim` of every data config that does not choose one; the released model's."""


@dataclass(frozen=True)
class Start:
    """The flags, made into what they name; nothing is loaded before it is asked for."""

    args: argparse.Namespace

    @cached_property
    def folder(self) -> Path | None:
        """The base model's; None for a generated one."""
        return resolve_checkpoint(self.args.base_model_path)

    @cached_property
    def sources(self) -> list[Source]:
        """The datasets with their data configs and tags. Raises: Gr00tError, as `choose_data`."""
        args = self.args
        named = read_sources(args.dataset_path, args.data_config, args.embodiment_tag, args.dataset_weights)
        return [self._source(source) for source in named]

    def _source(self, named: Source) -> Source:
        # LeRobot's checkpoint knows its own data config, unless it is trained for another robot.
        folder = None if chosen(named.config) else self.folder
        config, tag = choose_data(folder, named.config, named.tag)
        made_for = getattr(config, "embodiment_tag", None)
        if tag == NEW and made_for is not None:
            name = getattr(config, "name", type(config).__name__)
            raise UsageError(
                f"--embodiment_tag {NEW} with the data config {name}, which was made for {made_for}",
                known=f"the projector of {made_for} is pretrained, that of {NEW} is not",
                fix=f"pass --embodiment_tag {made_for}, or a data config of your own robot",
            )
        # A built-in name stays one: what is generated for `synthetic` is chosen by it.
        return replace(
            named, config=named.config if isinstance(named.config, str) and folder is None else config, tag=tag
        )

    @cached_property
    def geometry(self) -> Gr00tConfig:
        """Of the model that is trained: with more action columns than the base where a data config asks for them."""
        base = load_config(self.folder or self.args.base_model_path)
        widest = max(map(_action_width, self.sources))
        if widest <= max(USUAL_WIDTH, base.action_head.action_dim):
            return base
        return replace(base, action_head=replace(base.action_head, action_dim=widest))

    @property
    def parts(self) -> Parts:
        """What is trained."""
        args = self.args
        own = args.lora_train_projector
        if own is None:
            own = any(source.tag == NEW for source in self.sources)
        return Parts(
            **{flag: getattr(args, flag) for flag in FLAGS},
            lora=bool(args.lora_rank),
            robot_slots=bool(args.lora_rank) and own,
        )

    @property
    def lora(self) -> Lora | None:
        """The adapter, if one is trained."""
        args = self.args
        if not args.lora_rank:
            return None
        return Lora(args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_full_model)

    def bf16(self, device: torch.device) -> bool:
        """Whether products are computed in bf16."""
        chosen_precision = self.args.precision or ("bf16" if device.type == "cuda" else "fp32")
        return bool(chosen_precision == "bf16")

    def data_options(self) -> DataOptions:
        """What is read, and how."""
        args, geometry = self.args, self.geometry
        words = self._tokenizer()
        size, tokens = geometry.image_size, geometry.tokens_per_image
        return DataOptions(
            sources=self.sources,
            geometry=geometry,
            prompter=Prompter(words, words.special_tokens, image_size=size, tokens_per_image=tokens),
            **{field.name: getattr(args, field.name) for field in fields(DataOptions) if hasattr(args, field.name)},
        )

    def _tokenizer(self) -> Tokenizer:
        where, folder, geometry = self.args.tokenizer, self.folder, self.geometry
        config = self.sources[0].config
        if where is None and isinstance(config, LeRobotDataConfig):
            where = config.tokenizer_folder()
        return tokenizer_of(where, folder, geometry)


def _action_width(source: Source) -> int:
    steps = getattr(source.data_config.transform(), "transforms", ())
    return max((step.max_action_dim for step in steps if isinstance(step, GR00TTransform)), default=USUAL_WIDTH)


@dataclass(frozen=True)
class Prepared:
    """A model that is ready to be trained.

    Attributes:
        trained: Name -> parameter, as `parts.trained_parameters`.
    """

    model: nn.Module
    objective: FlowMatching
    trained: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer


def prepare(start: Start, data: TrainingData, ranks: Ranks) -> Prepared:
    """Load the base model and choose what is trained. Raises: Gr00tError."""
    args, parts, device = start.args, start.parts, ranks.device
    dtype = torch.bfloat16 if start.bf16(device) else torch.float32
    model: Any = load_model(start.folder or args.base_model_path, dtype=dtypes_of(parts, dtype), device=device)
    width = start.geometry.action_head.action_dim
    if width > model.config.action_head.action_dim:
        _check_widening(parts, width)
        widen_actions(model, width)
    model.action_horizon = action_rows(data)
    freeze(model, parts)
    slots = keep_slots(model.action_head, sorted(data.embodiment_ids.values()))
    if start.lora is not None:
        own = {name: p.requires_grad for name, p in model.named_parameters()}
        add_lora(model, start.lora, args.seed)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name or own.get(name, False))
    set_training(model, parts)
    add_dropout(model.action_head, args.dropout)
    trained = trained_parameters(model)
    optimizer = make_optimizer(
        model,
        trained,
        weight_decay=args.weight_decay,
        fused=device.type == "cuda",
        scales=dict(args.learning_rate_scale),
    )
    return Prepared(model, FlowMatching(model, slots).to(device), trained, optimizer)


def action_rows(data: TrainingData) -> int:
    """Rows of an action, the same in all datasets."""
    config = next(iter(data.modality_configs.values()))
    return len(config["action"].delta_indices)


def _check_widening(parts: Parts, width: int) -> None:
    if not (parts.robot_slots if parts.lora else parts.tune_projector):
        flag = "--lora_train_projector" if parts.lora else "--tune_projector"
        what = f"actions of {width} columns are more than the base model's: its encoders and decoder must be trained"
        raise PlanError(what, fix=f"add {flag}")


def open_board(folder: Path, report_to: str | None) -> Any:
    """TensorBoard's writer; None where it is not wanted, or not installed and nobody asked for it."""
    if report_to not in (None, "tensorboard"):
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        if report_to is None:
            return None
        raise UsageError("--report_to tensorboard: it is not installed", fix=install("tensorboard")) from None
    return SummaryWriter(str(folder))


def named(parameters: Sequence[nn.Parameter]) -> str:
    """How many numbers, in words."""
    count = sum(parameter.numel() for parameter in parameters)
    return f"{count / 1e6:.1f} M" if count >= 1e5 else str(count)
