"""Layer counts: of the network definition that TensorRT was given, and of the engine that it built.

The first number is of the network definition, which exists while an engine is built, with or without a GPU. The second
is of the engine, which tells it on a GPU only.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from .cpu_only import replaced


@contextmanager
def network_layers() -> Iterator[list[int]]:
    """Layers of every network that becomes an engine inside the scope, one number each, in the order of the builds.

    An engine that Torch-TensorRT takes from elsewhere has no network, and adds no number.
    """
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    counts: list[int] = []
    run = inspect.getattr_static(TRTInterpreter, "run")

    def run_and_count(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = run(self, *args, **kwargs)
        counts.append(self.ctx.net.num_layers)
        return result

    with replaced(TRTInterpreter, "run", run_and_count):
        yield counts


def engine_layers(modules: Iterable[Any]) -> int | None:
    """Layers of the engines in Torch-TensorRT's runtime modules, once they have run; None where one does not tell.

    The C++ and the Python runtime hide the engine in different places, and share what TensorRT's inspector says of it.
    """
    try:
        return sum(len(json.loads(module.get_layer_info())["Layers"]) for module in modules)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None
