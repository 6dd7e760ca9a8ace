"""The backend protocol: a target in, a callable and a description of the build out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from ..engines.cache import EngineCache
from ..engines.manifest import Coverage, EngineFile
from ..engines.serialized_engine import dtype_name
from ..model.targets import Target
from ..plans.backends import Availability
from ..plans.schema import BuildOptions


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        call: Runs the submodule in the model, same arguments and result as the eager module.
        runs: False when what was built cannot run on this machine; `call` then executes the compiler's own graph by
            other means, as the notes say, so its numbers are worth checking and its time is not worth quoting.
        build_s: Seconds for everything: export, lowering, engine. `phases_s` splits it.
        coverage: None for backends without a notion of it.
        engine: The engine file, when one was written.
        engine_bytes: Size of all engines of this target; None when unknown.
        layers_before: Layers of the network definition that TensorRT builds from, by either route; of ONNX Runtime's
            session, the nodes of its file. None for backends without such a graph, and for an engine that others built.
        layers_after: Layers of the engine that came out; None where it cannot be looked into, as without a GPU.
        settings: The exact keyword arguments handed to the compiler, for the record.
        notes: Plain sentences for the user: what was skipped, what is not proven.
        from_cache: The engine was found in the engine cache, and `build_s` is what finding and checking it took.
    """

    call: Callable[..., Any]
    runs: bool
    build_s: float
    phases_s: dict[str, float] = field(default_factory=dict)
    coverage: Coverage | None = None
    engine: EngineFile | None = None
    engine_bytes: int | None = None
    layers_before: int | None = None
    layers_after: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    from_cache: bool = False


@dataclass(frozen=True)
class BuildContext:
    """Where a build writes, what it may reuse, and whom it reports to.

    Attributes:
        engine_dir: Where engines are written; None keeps them in memory.
        progress: Called with a short phrase at each phase ("exporting", "building engine").
        cache: Where engines are looked for first and kept; of no use to a backend that makes none.
    """

    engine_dir: Path | None = None
    progress: Callable[[str], None] = lambda phase: None
    cache: EngineCache | None = None


Capturable = Literal["any shape", "one shape", "none"]
"""Whether calls of what a backend built can be captured as a CUDA graph: at any number of shapes side by side; at one,
since it keeps state that follows the shape last seen; or not at all, because it waits for the GPU or leaves it."""


class Backend(Protocol):
    """One way to run a submodule."""

    name: str
    capturable: Capturable

    def availability(self) -> Availability: ...

    def build(self, target: Target, options: BuildOptions, context: BuildContext) -> Built:
        """Build one submodule. Raises: BackendError naming the submodule and the phase that failed."""
        ...


def describe(args: Sequence[torch.Tensor]) -> str:
    """Shapes and dtypes in one line, for messages: ``fp16[1, 49, 1536], int64[1]``."""
    return ", ".join(f"{dtype_name(a.dtype)}{list(a.shape)}" for a in args)
