"""Engines on disk: `<submodule>.engine` and, beside it, the manifest that says what it is and whether to trust it.

A file appears under its final name only when it is complete, and the manifest only after its engine. An engine
whose bytes do not match its manifest, or that has none, is never used.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import RecordError
from .key import Key, stem_of
from .manifest import Description, EngineFile, Manifest, manifest_text, read_manifest

_CHUNK_BYTES = 64 * 2**20


def prepare_engine_dir(path: Path) -> Path:
    """Make the folder and prove that files can be made in it, before minutes are spent on a build.

    Raises: RecordError naming the path and the cause.
    """
    with _writing(path):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".writable-"):
            pass
    return path


def write_engine(
    engine_dir: Path, submodule: str, plan: bytes | memoryview, *, description: Description, key: Key | None = None
) -> EngineFile:
    """Write an engine and then its manifest, each completely or not at all.

    Args:
        plan: The serialised engine.
        key: Of an engine in the cache, which names its files; else the submodule does.
    Raises: RecordError when the folder cannot be written, naming it; nothing half-written stays behind.
    """
    engine, manifest_path = engine_paths(engine_dir, submodule if key is None else stem_of(key))
    manifest = Manifest(
        **vars(description),
        submodule=submodule,
        engine=engine.name,
        sha256=hashlib.sha256(plan).hexdigest(),
        bytes=memoryview(plan).nbytes,
        key=dict(key or {}),
    )
    _start(engine_dir, manifest_path)
    _write_whole(engine, plan)
    _write_whole(manifest_path, manifest_text(manifest).encode())
    return EngineFile(path=engine, manifest=manifest_path, bytes=manifest.bytes)


def place_engine(source: EngineFile, engine_dir: Path, submodule: str) -> EngineFile:
    """Put an engine that lies elsewhere into a folder under its submodule's name, with its manifest.

    The two folders share one file where they can (a hard link), else it is copied.

    Raises: RecordError as `read_manifest` and `write_engine`.
    """
    engine, manifest_path = engine_paths(engine_dir, submodule)
    manifest = dataclasses.replace(read_manifest(source.manifest), engine=engine.name)
    _start(engine_dir, manifest_path)
    temporary = engine.with_name(f".{engine.name}-{os.getpid()}.partial")
    try:
        with _writing(engine):
            try:
                os.link(source.path, temporary)
            except OSError:  # another disk, another owner, or a file system without links
                shutil.copyfile(source.path, temporary)
            os.replace(temporary, engine)
    finally:
        # A rename onto another link to the same file leaves both names.
        with suppress(OSError):
            temporary.unlink()
    _write_whole(manifest_path, manifest_text(manifest).encode())
    return EngineFile(path=engine, manifest=manifest_path, bytes=manifest.bytes)


def engine_paths(engine_dir: Path, stem: str) -> tuple[Path, Path]:
    """Where the engine and the manifest of a submodule, or of another stem, lie."""
    return engine_dir / f"{stem}.engine", engine_dir / f"{stem}.manifest.json"


def verify(engine: Path) -> Manifest:
    """Check an engine against the manifest beside it, every byte of it, without holding it in memory.

    Raises: RecordError for a missing manifest or engine, another size, or another hash.
    """
    found = _manifest_of(engine)
    digest = hashlib.sha256()
    with _reading(engine), engine.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    _same_bytes(engine, found, digest.hexdigest())
    return found


def load(engine: Path) -> tuple[Manifest, bytes]:
    """Read an engine, and check the very bytes that were read. Raises: RecordError as `verify`."""
    found = _manifest_of(engine)
    with _reading(engine):
        plan = engine.read_bytes()
    _same_bytes(engine, found, hashlib.sha256(plan).hexdigest())
    return found, plan


_REBUILD = "delete it and build the engine again"


def _manifest_of(engine: Path) -> Manifest:
    found = read_manifest(engine_paths(engine.parent, engine.stem)[1])
    if found.engine != engine.name:
        raise RecordError(f"{engine}: its manifest describes {found.engine}", fix=_REBUILD)
    with _reading(engine):
        size = engine.stat().st_size
    if size != found.bytes:
        raise RecordError(f"{engine}: {size} bytes where {found.bytes} were written", fix=_REBUILD)
    return found


def _same_bytes(engine: Path, manifest: Manifest, digest: str) -> None:
    if digest != manifest.sha256:
        raise RecordError(f"{engine}: its bytes differ from those that were written", fix=_REBUILD)


@contextmanager
def _reading(engine: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise RecordError(f"{engine}: cannot be read ({e.strerror or e})", fix=_REBUILD) from e


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise cannot_write(path, e) from e


def _start(engine_dir: Path, manifest_path: Path) -> None:
    prepare_engine_dir(engine_dir)
    # An old manifest must not vouch for a new engine, nor for none.
    with _writing(manifest_path):
        manifest_path.unlink(missing_ok=True)


def _write_whole(path: Path, data: bytes | memoryview) -> None:
    with _writing(path):
        # The same folder, so that the rename stays within one file system and is atomic.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".partial")
        try:
            try:
                rest = memoryview(data).cast("B")
                while rest:
                    rest = rest[os.write(descriptor, rest[:_CHUNK_BYTES]) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(path.parent)


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
