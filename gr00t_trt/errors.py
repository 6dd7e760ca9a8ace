"""Everything this package raises on purpose.

    Gr00tError                 base; the command line prints it without a traceback and exits with 2
    ├─ PlanError               a plan file or a combination of settings that cannot work
    │  └─ UsageError           a flag of a command line
    ├─ CheckpointError         a model folder: missing, truncated, a tensor missing, unexpected or misshapen
    ├─ TokenizerError          no tokenizer, or one that does not fit the model
    ├─ DatasetError            a LeRobot dataset: missing, empty, corrupt, without a video, column or statistic
    ├─ ObservationError        an observation or model input: missing key, wrong dtype, resolution, NaN
    ├─ ShapeError              a tensor outside the range that a compiled submodule was built for
    ├─ BackendError            a backend that is not installed, or a build that failed
    ├─ AccuracyError           a compiled policy that a gate refuses to put into service
    ├─ ServiceError            a server or client: no answer, a refused request, a port in use
    └─ RecordError             a record or engine file that cannot be written or read

Each message has up to three parts, one per line: what is wrong (with the value), what is known or was
expected, and how to fix it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class Gr00tError(Exception):
    """Base of all errors of this package.

    Args:
        what: What is wrong, naming the offending value and where it stands.
        known: What was expected: a list of the valid names, or one sentence.
        fix: What to do about it: a command, a flag, a key.
    """

    def __init__(self, what: str, *, known: str | Iterable[str] | None = None, fix: str | None = None):
        lines = [what]
        if known is not None:
            lines.append("  known: " + (known if isinstance(known, str) else ", ".join(known) or "none"))
        if fix is not None:
            lines.append("  " + fix)
        super().__init__("\n".join(lines))


class PlanError(Gr00tError):
    """A plan key or a combination of settings that cannot work."""


class UsageError(PlanError):
    """A flag that is unknown, out of range, or at odds with another."""


class CheckpointError(Gr00tError):
    """A model folder that cannot be loaded strictly."""


class TokenizerError(Gr00tError):
    """No tokenizer was found, or its special tokens do not fit the model."""


class DatasetError(Gr00tError):
    """A dataset, or one row or frame of it, that cannot be read."""


class ObservationError(Gr00tError):
    """An observation or model input with a missing key, wrong dtype, shape or value."""


class ShapeError(Gr00tError):
    """A tensor outside the shape range that a submodule was compiled for."""


class BackendError(Gr00tError):
    """A backend that is not available here, or a build that failed."""


class AccuracyError(Gr00tError):
    """A compiled policy whose submodules or actions stray further from eager fp32 than their gates allow."""


class ServiceError(Gr00tError, RuntimeError):
    """A server that cannot start or does not answer, or a request that it refused.

    Also a RuntimeError, which is what programs written for NVIDIA's client catch.
    """


class RecordError(Gr00tError):
    """A record or engine file that cannot be written or read."""


def refetch(file: Path) -> str:
    """How to fix a file that cannot be read: most often it is git-lfs's stand-in for the real one."""
    try:
        with file.open("rb") as f:
            pointer = f.read(24).startswith(b"version https://git-lfs")
    except OSError:
        pointer = False
    if pointer:
        return "it is a git-lfs pointer: run `git lfs pull`"
    return "the file is damaged or cut short: download it again"


def nearest(value: str, known: Iterable[str]) -> str | None:
    """The known name closest to `value`, or None when nothing is close; a beginning of a name counts as close."""
    folded = {name.lower(): name for name in known}
    wanted = value.lower()
    begun = [name for name in folded if len(wanted) > 1 and name.startswith(wanted)]
    match = begun or difflib.get_close_matches(wanted, folded, n=1, cutoff=0.5)
    return folded[match[0]] if match else None


def unknown(error: type[Gr00tError], where: str, value: object, known: Iterable[str]) -> Gr00tError:
    """An error for a name that is not in a closed list, with the nearest valid one offered.

    Args:
        error: The class to make.
        where: What the value was meant to be, for example ``"--fn_name"`` or ``"plan.yaml: precision"``.
        value: The value that was given.
        known: All valid names.
    """
    names = list(known)
    close = nearest(str(value), names)
    return error(f"{where}: unknown value {value!r}", known=names, fix=f"did you mean {close}?" if close else None)
