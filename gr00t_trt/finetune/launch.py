"""`--num_gpus N`: the program N times, each process with the environment that torchrun would give it. No torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..common.progress import handling_signals

GRACE_S = 20.0
"""How long the others may go on after one process has failed: most often they fail of the same cause."""
POLL_S = 0.2
PROGRAM = (sys.executable, "-m", str(__package__))


def inside() -> bool:
    """Whether this process is one of several already."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(argv: Sequence[str], count: int) -> int:
    """Run the program's command line in `count` processes; the exit status of the first one that fails, else 0.

    What the first process says is shown; the others speak only where they alone fail. Signals are handed on.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / f"rank{rank}" for rank in range(count)]
        port = str(_free_port())
        processes = [_start(argv, rank, count, port, said[rank]) for rank in range(count)]

        def hand_on(number: int, _: object) -> None:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(number)

        try:
            with handling_signals(hand_on):
                return _watch(processes, said)
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _start(argv: Sequence[str], rank: int, count: int, port: str, said: Path) -> subprocess.Popen[bytes]:
    ours = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = {**os.environ, **{name: str(value) for name, value in ours.items()}, **where}
    # As torchrun: N processes of as many threads as there are cores would only stand in each other's way.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    command = [*PROGRAM, *argv]
    if rank == 0:
        return subprocess.Popen(command, env=environment, start_new_session=True)
    with said.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True
        )


def _watch(processes: Sequence[subprocess.Popen[bytes]], said: Sequence[Path]) -> int:
    failed: int | None = None
    since = 0.0
    while any(process.poll() is None for process in processes):
        time.sleep(POLL_S)
        bad = [rank for rank, process in enumerate(processes) if process.poll() not in (None, 0)]
        if bad and failed is None:
            failed, since = bad[0], time.monotonic()
        if failed is not None and time.monotonic() - since > GRACE_S:
            for process in processes:
                process.kill()
    status = [process.wait() for process in processes]
    if failed is None:
        failed = next((rank for rank, code in enumerate(status) if code), None)
    if failed is None:
        return 0
    if failed and status[0] in (0, -signal.SIGKILL):  # the first process has said nothing about it
        print(f"process {failed}:", said[failed].read_text(errors="replace"), sep="\n", file=sys.stderr)
    own = status[failed]
    if own < 0:
        cause = ", as the system does when memory runs out" if own == -signal.SIGKILL else ""
        print(f"process {failed} was ended by signal {-own}{cause}", file=sys.stderr)
    return own if own > 0 else 1


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
