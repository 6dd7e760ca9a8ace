"""PyTorch as it is: the reference that the other backends are measured against."""

from __future__ import annotations

import torch

from ..model.targets import Target
from ..plans.schema import BuildOptions
from .base import Availability, BuildContext, Built, Capturable
from .onednn_int8 import on_this_cpu


class EagerBackend:
    """Returns the module itself, on a CPU its layers in int8 by oneDNN. It accepts any shape: nothing is checked."""

    name = "eager"
    capturable: Capturable = "any shape"

    def availability(self) -> Availability:
        return Availability(installed=True, versions={"torch": str(torch.__version__)})

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        return Built(call=on_this_cpu(target).module, runs=True, build_s=0.0)
