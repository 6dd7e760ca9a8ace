"""Options of torch.compile that are tried one by one, on top of a mode.

An option is spelled ``name`` for one that is true or false, and is then switched on, or ``name=value``. Names are those
of `torch._inductor.config`; ``products.NAME=false`` leaves out one of this package's own rewritings, see `REWRITINGS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..backends.base import BuildContext, Built
from ..backends.inductor.backend import InductorBackend
from ..backends.inductor.rewritings import REWRITINGS
from ..errors import PlanError
from ..model.targets import Target
from ..plans.schema import BuildOptions

OWN = "products."


def unknown_setting(options: Sequence[str]) -> str | None:
    """Why options cannot be set, in a sentence; None where this release of PyTorch takes them all."""
    absent = [option for option in options if _value(option) is None]
    if not absent:
        return None
    return f"unsupported: torch {torch.__version__} has no torch.compile option {', '.join(absent)}"


def _value(option: str) -> bool | int | str | None:
    """What an option is set to, in the type that it has there; None for one that is not there."""
    name, given, text = option.partition("=")
    if name.startswith(OWN):
        return False if name.removeprefix(OWN) in REWRITINGS and text == "false" else None
    import torch._inductor.config as config

    found: object = config
    for part in name.split("."):
        if not hasattr(found, part):
            return None
        found = getattr(found, part)
    if isinstance(found, bool):
        return {"": True, "true": True, "false": False}.get(text) if bool(given) == bool(text) else None
    if isinstance(found, int):
        return int(text) if text.isdecimal() else None
    return text if isinstance(found, str) and text else None


class TunedInductor(InductorBackend):
    """torch.compile in a mode, with further options set while it compiles.

    Args:
        settings: Spelled as this file says.
    Raises: PlanError for one that `unknown_setting` does not know.
    """

    def __init__(self, mode: str, settings: Sequence[str]):
        why = unknown_setting(settings)
        if why is not None:
            raise PlanError(f"inductor: {why}")
        values = {option.partition("=")[0]: _value(option) for option in settings}
        super().__init__(mode, without=[name.removeprefix(OWN) for name in values if name.startswith(OWN)])
        self._settings: Mapping[str, object] = values

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """As `InductorBackend.build`."""
        import torch._inductor.config as config

        with config.patch({name: value for name, value in self._settings.items() if not name.startswith(OWN)}):
            built = super().build(target, options, context)
        return replace(built, settings={**built.settings, **self._settings})
