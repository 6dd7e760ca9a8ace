"""PyTorch as it is: the reference that the other backends are measured against."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ..engines.cache import EngineCache
from ..model.targets import Target
from ..plans.schema import BuildOptions
from .base import Availability, Built, Capturable


class EagerBackend:
    """Returns the module itself. It accepts any shape, so nothing is checked."""

    name = "eager"
    capturable: Capturable = "any shape"

    def availability(self) -> Availability:
        return Availability(installed=True, versions={"torch": str(torch.__version__)})

    def build(
        self,
        target: Target,
        options: BuildOptions,
        *,
        engine_dir: Path | None,
        progress: Callable[[str], None],
        cache: EngineCache | None = None,
    ) -> Built:
        return Built(call=target.module, runs=True, build_s=0.0)
