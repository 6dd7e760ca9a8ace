"""Records as files: written whole or not at all, read back as the types that they were written from. No torch."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any

from ..common.command import discard
from ..common.files import prepare_file, write_whole
from ..errors import RecordError
from .result import Against
from .samples import Samples
from .schema import SCHEMA, NonFinite, Record, drift_of
from .schema1 import upgraded

RECORD_FIX = "name a record; a run prints the path of its own as its last line"
LARGEST = 1e20
"""No measurement comes near it; above, arithmetic on axes would overflow."""

_FILE = ("record", "--record")
_SHOWN = {"backend": str, "precision": str, "loop": str, "optimizations": list[str], "build": Mapping[str, Any]}
"""What tables show of a plan, whose other settings are kept as they were written."""

_UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff\ufffe\uffff]"
)
"""Control characters, halves of characters, and the marks that turn the direction of the text around them."""


def visible(text: str) -> str:
    """Text without what no reader could see, and no file could hold: each such character becomes U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def record_flags(group: Any) -> None:
    """`--record` and `--json`, for `record_path` and `deliver`."""
    group.add_argument("--record", metavar="PATH", help="where the JSON record goes [records/<time>-<subject>.json]")
    group.add_argument("--json", action="store_true", help="print the record itself on stdout instead of its path")


def record_path(args: argparse.Namespace, subject: str) -> Path:
    """Where the record will go. Raises: RecordError, before any work is done, for a path that cannot be written."""
    path = Path(args.record) if args.record else default_record_path(Path.cwd(), subject)
    prepare_record(path)
    return path


def deliver(record: Record, path: Path, args: argparse.Namespace) -> None:
    """Write a record, and print its path on stdout, or itself with `--json`.

    Raises: RecordError when it cannot be written, or stdout takes nothing; a reader that has gone is no error.
    """
    write_record(record, path)
    try:
        print(dumps(record) if args.json else path, flush=True)
    except OSError as error:  # a full disk, or a reader that has seen enough: the record is safe in its file
        discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise RecordError(f"stdout cannot be written: {error.strerror}", fix=f"read {path}") from error


def default_record_path(root: str | Path, name: str) -> Path:
    """A path under `root`/records that no file has yet: UTC time to the millisecond and a short subject.

    Args:
        name: The subject, such as ``"fp16 all"``; anything but letters, digits, dots and dashes becomes a dash.
    """
    now = datetime.now(timezone.utc)
    subject = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "run"
    stem = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03d}Z-{subject}"
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    paths = (Path(root) / "records" / f"{name}.json" for name in names)
    return next(path for path in paths if not path.exists())


def prepare_record(path: str | Path) -> None:
    """`files.prepare_file` for a record. Raises: RecordError for a path that cannot be written."""
    prepare_file(path, *_FILE)


def write_record(record: Any, path: str | Path) -> Path:
    """Write a record, as `write_whole` does.

    NaN and infinities become null and are listed under `non_finite`; `record` itself is left as it is.

    Args:
        record: A `Record`, or a mapping of another program's.
    Returns: `path`.
    Raises: RecordError for a path that cannot be written, a full disk, or a value that JSON has no form for.
    """
    return write_whole(dumps(record) + "\n", path, *_FILE)


def dumps(record: Any) -> str:
    """The record as JSON text, the same that `write_record` writes. Raises: RecordError for a value without a form."""
    lost: list[NonFinite] = []
    plain = _plain(record, "", lost)
    if isinstance(plain, dict) and lost:
        before = plain.get("non_finite") or []
        plain["non_finite"] = [*before, *(_plain(one, "", []) for one in lost)]
    return json.dumps(plain, indent=1, allow_nan=False, ensure_ascii=False)


def _plain(value: Any, at: str, lost: list[NonFinite]) -> Any:
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        lost.append(NonFinite(at, str(float(value))))
        return None
    if isinstance(value, (str, Path)):
        return without_home(str(value))
    if isinstance(value, Samples):
        value = value.to_dict()
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{at}.{key}" if at else str(key), lost) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{at}[{i}]", lost) for i, item in enumerate(value)]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return _plain(value.tolist(), at, lost)
    known = "numbers, text, lists, mappings"
    raise RecordError(f"record: {at}: a {type(value).__name__} has no form in JSON", known=known)


def without_home(text: str) -> str:
    """Text with the home folder as ``~``: its path has the user's name, which a shared record must not."""
    home = os.path.expanduser("~")
    if len(home) <= 1:
        return text
    return re.sub(re.escape(home) + r"(?=/|\\|$|[\s'\":,;)])", "~", text)


