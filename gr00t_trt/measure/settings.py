"""Options of torch.compile that are tried one by one, on top of a mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from ..backends.base import BuildContext, Built
from ..backends.inductor.backend import InductorBackend
from ..model.targets import Target
from ..plans.schema import BuildOptions


def unknown_setting(names: Sequence[str]) -> str | None:
    """Why options cannot be switched on, in a sentence; None where this release of PyTorch has them all."""
    absent = [name for name in names if not _has(name)]
    if not absent:
        return None
    return f"unsupported: torch {torch.__version__} has no torch.compile option {', '.join(absent)}"


def _has(name: str) -> bool:
    import torch._inductor.config as config

    found: object = config
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return isinstance(found, bool)


class TunedInductor(InductorBackend):
    """torch.compile in a mode, with further options switched on while it compiles.

    Args:
        settings: Names of true-or-false options, such as ``triton.enable_pdl``; `unknown_setting` must know them all.
    """

    def __init__(self, mode: str, settings: Sequence[str]):
        super().__init__(mode)
        self._settings = dict.fromkeys(settings, True)

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """As `InductorBackend.build`."""
        import torch._inductor.config as config

        with config.patch(self._settings):
            built = super().build(target, options, context)
        return replace(built, settings={**built.settings, **self._settings})
