"""`bundle.json`: what a bundle holds, for which machine, and the SHA-256 of every file. Never imports torch.

It is written last, so that a folder without one is no bundle, and it has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

from ...common.files import parse_json
from ...common.private_folder import distrust
from ...common.progress import Steps
from ...engines.manifest import checksum
from ...errors import RecordError
from ...record.environment import usable_cores
from ...record.files import typed

FILE, PLAN, RECORD, EXAMPLE = "bundle.json", "plan.yaml", "record.json", "example.safetensors"
MODEL, COMPILED, ENGINES, CALIBRATION = "model", "compiled", "engines", "calibration.safetensors"
"""Names in a bundle's folder."""

SCHEMA = 1
AGAIN = "copy the bundle again, or make it again: gr00t-trt bundle OUT --model_path CHECKPOINT"
_OWN = "chown -R $(id -u) BUNDLE, chmod -R go-w BUNDLE"
_BLOCK = 1 << 22
_READERS = 4


@dataclass(frozen=True)
class FileFact:
    """What a file was when the bundle was made."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Argument:
    """One argument of a compiled stage, as it was in the request that the stage was built for."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One stage that is not simply the model's own module.

    Attributes:
        kind: ``package``, ``engine``, ``traced`` or ``quantized``; `stages` says what is done about each.
        backend: That built it.
    """

    name: str
    kind: str
    backend: str
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Dimension:
    """A named dimension and the sizes that compiled stages take."""

    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True)
class PolicyFacts:
    """What turns observations into model inputs, beside the files of the model's folder.

    Attributes:
        data_config: A name; ``FILE.py:Class`` with a file of the bundle; or `LEROBOT`.
    """

    data_config: str
    embodiment_tag: str
    bracketed_instruction: bool = False


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes:
        checkpoint: What it was made from, as it was called.
        device: ``cuda`` or ``cpu``.
        machine: What it can be used with alone, by name; `machine.this_machine`.
        cpu_features: Instructions that compiled code may use; empty where none was compiled for a CPU.
        products: PyTorch's setting for products in fp32 when the example was computed.
        backends: As `Deployment.backends`.
        stages, dimensions: Of what was compiled.
        files: Path below the folder -> what it was.
    """

    checkpoint: str
    device: str
    machine: Mapping[str, str]
    policy: PolicyFacts
    cpu_features: tuple[str, ...] = ()
    products: str = "highest"
    backends: Mapping[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()
    dimensions: Mapping[str, Dimension] = field(default_factory=dict)
    command: str = ""
    created_utc: str = field(default_factory=lambda: datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"))
    files: Mapping[str, FileFact] = field(default_factory=dict)
    schema: int = SCHEMA


def manifest_text(manifest: Manifest) -> str:
    """A manifest as its file has it, checksum included."""
    fields = json.loads(json.dumps(asdict(manifest)))
    return json.dumps({**fields, "checksum": checksum(fields)}, indent=1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Raises: RecordError for a folder that is no bundle, one of another release, and a manifest that was changed."""
    path = folder / FILE
    try:
        raw = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise _no_bundle(folder) from error
    except (OSError, ValueError) as error:
        raise RecordError(f"{path}: not a readable manifest: {error}", fix=AGAIN) from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else None
        raise RecordError(f"{path}: manifest of schema {found!r}", known=f"schema {SCHEMA}", fix=AGAIN)
    if raw.pop("checksum", None) != checksum(raw):
        raise RecordError(f"{path}: the manifest is not as it was written", fix=AGAIN)
    manifest: Manifest = typed(Manifest, raw, "", str(path))
    return manifest


def plan_of_bundle(folder: Path) -> Path:
    """The plan's file. Raises: RecordError, as `read_manifest`."""
    read_manifest(folder)
    return folder / PLAN


def _no_bundle(folder: Path) -> RecordError:
    if not folder.is_dir():
        return RecordError(f"{folder}: no such folder", fix="name the folder that gr00t-trt bundle wrote")
    inside = sorted(path.parent.name for path in folder.glob(f"*/{FILE}"))
    fix = f"did you mean {folder / inside[0]}?" if inside else AGAIN
    return RecordError(f"{folder}: is no bundle: it has no {FILE}, which is written last", fix=fix)


def files_below(folder: Path) -> Iterator[str]:
    """All files of a folder, by their path below it, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def hashed(folder: Path, names: list[str], steps: Steps) -> dict[str, FileFact]:
    """What files are now, several read at a time. Raises: RecordError for one that is missing or cannot be read."""
    out: dict[str, FileFact] = {}
    # The largest first, so that no reader is left with it at the end.
    order = sorted(names, key=lambda name: -_size(folder / name))
    with ThreadPoolExecutor(min(_READERS, usable_cores() or 1)) as pool:
        for done, (name, fact) in enumerate(zip(order, pool.map(lambda n: _fact(folder / n), order), strict=True), 1):
            out[name] = fact
            steps.advance(done, len(order))
    return out


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fact(path: Path) -> FileFact:
    digest, size, block = hashlib.sha256(), 0, memoryview(bytearray(_BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
                size += count
    except FileNotFoundError as error:
        raise RecordError(f"{path}: missing from the bundle", fix=AGAIN) from error
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror or error}", fix=AGAIN) from error
    return FileFact(digest.hexdigest(), size)


def verify(folder: Path, manifest: Manifest, steps: Steps) -> None:
    """Hold every file against the manifest, every byte of it.

    Raises: RecordError naming a file that is missing, altered, or that somebody else may have written.
    """
    steps.step(f"checking the files of the bundle: {folder}")
    for name in ("", FILE, *manifest.files):
        _refuse_foreign(folder / name)
    for name, wanted in manifest.files.items():
        _check_size(folder / name, wanted)
    for name, found in hashed(folder, list(manifest.files), steps).items():
        if found != manifest.files[name]:
            raise RecordError(f"{folder / name}: its bytes are not those that were written", fix=AGAIN)


def _refuse_foreign(path: Path) -> None:
    why = distrust(path)
    if why is not None:
        known = "a folder and files of this user, or of root, that others cannot write to: a bundle is code that is run"
        raise RecordError(f"{path}: {why}", known=known, fix=f"if you trust it, make it yours: {_OWN}")


def _check_size(path: Path, wanted: FileFact) -> None:
    if not path.is_file():
        raise RecordError(f"{path}: missing from the bundle", fix=AGAIN)
    if path.stat().st_size != wanted.bytes:
        raise RecordError(f"{path}: {path.stat().st_size} bytes where {wanted.bytes} were written", fix=AGAIN)


def written(folder: Path, name: str, text: str) -> None:
    """A text file of a bundle that is being made, on the disk when this returns."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
