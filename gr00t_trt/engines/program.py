"""`gr00t-trt engines`: what lies in the engine cache, whether it can be trusted, and how to make room.

Exit status: 0 done, 1 `list` found a damaged engine, 2 bad input, 130 interrupted, 141 nobody reads the output.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..common.command import Parser, discard, parse_flags, run_program
from ..common.progress import progress
from ..errors import RecordError, UsageError, unknown
from ..plans.backends import BACKENDS, get_backend
from ..plans.precisions import precision_of

if TYPE_CHECKING:
    from .cache import Entry
    from .key import Key

ACTIONS = ("list", "prune")
VALID, DAMAGED, OTHER = "valid", "damaged", "other version"
PIPE_WIDTH = 140
"""Columns of the table where no terminal says how many there are."""

EPILOG = """\
examples:
  what is there, every byte of it checked:
    gr00t-trt engines list
  what a month of disuse would remove, and then remove it:
    gr00t-trt engines prune --older_than 30 --dry_run
    gr00t-trt engines prune --older_than 30
  the least recently used ones, until 20 GB are left, and whatever is damaged:
    gr00t-trt engines prune --max_gb 20 --damaged

status: `valid`; `damaged`, never used and built again when it is needed; `other version`, built by other versions of
the libraries or of this package, or on another platform, and of no use to what is installed here.

