"""How long a server takes to be ready, and how much memory it takes, from a bundle and from the checkpoint.

Servers are started one after the other, each way in turn, in processes of their own, and told to end once they are
ready. Memory is the most that the process had in use (VmHWM); it and processor time are known on Linux only.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rich.console import Console

from ...errors import ServiceError

LONGEST_S = 60.0
"""For a server to end; how long it takes to be ready is for nobody to say."""


@dataclass(frozen=True)
class StartFact:
    """One start, from the launch of the process to its line that says ready.

    Attributes:
        ready_s: Seconds on the clock. cpu_s: Seconds on processors, those of the compilers that it called included.
    """

    ready_s: float
    cpu_s: float | None
    peak_bytes: int | None


def table_of_starts(folder: Path, checkpoint: Sequence[str], times: int, console: Console) -> str:
    """Start servers in turn, and say what it took, as a Markdown table.

    Args:
        checkpoint: Flags of `gr00t-trt serve` that start the same policy without the bundle.
    Raises: ServiceError for a server that does not start.
    """
    ways = {"from the checkpoint": list(checkpoint), "from the bundle": ["--bundle", str(folder)]}
    facts: dict[str, list[StartFact]] = {way: [] for way in ways}
    for number in range(1, times + 1):
        for way, argv in ways.items():
            console.print(f"start {number} of {times}, {way}", highlight=False)
            facts[way].append(one_start(argv))
    return _table(facts)


def one_start(argv: Sequence[str]) -> StartFact:
    """Start a server with these flags, on a free port of this machine, and end it. Raises: ServiceError."""
    command = [sys.executable, "-m", "gr00t_trt", "serve", "--server", "--port", "0", *argv]
    begun = time.monotonic()
    # What it says goes into a file: a pipe that nobody reads would stop it.
    with (
        tempfile.TemporaryFile("w+") as told,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as process,
    ):
        assert process.stdout is not None
        said = process.stdout.readline()
        taken, used, peak = time.monotonic() - begun, _cpu_s(process.pid), peak_bytes(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(LONGEST_S)
        told.seek(0)
        last = " ".join(line.strip() for line in told.read().strip().splitlines()[-3:])
    if not said.startswith("ready "):
        by_itself = shlex.join(["gr00t-trt", *command[3:]])
        raise ServiceError(
            f"the server did not start: {last or 'it said nothing'}", fix=f"look at it by itself: {by_itself}"
        )
    return StartFact(taken, used, peak)


def _cpu_s(pid: int) -> float | None:
    text = _read(Path(f"/proc/{pid}/stat"))
    if text is None:
        return None
    # The name of the program, in brackets, may hold anything.
    own_and_of_children = text.rpartition(")")[2].split()[11:15]
    return sum(map(int, own_and_of_children)) / os.sysconf("SC_CLK_TCK")


def peak_bytes(pid: int) -> int | None:
    """The most memory that a running process had in use so far; None where the system does not tell."""
    found = re.search(r"^VmHWM:\s+(\d+) kB", _read(Path(f"/proc/{pid}/status")) or "", re.M)
    return int(found[1]) * 1024 if found else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _table(facts: Mapping[str, Sequence[StartFact]]) -> str:
    head = ("start", "s to ready, median", "each", "s of processor, median", "GB of memory at most")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for way, own in facts.items():
        seconds, each = [fact.ready_s for fact in own], ", ".join(f"{fact.ready_s:.1f}" for fact in own)
        used = [fact.cpu_s for fact in own if fact.cpu_s is not None]
        peaks = [fact.peak_bytes for fact in own if fact.peak_bytes is not None]
        cells = (way, f"{median(seconds):.1f}", each, _figure(median, used, 1.0, 1), _figure(max, peaks, 1e9, 2))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(of: Callable[[Sequence[float]], float], values: Sequence[float], unit: float, digits: int) -> str:
    return f"{of(values) / unit:.{digits}f}" if values else "unknown"
