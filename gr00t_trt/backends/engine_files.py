"""Engines on disk: `<submodule>.engine` and, beside it, the manifest that says what it is and whether to trust it.

A file appears under its final name only when it is complete, and the manifest only after its engine. An engine
whose bytes do not match its manifest, or that has none, is never used.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import RecordError
from .base import EngineFile

if TYPE_CHECKING:
    from torch import nn

SCHEMA = 1
_CHUNK_BYTES = 64 * 2**20


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


@dataclass(frozen=True)
class Manifest:
    """What an engine file holds.

    Attributes:
        submodule: Name in the registry.
        engine: File name of the engine, in the manifest's folder.
        sha256, bytes: Of the engine file.
        inputs, outputs: In the order of the submodule's arguments and results, without inputs that it does not use.
        compute_capabilities: GPUs that the engine is for, such as ``8.9``; empty means the builder's default.
        versions: torch, torch_tensorrt and the TensorRT library that built it.
        options: The plan's build options. `settings`: the keyword arguments handed to the compiler.
        weights_sha256: See `weights_hash`.
        executed: False when it was built on a machine that cannot run it, so nothing about its speed is known.
        created: UTC, ISO 8601.
        platform: ``linux-x86_64``.
    """

    submodule: str
    engine: str
    sha256: str
    bytes: int
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    compute_capabilities: tuple[str, ...]
    versions: dict[str, str]
    options: dict[str, Any]
    settings: dict[str, Any]
    weights_sha256: str
    executed: bool
    created: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    platform: str = field(default_factory=lambda: f"{platform.system().lower()}-{platform.machine().lower()}")
    schema: int = SCHEMA


def prepare_engine_dir(path: Path) -> Path:
    """Make the folder and prove that files can be made in it, before minutes are spent on a build.

    Raises: RecordError naming the path and the cause.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-"):
            pass
    except OSError as e:
        raise cannot_write(path, e) from e
    return path


def write_engine(
    engine_dir: Path, submodule: str, plan: bytes | memoryview, *, description: dict[str, Any]
) -> EngineFile:
    """Write an engine and then its manifest, each completely or not at all.

    Args:
        plan: The serialised engine.
        description: The fields of Manifest that are not derived from the bytes and the name.
    Raises: RecordError when the folder cannot be written, naming it; nothing half-written stays behind.
    """
    prepare_engine_dir(engine_dir)
    engine, manifest_path = engine_paths(engine_dir, submodule)
    digest = hashlib.sha256(plan).hexdigest()
    manifest = Manifest(
        submodule=submodule, engine=engine.name, sha256=digest, bytes=memoryview(plan).nbytes, **description
    )
    text = json.dumps(dataclasses.asdict(manifest), indent=2, default=str) + "\n"
    # An old manifest must not vouch for a new engine, nor for none.
    try:
        manifest_path.unlink(missing_ok=True)
    except OSError as e:
        raise cannot_write(manifest_path, e) from e
    _write_whole(engine, plan)
    _write_whole(manifest_path, text.encode())
    return EngineFile(path=engine, manifest=manifest_path, bytes=manifest.bytes)


def engine_paths(engine_dir: Path, submodule: str) -> tuple[Path, Path]:
    """Where the engine and the manifest of a submodule lie."""
    return engine_dir / f"{submodule}.engine", engine_dir / f"{submodule}.manifest.json"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises: RecordError when it is missing, malformed or of another schema."""
    fix = "build the engine again"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        schema = raw["schema"]
    except FileNotFoundError as e:
        raise RecordError(f"{path}: no manifest, so its engine is not used", fix=fix) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise RecordError(f"{path}: not a readable manifest ({type(e).__name__})", fix=fix) from e
    if schema != SCHEMA:
        raise RecordError(f"{path}: manifest of schema {schema!r}", known=f"schema {SCHEMA}", fix=fix)
    try:
        for key in ("inputs", "outputs"):
            raw[key] = tuple(Binding(**{k: _tuple(v) for k, v in each.items()}) for each in raw[key])
        raw["compute_capabilities"] = tuple(raw["compute_capabilities"])
        return Manifest(**raw)
    except (KeyError, TypeError, AttributeError) as e:
        raise RecordError(f"{path}: manifest fields are missing or unknown ({e})", fix=fix) from e


def verify(engine: Path, manifest: Path | None = None) -> Manifest:
    """Check an engine against its manifest, every byte of it.

    Args:
        manifest: Defaults to the file beside the engine.
    Raises: RecordError for a missing manifest or engine, another size, or another hash.
    """
    found = read_manifest(manifest or engine_paths(engine.parent, engine.stem)[1])
    fix = "delete it and build the engine again"
    if found.engine != engine.name:
        raise RecordError(f"{engine}: its manifest describes {found.engine}", fix=fix)
    try:
        size = engine.stat().st_size
        if size != found.bytes:
            raise RecordError(f"{engine}: {size} bytes where {found.bytes} were written", fix=fix)
        digest = hashlib.sha256()
        with engine.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as e:
        raise RecordError(f"{engine}: cannot be read ({e.strerror or e})", fix=fix) from e
    if digest.hexdigest() != found.sha256:
        raise RecordError(f"{engine}: its bytes differ from those that were written", fix=fix)
    return found


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over a module's state: name, dtype, shape and bytes of each entry, in the state's order.

    Tensors are hashed in place where they are contiguous and on the CPU; others are copied one at a time.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            digest.update(memoryview(flat.view(torch.uint8).numpy()))
    return digest.hexdigest()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _write_whole(path: Path, data: bytes | memoryview) -> None:
    temporary = None
    try:
        # The same folder, so that the rename stays within one file system and is atomic.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".partial")
        try:
            for chunk in _chunks(data):
                _write_chunk(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as e:
        raise cannot_write(path, e) from e
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _chunks(data: bytes | memoryview) -> Iterable[memoryview]:
    view = memoryview(data).cast("B")
    return (view[at : at + _CHUNK_BYTES] for at in range(0, view.nbytes, _CHUNK_BYTES))


def _write_chunk(descriptor: int, chunk: memoryview) -> None:
    while chunk:
        chunk = chunk[os.write(descriptor, chunk) :]


def _sync_folder(path: Path) -> None:
    # The rename itself must survive a power cut; not every system can open a folder, and then it is left to it.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError) -> RecordError:
    """An error that says why a file or folder cannot be written, and what to do; raise it `from` the original."""
    reasons = {
        errno.ENOSPC: ("no space left on the device", "free some space, or name another folder with --engine_dir"),
        errno.EDQUOT: ("the disk quota is used up", "free some space, or name another folder with --engine_dir"),
        errno.ENOTDIR: ("a file stands where the folder should be", "name a folder with --engine_dir"),
        errno.EEXIST: ("a file stands where the folder should be", "name a folder with --engine_dir"),
    }
    default = (error.strerror or str(error), "make the folder writable, or name another one with --engine_dir")
    reason, fix = reasons.get(error.errno or 0, default)
    return RecordError(f"{path}: cannot be written: {reason}", fix=fix)