exit status: 0 done, 1 list found a damaged engine, 2 bad input, 130 interrupted, 141 nobody reads the output
"""


def parser() -> argparse.ArgumentParser:
    p = Parser(
        prog="gr00t-trt engines",
        description="Engines that earlier runs built and later ones find again: list them, or make room.",
        epilog=EPILOG,
    )
    p.add_argument("action", metavar="list|prune", help="list: show and check every engine; prune: remove some")
    p.add_argument(
        "--engine_cache", metavar="DIR", help="the folder [$GR00T_TRT_ENGINE_CACHE, else ~/.cache/gr00t_trt/engines]"
    )
    p.add_argument("--json", action="store_true", help="print JSON instead of a table")
    g = p.add_argument_group("prune: what is removed, one or more of")
    g.add_argument("--older_than", type=float, metavar="DAYS", help="not used for this long")
    g.add_argument("--max_gb", type=float, metavar="N", help="least recently used first, until N GB are left")
    g.add_argument("--damaged", action="store_true", help="damaged engines")
    g.add_argument("--other_versions", action="store_true", help="engines of other versions")
    g.add_argument("--all", action="store_true", help="everything")
    g.add_argument("--dry_run", action="store_true", help="say what would be removed, and remove nothing")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    return run_program(_main, argv)


def _main(argv: Sequence[str], console: Console) -> int:
    args = parse_flags(parser(), argv)
    _check(args)
    from .cache import VARIABLE, open_cache  # past the flags: it imports PyTorch

    cache = open_cache(args.engine_cache)
    if cache is None:
        raise UsageError("the engine cache is off", fix=f"name its folder with --engine_cache, or unset {VARIABLE}")
    # What is removed without regard to its bytes need not be read.
    rows = _rows(cache, console, every_byte=args.action == "list" or args.damaged)
    if args.action == "list":
        _print(rows, args.json, f"{_size(rows)} in {cache.folder}")
        return 1 if any(row.status == DAMAGED for row in rows) else 0

    leaving = _chosen(rows, args, time.time())
    kept = [] if args.dry_run else [row for row in leaving if not cache.remove(row.name)]
    if not args.dry_run:
        cache.sweep()
    for row in kept:
        console.print(f"{row.name}: in use by another process, and left", markup=False, highlight=False)
    gone = [row for row in leaving if row not in kept]
    left = [row for row in rows if row not in gone]
    verb = "would be removed" if args.dry_run else "removed"
    _print(gone, args.json, f"{verb}: {_size(gone)}; left: {_size(left)}")
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.action not in ACTIONS:
        raise unknown(UsageError, "gr00t-trt engines", args.action, ACTIONS)
    for flag in ("older_than", "max_gb"):
        value = getattr(args, flag)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UsageError(f"--{flag}: {value} is out of range", known="0 and more")
    given = [flag for flag in ("damaged", "other_versions", "all") if getattr(args, flag)]
    given += [flag for flag in ("older_than", "max_gb") if getattr(args, flag) is not None]
    if args.action == "list" and (given or args.dry_run):
        raise UsageError(f"--{(*given, 'dry_run')[0]} belongs to prune", fix="gr00t-trt engines prune ...")
    if args.action == "prune" and not given:
        raise UsageError(
            "prune: nothing was said about what to remove",
            known="--older_than DAYS, --max_gb N, --damaged, --other_versions, --all",
        )


def _rows(cache: Any, console: Console, *, every_byte: bool) -> list[_Row]:
    stems = cache.stems()
    rows = []
    with progress(console) as steps:
        steps.step(f"{'checking' if every_byte else 'looking at'} {len(stems)} engines")
        for number, stem in enumerate(stems, 1):
            rows.append(_row(cache.entry(stem, every_byte=every_byte)))
            steps.advance(number, len(stems))
    return sorted(rows, key=lambda row: (-row.used, row.name))


@dataclass(frozen=True)
class _Row:
    """What is told of an entry, as `--json` prints it; None for what a damaged one does not say.

    Attributes:
        used: Seconds since the epoch. created: ISO 8601.
        inputs: Name -> sizes such as ``1..8x16x32``.
    """

    name: str
    bytes: int
    used: float
    status: str
    why: str | None
    submodule: str | None = None
    route: str | None = None
    precision: str | None = None
    inputs: Mapping[str, str] | None = None
    gpu: str | None = None
    versions: Mapping[str, str] | None = None
    created: str | None = None


def _row(entry: Entry) -> _Row:
    manifest = entry.manifest
    if entry.damage is not None or manifest is None:
        return _Row(entry.stem, entry.bytes, entry.used, DAMAGED, entry.damage)
    key = manifest.key
    differing = _differences(key)
    return _Row(
        entry.stem,
        entry.bytes,
        entry.used,
        OTHER if differing else VALID,
        f"other {', '.join(differing)}" if differing else None,
        submodule=manifest.submodule,
        route=key.get("route"),
        precision=next((name for b in manifest.inputs if (name := precision_of(b.dtype)) != b.dtype), None),
        inputs={binding.name: _sizes(binding) for binding in manifest.inputs},
        gpu=key.get("gpu"),
        versions=_versions_of(key),
        created=manifest.created,
    )


def _sizes(binding: Any) -> str:
    axes = zip(binding.minimum, binding.maximum, strict=False)
    return "x".join(str(low) if low == high else f"{low}..{high}" for low, high in axes)


def _differences(key: Key) -> list[str]:
    """What of a key can never be asked for by what is installed here, in words."""
    from .key import SCHEMA, source_hash
    from .manifest import this_platform

    here = {"schema": SCHEMA, "source_sha256": source_hash(), "platform": this_platform()}
    words = {"schema": "form of key", "source_sha256": "gr00t_trt", "platform": "platform"}
    out = [words[name] for name, value in here.items() if key.get(name) != value]
    there, installed = _versions_of(key), _installed(str(key.get("route")))
    return out + sorted(name for name in {*there, *installed} if there.get(name) != installed.get(name))


def _versions_of(key: Key) -> Mapping[str, str]:
    versions = key.get("versions")
    return versions if isinstance(versions, Mapping) else {}


@functools.lru_cache
def _installed(route: str) -> Mapping[str, str]:
    return get_backend(route).availability().versions if route in BACKENDS else {}


def _chosen(rows: Sequence[_Row], args: argparse.Namespace, now: float) -> list[_Row]:
    """What is to go; `rows` are the most recently used first."""
    chosen = []
    for row in rows:
        old = args.older_than is not None and now - row.used > args.older_than * 86400
        named = (args.damaged and row.status == DAMAGED) or (args.other_versions and row.status == OTHER)
        if args.all or old or named:
            chosen.append(row)
    rest = [row for row in rows if row not in chosen]
    while args.max_gb is not None and sum(row.bytes for row in rest) > args.max_gb * 1e9:
        chosen.append(rest.pop())
    return chosen


def _print(rows: Sequence[_Row], as_json: bool, summary: str) -> None:
    if as_json:
        text = json.dumps([{**asdict(row), "used": _utc(row.used)} for row in rows], indent=1)
    else:
        out = Console(emoji=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        with out.capture() as captured:
            if rows:
                out.print(_table(rows))
            out.print(summary, markup=False, highlight=False, soft_wrap=True)
        text = captured.get().rstrip("\n")
    try:
        print(text, flush=True)
    except OSError as error:
        discard(sys.stdout)
        if isinstance(error, BrokenPipeError):
            raise
        raise RecordError(f"stdout cannot be written: {error.strerror or error}") from error


def _table(rows: Sequence[_Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    for head in ("engine", "inputs", "built for, with"):
        table.add_column(head, overflow="fold")
    for head in ("MB", "age", "used"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    now = time.time()
    for row in rows:
        kind = f"{row.route} {row.precision or ''}"
        name = row.name if row.route is None else f"{row.submodule}\n{kind}"
        inputs = [f"{argument} {sizes}" for argument, sizes in (row.inputs or {}).items()]
        built = [row.gpu or "-", *(f"{key} {value}" for key, value in (row.versions or {}).items())]
        status = row.status if row.why is None else f"{row.status}: {row.why}"
        cells = [name, "\n".join(inputs) or "-", "\n".join(built), f"{row.bytes / 1e6:.3g}"]
        cells += [_ago(_age(row.created, now)), _ago(now - row.used), status]
        style = {DAMAGED: "bold red", OTHER: "yellow"}.get(row.status, "")
        table.add_row(*(Text(cell, style=style if cell is status else "") for cell in cells))
    return table


def _age(created: str | None, now: float) -> float | None:
    try:
        return now - datetime.fromisoformat(created or "").timestamp()
    except (TypeError, ValueError):  # a damaged engine, or a manifest written by hand
        return None


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def _size(rows: Sequence[_Row]) -> str:
    return f"{len(rows)} engine{'' if len(rows) == 1 else 's'}, {sum(row.bytes for row in rows) / 1e9:.2f} GB"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
