"""Which parts of a model are trained, in which dtype each is held, and its trained tensors under the original's names.

Source: Isaac-GR00T, set_trainable_parameters and set_frozen_modules_to_eval_mode of backbone and action head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..model.adapter import PREFIX
from .slots import slots_below

_EAGLE = "backbone.eagle_model"
LLM, VISION, CONNECTOR = (f"{_EAGLE}.{name}" for name in ("language_model", "vision_model", "mlp1"))
PER_ROBOT = tuple(f"action_head.{name}" for name in ("state_encoder", "action_encoder", "action_decoder"))
POSITIONS, DIT = "action_head.position_embedding", "action_head.model"

FLAGS: Mapping[str, tuple[str, ...]] = {
    "tune_llm": (LLM,),
    "tune_visual": (VISION, CONNECTOR),
    "tune_projector": (*PER_ROBOT, POSITIONS),
    "tune_diffusion_model": (DIT,),
}
"""Flag -> the modules that only it trains. What stands in none of them is always trained: the norm and the
self-attention over vision-language features, and the future tokens."""

LORA = (".lora_A.default.", ".lora_B.default.")


@dataclass(frozen=True)
class Parts:
    """What is trained.

    Attributes:
        lora: Everything is frozen but the adapter's own matrices; the flags then only say where dropout is active.
        robot_slots: With `lora`: the robots' own encoders and decoder are trained as well.
    """

    tune_llm: bool = False
    tune_visual: bool = False
    tune_projector: bool = True
    tune_diffusion_model: bool = True
    lora: bool = False
    robot_slots: bool = False

    @property
    def frozen(self) -> tuple[str, ...]:
        """Modules that the flags leave out."""
        return tuple(name for flag, names in FLAGS.items() if not getattr(self, flag) for name in names)

    def trains(self, name: str) -> bool:
        """Whether a parameter of the plain model is trained."""
        if self.lora:
            return self.robot_slots and _is_below(name, PER_ROBOT)
        return not _is_below(name, self.frozen)


def _is_below(name: str, modules: tuple[str, ...]) -> bool:
    return name.startswith(tuple(f"{module}." for module in modules))


def dtypes_of(parts: Parts, computing: torch.dtype) -> Callable[[nn.Module], None]:
    """A function that sets the dtypes of a model before it has weights: fp32 for everything trained.

    What is frozen is computed in `computing` anyway, and stored in it to save memory: the whole backbone, as in the
    original, and the linear layers of the action head, whose fp32 weights autocast would round to the same values.

    Args:
        computing: Of autocast; float32 for none.
    """

    def cast(model: nn.Module) -> None:
        model.to(torch.float32)
        for name, module in model.named_modules():
            own = [f"{name}.{leaf}" for leaf, _ in module.named_parameters(recurse=False)]
            halved = name.startswith("backbone.") or isinstance(module, nn.Linear)
            if own and halved and not any(map(parts.trains, own)):
                module.to(computing)

    return cast


def freeze(model: nn.Module, parts: Parts) -> None:
    """Let only the trained parameters have gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parts.trains(name))


def set_training(model: nn.Module, parts: Parts) -> None:
    """Training mode for all, evaluation mode for what is frozen: there dropout does nothing."""
    model.train()
    for name in parts.frozen:
        parent, _, leaf = name.rpartition(".")
        module = getattr(model.get_submodule(parent), leaf)  # a model without this part has None there
        if module is not None and name != CONNECTOR:  # the original leaves it in training mode: it does the same there
            module.eval()


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of what has gradients, always in the same order: that of the optimizer.

    Names are the original's, those of an adapter with PEFT's prefix; a layer per robot holds the used slots alone.
    """
    found = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
    return {peft_key(name) if any(part in name for part in LORA) else name: p for name, p in found}


def peft_key(name: str) -> str:
    """The name under which PEFT's files hold a trained tensor, however the model in training calls it."""
    return PREFIX + name.removeprefix(PREFIX).replace(".default.", ".").replace(".modules_to_save.", ".")


@torch.no_grad()
def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What training has changed, under the original's names and in its shapes: all robots' slots in one tensor.

    Returns: Name -> fp32 tensor, which shares the parameter's memory where the shape is the same. An adapter's are
        named as in its file, ``base_model.model.….lora_A.weight``.
    """
    slots = slots_below(model)
    out = {}
    for name, parameter in trained_parameters(model).items():
        leaf = name.rpartition(".")[2]
        out[name] = slots[name].whole(leaf) if name in slots else parameter.detach()
    return out


@torch.no_grad()
def load_trained(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """The reverse of `trained_tensors`. Raises: CheckpointError for other names or shapes."""
    slots, own = slots_below(model), trained_parameters(model)
    strangers = sorted(set(tensors) ^ set(own))
    if strangers:
        known = "the tensors that these flags train"
        raise CheckpointError(f"{where}: {strangers[0]} is trained in only one of the two runs", known=known)
    for name, parameter in own.items():
        value, leaf = tensors[name], name.rpartition(".")[2]
        shape = slots[name].whole(leaf).shape if name in slots else parameter.shape
        if value.shape != shape:
            raise CheckpointError(f"{where}: {name} has shape {list(value.shape)}", known=str(list(shape)))
        if name in slots:
            slots[name].take(leaf, value)
        else:
            parameter.copy_(value)