def read_record(path: str | Path) -> Record:
    """Read a record back, of this schema or of the first.

    Raises: RecordError for a missing or unreadable file, broken JSON, another schema, or a field of another kind.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=refuse)
    except FileNotFoundError:
        near = sorted(str(p) for p in Path(path).parent.glob("*.json"))
        raise RecordError(f"{path}: no such record", known=near[:20] or None, fix=RECORD_FIX) from None
    except OSError as error:
        raise RecordError(f"{path}: the record cannot be read: {error.strerror or error}", fix=RECORD_FIX) from error
    except (ValueError, RecursionError) as error:  # includes JSONDecodeError and UnicodeDecodeError
        known = "JSON as this program writes it"
        raise RecordError(f"{path}: not a record: {error}", known=known, fix=RECORD_FIX) from error
    return record_from(raw, str(path))


def record_from(raw: Any, path: str) -> Record:
    """A record from what JSON holds. Raises: RecordError, as `read_record`."""
    schemas = f"schema 1 or {SCHEMA}"
    if not isinstance(raw, dict) or "schema" not in raw:
        raise RecordError(f"{path}: not a record: it has no schema number", known=schemas, fix=RECORD_FIX)
    first = raw["schema"] == 1
    if first:
        try:
            raw = upgraded(raw, path)
        except (TypeError, AttributeError, ValueError) as error:
            raise RecordError(f"{path}: not a record of schema 1: {error}", fix=RECORD_FIX) from error
    if raw["schema"] != SCHEMA:
        raise RecordError(f"{path}: schema {raw['schema']!r} is not known to this release", known=schemas)
    for key in ("created_utc", "results"):
        if raw.get(key) is None:
            raise RecordError(f"{path}: {key} is missing", known=f"the fields of schema {SCHEMA}", fix=RECORD_FIX)
    record = typed(Record, raw, "", path)
    assert isinstance(record, Record)
    for key, kind in _SHOWN.items():
        if record.setting(key) is not None:
            record.plan[key] = typed(kind, record.setting(key), f"plan.{key}", path)
    if first:  # what it held against another baseline than today's is held against today's
        for i, result in enumerate(record.results):
            if (old := result.against) and old.ratio is None and result.latency_ms:
                again = Against.of(old.baseline, old.latency_ms, result.latency_ms, result.name)
                record.results[i] = replace(result, against=again)
        record.drift = drift_of(record.results)
    return record


def typed(kind: Any, value: Any, at: str, path: str) -> Any:
    """A value from JSON as a type of `schema` says it: what is missing or null gets its default.

    Raises: RecordError naming file and field, for a value of another kind, or one that no measurement can have.
    """
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return None if value is None else typed(next(one for one in inside if one is not type(None)), value, at, path)
    if origin in (list, tuple):
        _require(list, value, "a list", at, path)
        return origin(typed(inside[0], item, f"{at}[{i}]", path) for i, item in enumerate(value) if item is not None)
    if origin is not None:  # a mapping
        _require(dict, value, "a mapping", at, path)
        # Among named figures a null is no figure; a version that is null is a package that is not there.
        nulls = inside[1] is Any or type(None) in typing.get_args(inside[1])
        kept = {k: v for k, v in value.items() if v is not None or nulls}
        return {visible(k): typed(inside[1], v, f"{at}.{k}", path) for k, v in kept.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        _require(dict, value, "a mapping", at, path)
        if kind is Samples:
            value = {**value, "samples": _kept(value, at, path)}
            if not value["samples"]:
                return None
        hints = _hints(kind)
        known = {
            field.name: typed(hints[field.name], value[field.name], f"{at}.{field.name}".lstrip("."), path)
            for field in fields(kind)
            if value.get(field.name) is not None
        }
        known = {name: item for name, item in known.items() if item is not None}  # latencies without a sample are none
        try:
            return kind(**known)
        except TypeError:
            optional = {f.name for f in fields(kind) if (f.default, f.default_factory) != (MISSING, MISSING)}
            missing = next(f.name for f in fields(kind) if f.name not in known and f.name not in optional)
            raise RecordError(f"{path}: {at} has no {missing}", fix=RECORD_FIX) from None
    return _scalar(kind, value, at, path)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields, once: most of the time that reading a long record took."""
    return typing.get_type_hints(kind)


def _scalar(kind: type, value: Any, at: str, path: str) -> Any:
    if issubclass(kind, Enum):
        if value not in [one.value for one in kind]:
            raise RecordError(f"{path}: {at} is {value!r}", known=[one.value for one in kind], fix=RECORD_FIX)
        return kind(value)
    if kind in (int, float):
        _require((int, float), value, "a number", at, path)
        # 1e999 is JSON, and Python reads it as infinity.
        if not (abs(value) <= LARGEST and math.isfinite(value)):
            beyond, known = (
                f"{path}: {at} is beyond anything that can be measured",
                f"numbers up to {LARGEST:g}, or null",
            )
            raise RecordError(beyond, known=known, fix=RECORD_FIX)
        return value
    _require(kind, value, {str: "text", bool: "true or false"}[kind], at, path)
    return visible(value) if isinstance(value, str) else value


def _kept(value: Mapping[str, Any], at: str, path: str) -> list[float]:
    """The samples of latencies, or where none were kept the median; `Samples` derives the rest again."""
    for key in ("p50", "p90", "p99", "min", "max", "mean", "std", "hz"):
        if value.get(key) is not None:
            _scalar(float, value[key], f"{at}.{key}", path)
    kept: list[float] = typed(list[float], value.get("samples") or [], f"{at}.samples", path)
    return kept or ([] if value.get("p50") is None else [value["p50"]])


def _require(kind: type | tuple[type, ...], value: Any, words: str, at: str, path: str) -> None:
    """Raises: RecordError for a value of another kind; true and false are no numbers."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise RecordError(f"{path}: {at} is a {type(value).__name__}", known=f"{words}, or null", fix=RECORD_FIX)
