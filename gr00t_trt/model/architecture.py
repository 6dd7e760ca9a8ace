"""What the rest of the package knows of a model generation. Never imports torch.

A generation is one folder beside this file with an `Architecture` in its `architecture.py`, and one row in
`gr00t_trt.model.ARCHITECTURES`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BATCH, IMAGES, LENGTH = "batch", "images", "length"
"""The dimensions along which arguments of a compile target vary."""


Arguments = Mapping[str, Mapping[int, str]]
"""Argument name of a compile target, in order -> axis -> name of the dimension that varies along it."""


@dataclass(frozen=True)
class Architecture:
    """One generation of the model.

    Attributes:
        name: Of its folder. title: What people call it.
        submodules: The compile targets of the plain model, in the order in which a request passes through them.
        groups: Name on the command line -> the submodules that it stands for.
        joint: Compile target that is one graph of a whole group -> that group.
        step: The submodules that one denoising step consists of.
        loops: How the denoising loop is cut, the plain model's way first; the others are compile targets of the
            restructured model, each in the place of `step`.
        arguments: Compile target of the plain model -> its arguments.
        covers: Stage made of several submodules, or of another's -> these; the first gives it its settings.
        borrows: Stage -> optimization with which weights of further submodules compute in it, and these submodules;
            they are cast with their owner.
        attention: The submodules that have attention.
        image_tokens: Of one 224 x 224 view. longest_prompt: Tokens that the language model has positions for.
        optimizations: Steps from the plain model to the restructured one, in the order of the waterfall -> what each
            does.
        renamed: Name that an optimization had in earlier releases -> the one that it is part of.
        replay_needs: The optimization without which requests cannot be replayed as CUDA graphs.
        plain_only: Setting of a plan that the restructured model cannot honour -> why.
        restructure: ``module:function`` that makes the restructured model of a plain one and some optimizations.
        kernels: ``module:function`` that gives a stage of the restructured model hand-written kernels, or None for one
            that has none. See `with_kernels`.
        colors: Stage of a request -> its colour in charts; stages of one colour are one part of a request.
    """

    name: str
    title: str
    submodules: tuple[str, ...]
    groups: Mapping[str, tuple[str, ...]]
    joint: Mapping[str, tuple[str, ...]]
    step: tuple[str, ...]
    loops: tuple[str, ...]
    arguments: Mapping[str, Arguments]
    covers: Mapping[str, tuple[str, ...]]
    borrows: Mapping[str, tuple[str, tuple[str, ...]]]
    attention: tuple[str, ...]
    image_tokens: int
    longest_prompt: int
    optimizations: Mapping[str, str]
    renamed: Mapping[str, str]
    replay_needs: str
    plain_only: Mapping[str, str]
    restructure: str
    kernels: str
    colors: Mapping[str, str]

    def restructured(self, plain: Any, optimizations: Sequence[str]) -> Any:
        """The `Model` with these optimizations, which shares the plain one's weights; without any, the plain one."""
        return _named(self.restructure)(plain, optimizations=optimizations) if optimizations else plain

    def with_kernels(self, stage: Any, *, chained: bool = False) -> Any:
        """The stage with kernels of its own, an `nn.Module` on the same weights; None for one that has none.

        Its attribute `wants_compiler` says whether it leaves work to torch.compile, which must then compile it.

        Args:
            chained: It leaves none to it where there are kernels for everything.
        """
        return _named(self.kernels)(stage, chained=chained)

    def parts_of(self, target: str) -> tuple[str, ...]:
        """The submodules that a compile target takes the place of: itself, or several."""
        return self.covers.get(target, self.joint.get(target, (target,)))


def _named(source: str) -> Any:
    module, _, name = source.partition(":")
    return getattr(importlib.import_module(module), name)
