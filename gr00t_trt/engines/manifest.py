"""What an engine file holds, and how that is written down beside it so that a change shows."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import RecordError

SCHEMA = 1


def this_platform() -> str:
    """Operating system and processor, such as ``linux-x86_64``: engines do not travel between them."""
    return f"{platform.system().lower()}-{platform.machine().lower()}"


@dataclass(frozen=True)
class Binding:
    """One input or output of an engine.

    Attributes:
        name: Name in the engine.
        dtype: ``float16``, ``int64``, ...
        minimum, optimum, maximum: Shapes of an input; for an output, -1 marks a dynamic axis.
    """

    name: str
    dtype: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    maximum: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is known of an engine when it is written.

    Attributes:
        inputs, outputs: In the order of the submodule's arguments and results, without inputs that it does not use.
        compute_capabilities: GPUs that the engine is for, such as ``8.9``; empty means the builder's default.
        versions: torch, torch_tensorrt and the TensorRT library that built it.
        options: The plan's build options. `settings`: the keyword arguments handed to the compiler.
        weights_sha256: See `weights_hash`.
        executed: False when it was built on a machine that cannot run it, so nothing about its speed is known.
        created: UTC, ISO 8601.
        platform: ``linux-x86_64``.
        arguments: For each of `inputs`, which argument of the submodule it is, from 0.
        coverage: How much of the submodule's graph the engine holds, where that was counted.
        layers: Of the network definition that the engine was built from, where they were counted.
        graph_sha256: Of the lowered graph that the engine was built from; None where the builder shows none.
    """

    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    compute_capabilities: tuple[str, ...]
    versions: dict[str, str]
    options: dict[str, Any]
    settings: dict[str, Any]
    weights_sha256: str
    executed: bool
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    platform: str = field(default_factory=this_platform)
    arguments: tuple[int, ...] = ()
    coverage: Coverage | None = None
    layers: int | None = None
    graph_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Manifest(Description):
    """What an engine file holds: its description, its name, and what its bytes must be.

    Attributes:
        submodule: Name in the registry.
        engine: File name of the engine, in the manifest's folder.
        sha256, bytes: Of the engine file.
        key: What the engine was built from and for, in full (`engine_key`); empty outside the engine cache.
    """

    submodule: str
    engine: str
    sha256: str
    bytes: int
    key: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def checksum(fields: Mapping[str, object]) -> str:
    """SHA-256 of a manifest's fields: what says which bytes to trust must not have changed itself."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises: RecordError when it is missing, malformed, without its checksum or of another schema."""
    fix = "build the engine again"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw["schema"]
    except FileNotFoundError as e:
        raise RecordError(f"{path}: no manifest, so its engine is not used", fix=fix) from e
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise RecordError(f"{path}: not a readable manifest ({type(e).__name__})", fix=fix) from e
    if schema != SCHEMA:
        raise RecordError(f"{path}: manifest of schema {schema!r}", known=f"schema {SCHEMA}", fix=fix)
    written = raw.pop("checksum", None)
    if written is None:
        raise RecordError(f"{path}: the manifest has no checksum", fix=fix)
    if written != checksum(raw):
        raise RecordError(f"{path}: the manifest is not as it was written", fix=fix)
    try:
        for key in ("inputs", "outputs"):
            raw[key] = tuple(
                Binding(each.pop("name"), each.pop("dtype"), **{bound: tuple(shape) for bound, shape in each.items()})
                for each in raw[key]
            )
        for key in ("compute_capabilities", "arguments"):
            raw[key] = tuple(raw.get(key, ()))
        if raw.get("coverage") is not None:
            raw["coverage"] = Coverage(**raw["coverage"])
        raw["key"] = dict(raw.get("key", {}))
        return Manifest(**raw)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise RecordError(f"{path}: manifest fields are missing or unknown ({e})", fix=fix) from e


def manifest_text(manifest: Manifest) -> str:
    """A manifest as its file has it, checksum included."""
    fields = json.loads(json.dumps(dataclasses.asdict(manifest), default=str))
    return json.dumps({**fields, "checksum": checksum(fields)}, indent=2) + "\n"


@dataclass(frozen=True)
class Coverage:
    """How much of a submodule's graph a compiler took.

    Attributes:
        operators: Operators in the lowered graph.
        converted: Operators that the compiler put into engines.
        engines: Engines it would build, or built.
        unsupported: Name -> count of the operators left to PyTorch.
    """

    operators: int
    converted: int
    engines: int
    unsupported: dict[str, int] = field(default_factory=dict)

    @property
    def percent(self) -> float:
        return 100.0 * self.converted / self.operators if self.operators else 100.0


@dataclass(frozen=True)
class EngineFile:
    """An engine written to disk, with its manifest beside it."""

    path: Path
    manifest: Path
    bytes: int
